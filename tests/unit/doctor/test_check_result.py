"""Lines of the preflight, and a deadline for calls that have none."""

import threading

import pytest

from alexnet_dist.doctor import check_result


@pytest.mark.parametrize("level", ["ok", "warning", "error"])
def test_a_line_names_its_level_its_check_and_the_message(level):
    result = getattr(check_result, level)("disk", "3 GB are free")
    assert (result.level, result.check, result.message) == (level, "disk", "3 GB are free")
    assert str(result).split(maxsplit=2) == [level, "disk", "3 GB are free"]
    assert str(result).index("3 GB") == str(check_result.ok("a check", "3 GB")).index("3 GB"), "messages are in line"


def test_an_answer_in_time_and_an_error_come_through():
    assert check_result.within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        check_result.within(60, lambda: 1 / 0)


def test_a_call_that_hangs_is_left_behind():
    asked, answer = threading.Event(), threading.Event()

    def hang():
        asked.set()
        return answer.wait(60)

    try:
        with pytest.raises(TimeoutError, match="no answer within 0 s"):
            check_result.within(0.05, hang)
        assert asked.wait(60)
        (thread,) = (one for one in threading.enumerate() if one.name == "doctor")
        assert thread.daemon, "the process can end while the call hangs"
    finally:
        answer.set()
