"""Numbers as words: durations and shares; and names in a length that file systems take."""

NBSP = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"
"""Stands for a value that is not known."""


def duration(seconds: float) -> str:
    """Return `1 h 02 m`, `2 m 05 s` or `3.4 s`."""
    if seconds < 59.95:  # else it would round to 60.0 s
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m"


def percent(share: float | None) -> str:
    """Return `12.34 %` for the share 0.1234; a dash for None."""
    return NOTHING if share is None else f"{100 * share:.2f}{NBSP}%"


def shortened(name: str, *, most: int = 80) -> str:
    """Return a name, or its beginning of `most` bytes: with what is added to it, a file's name has 143 at most.

    That is what eCryptfs takes; other file systems take 255.
    """
    return name.encode()[:most].decode(errors="ignore")
