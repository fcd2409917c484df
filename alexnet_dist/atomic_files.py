"""Files that are written whole or not at all, and hashed."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal: 2 GB/s on a processor with SHA instructions."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step: a reader, or a crash, sees the old content or the new."""
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def flush(folder: Path) -> None:
    """Have the disk hold a folder's files and its list of names before anything relies on them."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
