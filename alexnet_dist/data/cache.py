"""Data cache: data sets that are one array, as memory-mapped .npy files, written by one process of a machine."""

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap  # unlike numpy.load, it has no way to read a pickle

from alexnet_dist import atomic_files
from alexnet_dist.data.image_data import ImageData, Split, Statistics, fingerprint
from alexnet_dist.errors import first_line

logger = logging.getLogger(__name__)

META = ("name", "class_names", "mean", "std", "fingerprint", "evaluated_on", "notes")  # of ImageData, in meta.json


def write(folder: Path, data: ImageData) -> None:
    """Write a data set into a folder beside the final one and rename it: a killed process leaves no partial cache."""
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, split in (("train", data.train), ("test", data.test)):
            assert isinstance(split, Split)
            np.save(scratch / f"{name}_images.npy", split.images)
            np.save(scratch / f"{name}_labels.npy", split.labels)
        meta = {key: getattr(data, key) for key in META} | {"files": _sizes(scratch)}
        meta["sha256"] = _seal(meta)
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        atomic_files.flush(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read(folder: Path, name: str, *, verify: bool) -> ImageData | None:
    """Return a data set whose arrays are mapped read-only; None if there is none, or it is damaged.

    Args:
        folder: of its files.
        name: of the data set.
        verify: hash all pixels and compare them with the fingerprint; otherwise sizes are compared alone.
    """
    if not (folder / "meta.json").exists():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        seal = meta.pop("sha256")
        train, test = (
            Split(*(open_memmap(folder / f"{split}_{kind}.npy", mode="r") for kind in ("images", "labels")))
            for split in ("train", "test")
        )
        names, statistics = tuple(meta["class_names"]), Statistics(tuple(meta["mean"]), tuple(meta["std"]))
        told = {"evaluated_on": meta["evaluated_on"], "notes": tuple(meta["notes"])}
        data = ImageData(name, train, test, names, statistics, meta["fingerprint"], **told)
        intact = seal == _seal(meta) and meta["files"] == _sizes(folder)
        intact &= not verify or fingerprint(train, test, names) == data.fingerprint
        for split in (train, test):  # a flipped bit of the header can change the byte order alone
            intact &= split.images.dtype == np.uint8 and split.labels.dtype == np.int64
        fault = None if intact else "SHA-256, sizes or types differ"
    except Exception as error:  # noqa: BLE001 - damage makes JSON's and NumPy's readers raise nearly anything
        fault = first_line(error)
    if fault:
        logger.warning("the data cache %s is damaged: decoding again (%s)", folder, fault)
        return None
    return data


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each array's file, by its name."""
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.npy"))}


def _seal(meta: dict[str, Any]) -> str:
    """Return the SHA-256 of meta.json's content, in hexadecimal."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
