"""The git commit of the code that runs, for the run's facts."""

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """Return the git commit of this package's checkout, with `-dirty` where files differ; None if it is installed."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie within another checkout
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()  # noqa: S603
