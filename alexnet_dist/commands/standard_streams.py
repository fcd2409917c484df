"""Standard streams that never end a run: closed, full or vanished ones, and ones that lack characters."""

import codecs
import io
import os
import sys
from typing import TextIO


class _Unfailing(io.FileIO):
    """A file descriptor whose writes never fail: what a closed pipe or a full disk does not take is dropped."""

    def write(self, data: object) -> int:
        """Return the number of bytes that were taken, or dropped."""
        try:
            return super().write(data) or len(data)  # type: ignore[arg-type] # None of one that would block
        except OSError:
            return len(data)  # type: ignore[arg-type]


ESCAPED = "alexnet_dist.escaped"
"""The way in which a stream writes characters that it lacks; a name of `codecs`."""


def _escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Return what stands for characters that a stream lacks: `\xe9` for a byte of a name that is not UTF-8."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    shown = (f"\\x{ord(one) & 0xFF:02x}" if "\udc80" <= one <= "\udcff" else ascii(one)[1:-1] for one in text)
    return "".join(shown), error.end


codecs.register_error(ESCAPED, _escaped)


def guard(*, drop: bool) -> None:
    """Open standard streams that are closed, on the null device, and let characters that a stream lacks be escaped.

    A file that is opened takes the lowest free number: without the first, what libraries print would go into it.

    Args:
        drop: whether what a stream does not take is dropped; else it is an error, as for a command whose output is its
            result. Messages on standard error are always dropped.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # replaced, as in a notebook or a test
        if number:
            setattr(sys, name, _guarded(number, stream, drop=drop or number == 2))
        elif stream is not None:
            stream.reconfigure(errors="surrogateescape")  # names of files, one a line


def _guarded(number: int, stream: TextIO | None, *, drop: bool) -> TextIO:
    """Return a standard stream in place of Python's own, which is None where it was closed."""
    if stream is not None and not drop:
        stream.reconfigure(errors=ESCAPED)  # type: ignore[attr-defined]
        return stream
    raw = _Unfailing(number, "w", closefd=False)
    at_once = bool(getattr(stream, "write_through", False))  # PYTHONUNBUFFERED
    return io.TextIOWrapper(
        raw if at_once else io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None),
        errors=ESCAPED,
        line_buffering=number == 2 or raw.isatty(),
        write_through=at_once,
    )
