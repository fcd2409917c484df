"""Repair of .wandb files that end within a record after a kill, so that `wandb sync` sends all parts of a run."""

import os
import shutil
import struct
from pathlib import Path

# A .wandb file is a log in LevelDB's format: after its own header, blocks of chunks that make up records.
LOG_HEADER, LOG_BLOCK, CHUNK_HEADER = 7, 32_768, 7  # bytes
LAST_OF_RECORD = (1, 4)  # kinds of chunks: a record in one chunk, or the last of several


def repair_parts(folder: Path, *, run_id: str) -> None:
    """Truncate each part of a run after its last whole record, and delete parts without one.

    `wandb sync` 0.31 stops at a part that ends within a record, with exit code 0, and sends no later one.

    Args:
        folder: W&B's folder, in the run folder or in that of WANDB_DIR, which other runs may use too.
        run_id: of the run.
    """
    for path in folder.glob(f"*run-*/run-{run_id}.wandb"):
        content = path.read_bytes()
        end = _end_of_records(content)
        if end == LOG_HEADER:
            shutil.rmtree(path.parent)
        elif end < len(content):
            os.truncate(path, end)


def _end_of_records(content: bytes) -> int:
    """Return the offset in bytes at which the last whole record ends.

    Source: LevelDB's doc/log_format.md. A chunk is checksum (4 bytes), length (2), kind (1) and its data; at the end
    of a block, fewer than 7 bytes, the size of a chunk's header, stay empty.
    """
    at = end = LOG_HEADER
    while True:
        left = LOG_BLOCK - at % LOG_BLOCK
        if left < CHUNK_HEADER:
            at += left
        if at + CHUNK_HEADER > len(content):
            return end
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += CHUNK_HEADER + length
        if kind == 0 or at > len(content):
            return end
        if kind in LAST_OF_RECORD:
            end = at
