"""Decoded data sets as memory-mapped files that carry their own SHA-256, written by one process of a machine."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from numpy.lib.format import open_memmap  # unlike numpy.load, it has no way to read a pickle

from alexnet_dist import atomic_files
from alexnet_dist.data.image_data import ImageData, Split, assemble, fingerprint
from alexnet_dist.errors import UserError, first_line

logger = logging.getLogger(__name__)

FORMAT = 2  # raise it when the files below change their meaning


def folder_of(cache: Path, key: str, name: str) -> Path:
    """Return where a data set's arrays are kept."""
    return cache / f"{name.replace('/', '--')}-v{FORMAT}-{key[:16]}"


def cached(cache: Path, key: str, name: str, read: Callable[[], tuple[Split, Split, tuple[str, ...]]]) -> ImageData:
    """Return what `read` gives, decoding it at most once per machine: the first process writes, the others wait."""
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
    """Write beside the final place and rename, so that a killed process leaves no half-written cache."""
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, array in _arrays(data).items():
            np.save(scratch / f"{name}.npy", array)
        meta = {
            "name": data.name,
            "class_names": data.class_names,
            "mean": data.mean,
            "std": data.std,
            "fingerprint": data.fingerprint,
        }
        meta["sha256"] = _seal(meta)
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        atomic_files.flush(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load(folder: Path, name: str) -> ImageData | None:
    """Map the cached arrays, or return None where there are none or their hash tells that they are damaged."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        seal = meta.pop("sha256")
        train, test = (
            Split(*(open_memmap(folder / f"{split}_{kind}.npy", mode="r") for kind in ("images", "labels")))
            for split in ("train", "test")
        )
        data = ImageData(
            name=name,
            train=train,
            test=test,
            class_names=tuple(meta["class_names"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            fingerprint=meta["fingerprint"],
        )
        intact = seal == _seal(meta) and fingerprint(train, test, data.class_names) == data.fingerprint
        for split in (train, test):  # a flipped bit of the header can change the byte order alone
            intact &= split.images.dtype == np.uint8 and split.labels.dtype == np.int64
    except Exception as error:  # noqa: BLE001 - whatever damage provokes, the answer is to decode again
        logger.warning("the data cache %s cannot be read (%s)", folder, first_line(error))
        intact = False
    if not intact:
        logger.warning("the data cache %s is damaged: decoding again", folder)
        return None
    return data


def _seal(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _arrays(data: ImageData) -> dict[str, npt.NDArray[Any]]:
    return {
        "train_images": data.train.images,
        "train_labels": data.train.labels,
        "test_images": data.test.images,
        "test_labels": data.test.labels,
    }
