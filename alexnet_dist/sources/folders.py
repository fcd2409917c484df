"""Folders: image files in class folders, found by a walk that follows links, and read one by one."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from alexnet_dist.errors import UserError, printable
from alexnet_dist.sources.listing import Extents, Labels, SourceOptions, StoredImages

SYSTEM_FILES = {"Thumbs.db", "desktop.ini", "Desktop.ini", "ehthumbs.db"}
# Read only by programs or libraries beside Pillow (ghostscript, a GRIB decoder, ...), or only recognised.
NEEDS_MORE_THAN_PILLOW = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Pictures that Pillow does not read: a class that has only these is refused, not dropped.
UNREAD_PICTURES = {".heic", ".heif", ".jxl", ".svg", ".eps", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw", ".dcm"}
# Files that decide what kind of source a folder is; their sizes and times are noted.
TELLING = (".parquet", ".arrow", ".tar", ".tgz", ".zip", ".npz", ".py")
TELLING_NAMES = {"metadata.csv", "metadata.jsonl", "dataset_dict.json", "state.json", "README.md"}


class File(NamedTuple):
    """A file of a folder."""

    path: str
    """Relative to the folder that is listed."""
    size: int
    """Bytes."""
    time: int
    """Of the last change, nanoseconds since 1970."""


@dataclass
class Folder:
    """A folder or a folder within an archive: its image files, and its folders."""

    path: str
    """Relative to the root, whose path is empty."""
    names: list[str] = field(default_factory=list)
    """Of its image files, sorted."""
    sizes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    """By name, sorted; hidden and system folders are left out."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of its other files by suffix."""
    telling: list[File] = field(default_factory=list)
    """Its files that show what kind of source this is: parquet, tar, metadata.csv, ..."""
    identity: tuple[int, int] = (0, 0)
    """Device and inode: equal for a folder and a link to it; zeros in an archive."""

    def walk(self) -> list[Folder]:
        """Return this folder and all below it."""
        return [self, *(below for folder in self.folders.values() for below in folder.walk())]

    def count(self) -> int:
        """Return the number of image files here and below."""
        return len(self.names) + sum(folder.count() for folder in self.folders.values())

    def add(self, files: list[tuple[str, int, int]]) -> None:
        """Set the image files: (name, bytes, time of the last change), in any order."""
        if files:
            self.names, self.sizes, self.times = map(list, zip(*sorted(files), strict=True))


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of files that Pillow reads by itself: .jpg, .png, .webp, ..., in lower case."""
    from PIL import Image

    known = Image.registered_extensions().items()
    return frozenset(end for end, kind in known if kind in Image.OPEN and kind not in NEEDS_MORE_THAN_PILLOW)


def suffix(name: str) -> str:
    """Return a file name's suffix with its dot, in lower case; empty if it has none."""
    return name[dot:].lower() if (dot := name.rfind(".")) > 0 else ""


def hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or the system's; `__` begins __MACOSX and what `datasets` ignores."""
    return name.startswith((".", "__")) or name in SYSTEM_FILES


def key_of(files: Sequence[File], options: SourceOptions) -> str:
    """Return the SHA-256 of files' names, sizes and times and of what is read of them, in hexadecimal."""
    return hashlib.sha256(repr((files, options.choices())).encode()).hexdigest()  # repr escapes surrogates


def scan(root: str) -> Folder:
    """Return the tree of a folder, links followed: one call of stat for each image file.

    Raises:
        UserError: a folder cannot be read, or an image file is a link to nothing.
    """
    return _scan(root, "", frozenset())


def _scan(root: str, path: str, above: frozenset[tuple[int, int]]) -> Folder:
    """Return the tree of a folder below the root; folders in `above` are those that it lies in."""
    here = os.path.join(root, path)  # noqa: PTH118 - strings are 10 times as fast as Path
    folder, images, below, suffixes = Folder(path), [], [], image_suffixes()
    try:
        info = os.stat(here)  # noqa: PTH116
        folder.identity = (info.st_dev, info.st_ino)
        if folder.identity in above:
            return folder  # a link to a folder that this one lies in
        with os.scandir(here) as entries:
            for entry in entries:
                name = entry.name
                if name[0] in "._" and hidden(name):
                    continue
                # no call of a function of ours for an image: 1.3 million images take 10 s
                if name[name.rfind(".") :].lower() in suffixes and entry.is_file():
                    info = entry.stat()
                    images.append((name, info.st_size, info.st_mtime_ns))
                elif entry.is_dir():
                    below.append(name)
                elif not hidden(name):
                    _note_other(folder, entry)
    except OSError as error:
        fault = f"{printable(here)} cannot be read: {error.strerror}"
        raise UserError(f"--data.dataset {printable(root)}: {fault}") from None
    folder.add(images)
    inside = above | {folder.identity}
    folder.folders = {name: _scan(root, f"{path}/{name}" if path else name, inside) for name in sorted(below)}
    return folder


def _note_other(folder: Folder, entry: os.DirEntry[str]) -> None:
    """Count a file that is no image; of a telling one, note size and time."""
    end = suffix(entry.name)
    if entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
        if end in image_suffixes():
            raise UserError(f"--data.dataset: {printable(entry.path)} is a link to a file that does not exist")
        return
    folder.others[end or "no suffix"] += 1
    if end in TELLING or entry.name in TELLING_NAMES:
        info = entry.stat()
        path = f"{folder.path}/{entry.name}" if folder.path else entry.name
        folder.telling.append(File(path, info.st_size, info.st_mtime_ns))


# ---- reading --------------------------------------------------------------------------------------------------------


class FilePaths(Sequence[str]):
    """Paths of many files in few folders, names in one string of bytes: about 30 bytes a file instead of 150.

    Args:
        folders: (path, names of files) of each folder, in order.
    """

    def __init__(self, folders: Sequence[tuple[str, Sequence[str]]]) -> None:
        joined = [os.fsencode("\0".join(names) + "\0") for _, names in folders if names]
        self._names = b"".join(joined)
        self._ends = np.flatnonzero(np.frombuffer(self._names, np.uint8) == 0)
        self._folders = [path for path, _ in folders]
        self._folder = np.repeat(np.arange(len(folders), dtype=np.int32), [len(names) for _, names in folders])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401 - a str; slices are not used
        at = range(len(self))[index]  # raises IndexError; counts from the end for negative ones
        begin = int(self._ends[at - 1]) + 1 if at else 0
        name = os.fsdecode(self._names[begin : int(self._ends[at])])
        return os.path.join(self._folders[self._folder[at]], name)  # noqa: PTH118


def image_files(root: str, folders: Sequence[Folder], labels: Labels) -> StoredImages:
    """Return the images of class folders below an absolute root, folder by folder."""
    paths = FilePaths([(os.path.join(root, folder.path), folder.names) for folder in folders])  # noqa: PTH118
    sizes = np.array([size for folder in folders for size in folder.sizes], np.int64)
    whole = Extents(paths, np.arange(len(sizes), dtype=np.int32), np.zeros(len(sizes), np.int64), sizes)
    return StoredImages(whole, labels)
