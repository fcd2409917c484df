"""Data cache: decoded data sets as memory-mapped .npy files under a SHA-256, written by one process of a machine."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.lib.format import open_memmap  # unlike numpy.load, it has no way to read a pickle

from alexnet_dist import atomic_files
from alexnet_dist.data.image_data import ImageData, Split, assemble, fingerprint
from alexnet_dist.errors import UserError, first_line

logger = logging.getLogger(__name__)

FORMAT = 2  # version of the files, part of the folder's name
META = ("name", "class_names", "mean", "std", "fingerprint")  # fields of ImageData in meta.json


def folder_of(cache: Path, key: str, name: str) -> Path:
    """Return the folder of a data set's files within the cache."""
    return cache / f"{name.replace('/', '--')}-v{FORMAT}-{key[:16]}"


def cached(cache: Path, key: str, name: str, read: Callable[[], tuple[Split, Split, tuple[str, ...]]]) -> ImageData:
    """Return a data set from the cache, after writing it there if the cache has none or a damaged one.

    At most one process of a machine calls `read` and writes; the others wait for it. Every rank calls this, before a
    process group exists.

    Args:
        cache: the folder of all data sets.
        key: of the data set's content or source, in hexadecimal.
        name: of the data set.
        read: returns training split, evaluation split and class names.

    Raises:
        UserError: the cache cannot be written, or what `read` raises.
    """
    folder = folder_of(cache, key, name)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            data = _load(folder, name)
            if data is None:
                data = assemble(name, *read())
                _write(folder, data)
                data = _load(folder, name) or data
    except OSError as error:  # without an errno where a disk fills up under numpy
        raise UserError(f"the data cache {cache} cannot be used: {error}. Choose another by --data.cache-dir") from None
    return data


def _write(folder: Path, data: ImageData) -> None:
    """Write a data set into a folder beside the final one and rename it: a killed process leaves no partial cache."""
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, split in (("train", data.train), ("test", data.test)):
            np.save(scratch / f"{name}_images.npy", split.images)
            np.save(scratch / f"{name}_labels.npy", split.labels)
        meta = {key: getattr(data, key) for key in META}
        meta["sha256"] = _seal(meta)
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        atomic_files.flush(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(folder: Path, name: str) -> ImageData | None:
    """Return a data set whose arrays are mapped read-only; None if there is none or its SHA-256 differs."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        seal = meta.pop("sha256")
        train, test = (
            Split(*(open_memmap(folder / f"{split}_{kind}.npy", mode="r") for kind in ("images", "labels")))
            for split in ("train", "test")
        )
        names, mean, std = tuple(meta["class_names"]), tuple(meta["mean"]), tuple(meta["std"])
        data = ImageData(name, train, test, names, mean, std, meta["fingerprint"])
        intact = seal == _seal(meta) and fingerprint(train, test, names) == data.fingerprint
        for split in (train, test):  # a flipped bit of the header can change the byte order alone
            intact &= split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        fault = None if intact else "SHA-256 or types differ"
    except Exception as error:  # noqa: BLE001 - damage makes JSON's and NumPy's readers raise nearly anything
        fault = first_line(error)
    if fault:
        logger.warning("the data cache %s is damaged: decoding again (%s)", folder, fault)
        return None
    return data


def _seal(meta: dict[str, Any]) -> str:
    """Return the SHA-256 of meta.json's content, in hexadecimal."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
