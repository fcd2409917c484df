"""The run folder, and the threads that draw and send what is in it; silent on every rank but 0.

`metrics.jsonl` in the run folder is the record, written before anything else happens with it. Pictures are drawn and
written on one thread, and trackers called on another: training does not wait for a server, and neither do pictures.
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

logger = logging.getLogger(__name__)


def code_version() -> str | None:
    """Return the git commit of this package's checkout, with `-dirty` where files differ; None if it is installed."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # an installed package may lie within another checkout
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()  # noqa: S603
