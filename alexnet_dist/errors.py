"""Errors that users can put right, the exit codes of all commands, and names fit for a message."""

EXIT_DONE = 0
EXIT_FAILED = 1  # a NaN, a lost rank, or some inputs that could not be read
EXIT_USER = 2  # a mistake of the user
EXIT_DIFFERS = 3  # a result is not what a file claims
EXIT_INTERRUPTED = 130  # SIGINT, as shells report it
EXIT_UNREAD = 141  # SIGPIPE, as shells report it: nobody reads the results


class UserError(ValueError):
    """A mistake that the user can put right: shown as one line, without a traceback, with exit code 2."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, to be quoted in a one-line message."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def printable(name: str) -> str:
    r"""Return a name with bytes that are not UTF-8 as `\xe9`: surrogates cannot be printed, stored or sent."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
