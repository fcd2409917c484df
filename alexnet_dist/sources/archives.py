"""Archives: zip files of class folders, and MedMNIST's .npz, read without extracting a file or unpickling."""

from __future__ import annotations

import math
import os
import threading
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy  # unlike numpy.load, its header readers know no pickle

from alexnet_dist.errors import UserError, first_line, printable
from alexnet_dist.sources import splits
from alexnet_dist.sources.folders import File, Folder, hidden, image_suffixes, key_of, suffix
from alexnet_dist.sources.labels import Origin, assemble
from alexnet_dist.sources.layout import Place, list_tree
from alexnet_dist.sources.listing import ArrayImages, EncodedImages, Labels, Listing, SourceOptions

KINDS = ("images", "labels")


class ZipImages(EncodedImages):
    """Images within a zip file; nothing is extracted, so that a name such as ../x leads nowhere.

    Args:
        archive: open for reading; one thread at a time reads: zipfile counts its open members without a lock.
        members: their names in the archive.
        labels: (N,) int64.
    """

    def __init__(self, archive: zipfile.ZipFile, members: Sequence[str], labels: Labels) -> None:
        super().__init__(labels)
        self._archive, self._members, self._lock = archive, members, threading.Lock()

    def read(self, index: int) -> bytes:
        """Return the bytes of a member, after a check of their CRC."""
        try:
            with self._lock:
                return self._archive.read(self._members[index])
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last one: it is encrypted
            raise UserError(f"{self.where(index)} cannot be read: {first_line(error)}") from None

    def where(self, index: int) -> str:
        """Return `FILE.zip/MEMBER`."""
        return printable(f"{self._archive.filename}/{self._members[index]}")


def list_zip(path: str, options: SourceOptions) -> Listing:
    """Return what a zip file of class folders holds; its layouts are those of folders.

    Raises:
        UserError: it is damaged, or is no layout of class folders.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"--data.dataset {printable(path)} cannot be read: {first_line(error)}") from None
    files = (member for member in archive.infolist() if not member.is_dir())
    members = {file.filename.replace("\\", "/").lstrip("/"): file for file in files}  # Windows programs write a\b.png
    tree = _tree(members, os.stat(path).st_mtime_ns)  # noqa: PTH116
    holders = [folder for folder in tree.folders.values() if folder.count()]
    if len(holders) == 1 and not tree.names and not holders[0].names:  # one folder around all, as zip programs make it
        tree = holders[0]

    def images(folders: list[Folder], labels: Labels) -> ZipImages:
        paths = (f"{folder.path}/{name}" for folder in folders for name in folder.names)
        return ZipImages(archive, [members[path].filename for path in paths], labels)

    return list_tree(tree, Place(path), options, images)


def _tree(members: dict[str, zipfile.ZipInfo], time: int) -> Folder:
    """Return the folders of a zip file as a tree."""
    root = Folder("")
    files: dict[str, list[tuple[str, int, int]]] = {}
    for path, member in sorted(members.items()):
        *above, name = path.split("/")
        if any(map(hidden, above)) or hidden(name):
            continue
        folder = root
        for part in above:
            inner = f"{folder.path}/{part}" if folder.path else part
            folder = folder.folders.setdefault(part, Folder(inner))
        if suffix(name) in image_suffixes():
            files.setdefault(folder.path, []).append((name, member.file_size, time))
        else:
            folder.others[suffix(name) or "no suffix"] += 1
    for folder in root.walk():
        folder.add(files.get(folder.path, []))
    return root


# ---- MedMNIST -------------------------------------------------------------------------------------------------------


def list_npz(path: str, options: SourceOptions) -> Listing:
    """Return the images of an .npz with train_images, train_labels, val_images, ..., as MedMNIST has.

    Raises:
        UserError: it is damaged, an array is missing, or is no image or class.
    """
    source = f"--data.dataset {printable(path)}"
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            names = [name.removesuffix("_images") for name in sorted(held) if name.endswith("_images")]
            missing = [f"{name}_labels" for name in names if f"{name}_labels" not in held]
            if not names or missing:
                lacks = ", ".join(missing) or "train_images, train_labels"
                raise UserError(f"{source}: lacks {lacks}; it has {splits.few(sorted(held)) or 'no array'}")
            arrays = {f"{name}_{kind}": _array(archive, f"{name}_{kind}") for name in names for kind in KINDS}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        fault = first_line(error)
        raise UserError(fault if isinstance(error, UserError) else f"{source} cannot be read: {fault}") from None

    def images(split: str, labels: Labels) -> ArrayImages:
        pixels = arrays[f"{split}_images"]
        if pixels.dtype != np.uint8 or not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)):
            found = f"{pixels.dtype} {pixels.shape}"
            raise UserError(f"{source}: {split}_images is {found}; uint8 (N, H, W) or (N, H, W, 3) is needed")
        if len(pixels) != len(labels):
            raise UserError(f"{source}: {split} has {len(pixels)} images and {len(labels)} labels")
        return ArrayImages(pixels.view(np.uint8), labels)

    info = os.stat(path)  # noqa: PTH116
    name = printable(os.path.basename(path))  # noqa: PTH119
    origin = Origin(name, source, key_of([File(name, info.st_size, info.st_mtime_ns)], options))
    return assemble(origin, names, lambda n: _flat(arrays[f"{n}_labels"], f"{source}: {n}_labels"), images, options)


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[np.generic]:
    """Return an array of an .npz. One of Python objects, which would be a pickle, is refused."""
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, by_columns, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        content = file.read()
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} is cut off")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if by_columns else "C")


def _flat(labels: npt.NDArray[np.generic], where: str) -> list[int]:
    """Return labels of (N,) or (N, 1) integers as a list."""
    if labels.dtype.kind not in "iub" or labels.size != len(labels):
        raise UserError(f"{where} is {labels.dtype} {labels.shape}: one class for each image is needed, not several")
    flat: list[int] = labels.reshape(-1).tolist()
    return flat
