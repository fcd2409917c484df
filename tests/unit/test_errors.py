"""Users' errors, and the first lines of other libraries' errors."""

import pytest

from alexnet_dist import errors


def test_each_ending_has_its_own_exit_code():
    assert (errors.EXIT_DONE, errors.EXIT_FAILED, errors.EXIT_USER, errors.EXIT_INTERRUPTED) == (0, 1, 2, 130)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("\n  no such file\nsee the manual"), "no such file"),
        (RuntimeError(), "RuntimeError"),
        (errors.UserError("--epochs: 0"), "--epochs: 0"),
    ],
)
def test_another_librarys_error_is_quoted_in_one_line(error, line):
    assert errors.first_line(error) == line


def test_printable_names():
    assert errors.printable("plain/caf\u00e9.png") == "plain/caf\u00e9.png"
    assert errors.printable("caf\udce9.png") == r"caf\xe9.png"
    errors.printable("\udce9\udcff").encode()
