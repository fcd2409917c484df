"""Code version: the git commit of this package's checkout."""

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Return the commit's 40 digits, with `-dirty` if files differ from it; None outside a checkout or without git."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie within another checkout
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    """Return what a git command prints."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()  # noqa: S603
