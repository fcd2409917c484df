"""Dead and stuck ranks end the others within the timeout, and are named."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from deadlines import Deadline, communicate, deadline
from ranks import free_port, rank_environment
from tiny import FLAGS, equal, program, weights
from warm import Process

TIMEOUT = 6  # seconds of an idle machine: gloo's own timeout, and the watchdog's
GRACE = 20  # for messages


def scaled_timeout() -> int:
    return round(deadline(TIMEOUT))


def start(folder: Path, *, before: str = "") -> list[Process]:
    """Start two ranks of a long tiny run, without a launcher; `before` is code that each rank runs first."""
    flags = [*FLAGS, "--runtime.cpu", "--epochs", "500", "--out-dir", str(folder), "--checkpoint.every-epochs", "1000"]
    flags += ["--runtime.timeout-seconds", str(scaled_timeout())]
    code = program(flags, before=f"rank = int(os.environ['RANK'])\n{before}")
    port = free_port()
    return [Process(code, environment=os.environ | rank_environment(rank, 2, port)) for rank in (0, 1)]


def wait_for_steps(folder: Path, *, count: int = 3) -> None:
    end = Deadline(90)
    path = folder / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert not end.has_passed(), "the run did not begin"
        time.sleep(0.1)


def ending(process: Process, *, within: float) -> tuple[int, str]:
    """Return a process's exit code and its errors; it has to end within so many seconds of an idle machine."""
    _, errors = communicate(process, within)
    return process.returncode, errors


def kill_all(processes: list[Process]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_named_and_ends_the_other(tmp_path, victim):
    """R3. Rank 0 also keeps the store here: there is no launcher that would outlive it.

    Launchers on several machines count restarts differently: one that has come back begins at 0.
    """
    ranks = start(tmp_path, before="os.environ['TORCHELASTIC_RESTART_COUNT'] = str(2 - 2 * rank)")
    try:
        wait_for_steps(tmp_path)
        ranks[victim].kill()
        code, errors = ending(ranks[1 - victim], within=TIMEOUT + GRACE)
        assert code == 1, errors
        expected = "rank 1 has not been heard of" if victim else "the store of the launcher does not answer"
        assert expected in errors
        assert "Traceback" not in errors
        assert "The same command with the same --out-dir continues" in errors
    finally:
        kill_all(ranks)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named_and_ends_the_other(tmp_path, victim):
    """R4, with SIGSTOP: its sockets stay open, so only time tells."""
    ranks = start(tmp_path)
    try:
        wait_for_steps(tmp_path)
        ranks[victim].send_signal(signal.SIGSTOP)
        code, errors = ending(ranks[1 - victim], within=TIMEOUT + GRACE)
        assert code == 1, errors
        expected = r"rank 1 has not been heard of for \d+ s" if victim else "the store of the launcher does not answer"
        assert re.search(expected, errors), errors
        assert "Traceback" not in errors
    finally:
        kill_all(ranks)


def test_a_rank_that_hangs_in_its_own_code_is_named_by_itself_and_the_other(tmp_path):
    """R4: its thread still tells the store that it lives, but not that it moves."""
    hang = (
        "step = train_loop.train_step\n"
        "def hanging(context, *a, step, **k):\n"
        "    if rank == 1 and step == 4: time.sleep(1000)\n"
        "    return original(context, *a, step=step, **k)\n"
        "original, train_loop.train_step = step, hanging\n"
    )
    ranks = start(tmp_path, before=hang)
    try:
        wait_for_steps(tmp_path)
        for process in ranks:
            code, errors = ending(process, within=90)
            assert code == 1, errors
            assert re.search(r"rank 1 has not (moved|been heard of) for \d+ s", errors), errors
    finally:
        kill_all(ranks)


def test_a_failing_exchange_ends_all_ranks_and_the_run_continues_to_the_bit(tmp_path):
    """R5: the all-reduce of rank 1 raises at step 5, as torchft's EventInjector has it."""
    flags = ["--checkpoint.every-steps", "1", "--epochs", "2"]
    fail = (
        "train_step = train_loop.train_step\n"
        "def failing(context, *a, step, **k):\n"
        "    if rank == 1 and step == 4:\n"
        "        raise RuntimeError('[gloo/transport/tcp/pair.cc:1] injected: Connection reset by peer')\n"
        "    return train_step(context, *a, step=step, **k)\n"
        "train_loop.train_step = failing\n"
        f"sys.argv += {flags!r}\n"
    )
    ranks = start(tmp_path / "failed", before=fail)
    try:
        for process in ranks:
            code, errors = ending(process, within=90)
            assert code == 1
            assert "error: " in errors
            assert "Traceback" not in errors
    finally:
        kill_all(ranks)
    ranks = start(tmp_path / "failed", before=f"sys.argv += {flags!r}")
    uninterrupted = start(tmp_path / "whole", before=f"sys.argv += {flags!r}")
    try:
        assert [ending(process, within=90)[0] for process in [*ranks, *uninterrupted]] == [0] * 4
    finally:
        kill_all([*ranks, *uninterrupted])
    assert equal(weights(tmp_path / "failed"), weights(tmp_path / "whole"))
    assert equal(weights(tmp_path / "failed", name="optimizer"), weights(tmp_path / "whole", name="optimizer"))


def test_a_slow_step_is_no_lost_rank(tmp_path):
    """Two ranks that take longer than the timeout together, but move, go on."""
    slow = (
        "train_step = train_loop.train_step\n"
        "def slow(context, *a, step, **k):\n"
        f"    time.sleep({scaled_timeout() / 2})\n"
        "    return train_step(context, *a, step=step, **k)\n"
        "train_loop.train_step = slow\n"
        "sys.argv += ['--max-steps', '4', '--data.limit', '16']\n"
    )
    ranks = start(tmp_path, before=slow)
    try:
        assert [ending(process, within=90)[0] for process in ranks] == [0, 0]
    finally:
        kill_all(ranks)
