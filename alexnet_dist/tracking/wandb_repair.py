"""Weights & Biases and TensorBoard: where records go besides the run folder. The only place that imports wandb.

A tracker takes the same numbers under the same keys as metrics.jsonl, and pictures and tables besides. Rank 0 alone has
trackers; runlog.py calls them on a thread, where a failure or a hang of theirs is no matter of the run.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Picture = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)

Record = dict[str, Any]

# A .wandb file is a log in LevelDB's format: after its own header, blocks of chunks that make up records.
LOG_HEADER, LOG_BLOCK, CHUNK_HEADER = 7, 32_768, 7  # bytes
LAST_OF_RECORD = (1, 4)  # kinds of chunks: a record in one chunk, or the last of several


def _mend_parts(folder: Path) -> None:
    """Cut parts of killed runs behind their last whole record: `wandb sync` would leave out all later parts."""
    for path in folder.glob("*run-*/run-*.wandb"):
        if path.parent.is_symlink():
            continue
        content = path.read_bytes()
        end = _end_of_records(content)
        if end == LOG_HEADER:
            shutil.rmtree(path.parent)
        elif end < len(content):
            os.truncate(path, end)


def _end_of_records(content: bytes) -> int:
    """Return where the last whole record ends.

    Source: LevelDB's doc/log_format.md. A chunk is checksum (4 bytes), length (2), kind (1) and its data; a block's
    last bytes stay empty where no header fits.
    """
    at = end = LOG_HEADER
    while True:
        left = LOG_BLOCK - at % LOG_BLOCK
        if left < CHUNK_HEADER:
            at += left
            continue
        if at + CHUNK_HEADER > len(content):
            return end
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += CHUNK_HEADER + length
        if kind == 0 or at > len(content):
            return end
        if kind in LAST_OF_RECORD:
            end = at
