"""Loading: the data set that a configuration names, prepared once on each node and opened by every rank.

Small squares of one size become one array (`cache.py`), all else photographs in a store (`photographs.py`).
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from alexnet_dist import atomic_files, rng
from alexnet_dist.config import DataConfig
from alexnet_dist.data import built_in, cache, photographs
from alexnet_dist.data.decode import SizesDifferError, decode_all, header
from alexnet_dist.data.image_data import ImageData, Split, assemble, divided, fingerprint, statistics
from alexnet_dist.data.photographs import Photographs, PhotoSet
from alexnet_dist.errors import UserError
from alexnet_dist.sources import ArrayImages, EncodedImages, HubUnreachableError, Listing, SourceOptions, find, hub

logger = logging.getLogger(__name__)

LISTING = "listing.json"  # what a store of photographs does not know: name of the evaluation split, notes
HELD_OUT = 0.1
"""Share of the training images that evaluate where a source has no split for that."""


def load(config: DataConfig) -> ImageData:
    """Return the data set that the configuration names, prepared before or now. Every rank must call it.

    Raises:
        UserError: the data set cannot be had, or is faulty, or does not fit the configuration.
    """
    data = load_any(config)
    if (count := len(data.train)) < config.batch_size:
        batch = f"one global batch (--data.batch-size {config.batch_size})"
        raise UserError(f"{data.name} has {count} training images, fewer than {batch}: choose a smaller batch")
    return data


def load_any(config: DataConfig, *, whole: bool = False) -> ImageData:
    """Return the data set that the configuration names, of any number of images. Arguments and errors as of `load`.

    Args:
        config: of the data.
        whole: whether a set without an evaluation split is one as a whole; else a part of it is held out.
    """
    try:
        data = _load_named(config.dataset, config)
    except HubUnreachableError as error:
        if config.fallback == "none":
            raise
        asked, used = config.dataset, config.fallback
        logger.warning("%s\nTHE FALLBACK IS USED: training on %s instead of %s.", error, used, asked)
        data = replace(_load_named(used, config), fallback_for=asked)
    if whole and not len(data.test):
        data = replace(data, test=data.train, evaluated_on="train")
    if not len(data.test) and not config.val_fraction:
        told = f"{100 * HELD_OUT:.0f} % OF ITS TRAINING IMAGES ARE HELD OUT; --data.val-fraction chooses another share"
        logger.warning("%s HAS NO EVALUATION SPLIT WITH LABELS: %s", data.name, told)
    if config.val_fraction or not len(data.test):
        data = _held_out(data, config.val_fraction)
    if config.limit:
        data = _limited(data, config.limit)
    return data


def _load_named(name: str, config: DataConfig) -> ImageData:
    """Return the data set of a name: digits, synthetic, cifar10, a path, or a Hub id."""
    if name in find.WITHOUT_FILES:
        if config.revision:
            logger.warning("--data.revision is ignored: %s does not come from the Hub", name)
        if not _wants_array(config):
            raise UserError(f"--data.dataset {name} is an array of small images: leave --data.fit and --data.store out")
        return _fitting(built_in.digits() if name == "digits" else built_in.synthetic(), config)
    options = find.options_of(config, os.environ)
    try:
        return _prepared(name, options, config)
    except OSError as error:  # without an errno where a disk fills up under numpy
        fault = f"the data cache {options.cache} cannot be used: {error}"
        raise UserError(f"{fault}. Choose another by --data.cache-dir") from None


# ---- preparing ------------------------------------------------------------------------------------------------------


def _prepared(name: str, options: SourceOptions, config: DataConfig) -> ImageData:
    """Return a data set in files from this node's cache, after preparing it if it is not there.

    One process of a node prepares at a time; the others wait, however long.
    """
    source = find.locate(name, options, os.environ)
    folder = find.folder_of(options.cache, source.key, source.name)
    options.cache.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (data := _opened(folder, source.name, config)) is not None:
            return data
        listing = replace(source.listing(), name=source.name)
        if _wants_array(config) and (data := _as_array(listing, config)):
            cache.write(folder, data)
            data = cache.read(folder, source.name, verify=False) or data
        else:
            data = _as_photographs(listing, folder, config)
        shutil.rmtree(hub.arrow_copy(options, source.key), ignore_errors=True)  # all is copied by now
        return data


def _wants_array(config: DataConfig) -> bool:
    """Return whether the configuration allows images to be kept as an array and enlarged."""
    return config.fit != "crop" and config.store in ("auto", "array")


def _wants_photographs(config: DataConfig) -> bool:
    """Return whether the configuration allows images to be kept one by one and cropped."""
    return config.fit != "enlarge" and config.store != "array"


def _opened(folder: Path, name: str, config: DataConfig) -> ImageData | None:
    """Return a data set that was prepared as the configuration wants it; None if it must be prepared first."""
    data = cache.read(folder, name, verify=config.verify) if _wants_array(config) else None
    if data and not (_wants_photographs(config) and data.train.picture(0).shape[0] > config.image_size):
        return _fitting(data, config)
    if not _wants_photographs(config):
        return None
    for store in ("pixels", "encoded") if config.store == "auto" else (config.store,):
        place = _photo_folder(folder, store, config)
        if not (place / LISTING).exists():
            continue
        found = photographs.open_store(place, verify=config.verify, threads=threads_of(config))
        if found and not (_wants_array(config) and _would_fit(found.train, config.image_size)):
            return _photo_data(found, place, name)
    return None


def _photo_folder(folder: Path, store: str, config: DataConfig) -> Path:
    """Return the folder of a store of photographs, beside that of the array."""
    return folder.with_name(f"{folder.name}-{store}{config.stored_size if store == 'pixels' else ''}")


def _would_fit(photos: Photographs, image_size: int) -> bool:
    """Return whether the images are squares of one size that is no larger than the input."""
    side = photos.heights[0]
    return bool(side <= image_size and (photos.heights == side).all() and (photos.widths == side).all())


def _as_array(listing: Listing, config: DataConfig) -> ImageData | None:
    """Return a data set as arrays; None if its images are no squares of one size that is no larger than the input.

    Raises:
        UserError: they are not, and the configuration asks for it; or an image cannot be decoded.
    """
    test = listing.test
    try:
        train_split = _array(listing.train, None, config)
        side = train_split.images.shape[-1]
        test_split = (
            _array(test, side, config) if test is not None else Split(train_split.images[:0], train_split.labels[:0])
        )
    except SizesDifferError:
        if isinstance(listing.train, EncodedImages) and _wants_photographs(config):
            return None
        raise
    data = assemble(listing.name, train_split, test_split, listing.class_names)
    return _fitting(replace(data, evaluated_on=listing.evaluated_on, notes=listing.notes), config)


def _array(images: EncodedImages | ArrayImages, side: int | None, config: DataConfig) -> Split:
    """Return a split as an array, (N, 3, S, S).

    Args:
        images: of the split.
        side: S that they must have; None for that of the first one.
        config: with the side of the input.

    Raises:
        SizesDifferError: they are no squares of one size that is no larger than the input.
    """
    if isinstance(images, ArrayImages):
        pixels = images.images if images.images.ndim == 4 else images.images[..., None].repeat(3, axis=3)
        return Split(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), images.labels)
    where = images.where(0)
    first = header(images.read(0), where)
    _check_square(first.height, first.width, where, config)
    side = side or first.height
    return Split(decode_all(images, (side, side)), images.labels)


def _check_square(height: int, width: int, where: str, config: DataConfig) -> None:
    """Check that images can be enlarged to the input.

    Raises:
        SizesDifferError: they are not square, or larger.
    """
    if height != width or height > config.image_size:
        limit = f"square and no larger than --data.image-size {config.image_size}"
        raise SizesDifferError(f"{where} has {width}x{height} pixels: to be enlarged, images must be {limit}")


def _fitting(data: ImageData, config: DataConfig) -> ImageData:
    """Return a data set in memory after a check that its images can be enlarged to the input."""
    height, width, _ = data.train.picture(0).shape
    _check_square(height, width, data.name, config)
    return data


def _as_photographs(listing: Listing, folder: Path, config: DataConfig) -> ImageData:
    """Return a data set whose images are kept one by one, after preparing them."""
    train, test = listing.train, listing.test
    if isinstance(train, ArrayImages) or isinstance(test, ArrayImages):
        raise UserError(f"{listing.name} is an array of images: leave --data.fit and --data.store out")
    splits = [images for images in (train, test) if images is not None]
    assert config.store != "array"
    store, reason = photographs.choose(
        config.store, splits, _photo_folder(folder, "pixels", config), config.stored_size
    )
    place = _photo_folder(folder, store, config)
    found = photographs.prepare(
        train, test, listing.class_names, place, store=store, stored_size=config.stored_size, threads=threads_of(config)
    )
    told = {"evaluated_on": listing.evaluated_on, "notes": [*listing.notes, reason]}
    atomic_files.write_text(place / LISTING, json.dumps(told))
    return _photo_data(found, place, listing.name)


def _photo_data(found: PhotoSet, place: Path, name: str) -> ImageData:
    """Return a prepared store as a data set."""
    told = json.loads((place / LISTING).read_text(encoding="utf-8"))
    test = found.test or found.train.take(np.arange(0))
    notes = tuple(told["notes"])
    return ImageData(
        name, found.train, test, found.class_names, found.statistics, found.fingerprint,
        evaluated_on=told["evaluated_on"], notes=notes,
    )  # fmt: skip


def threads_of(config: DataConfig) -> int:
    """Return how many threads decode photographs in this process: by default its share of the node's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.threads or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


# ---- parts of data sets ---------------------------------------------------------------------------------------------


def _held_out(data: ImageData, fraction: float) -> ImageData:
    """Return a data set whose evaluation split is a share of each class's training images instead of its own.

    Args:
        data: the data set.
        fraction: as asked for; 0 takes `HELD_OUT`, and an image at least of each class that has two.

    Raises:
        UserError: one of the splits would be empty.
    """
    of_class = np.bincount(data.train.labels)
    counts = np.rint((fraction or HELD_OUT) * of_class).astype(int)
    if not fraction:
        counts = np.maximum(counts, of_class > 1)
    train, held_out = divided(data.train, counts, "held out")  # type: ignore[type-var] # one of the two kinds
    if not len(train) or not len(held_out):
        raise UserError(
            f"--data.val-fraction {fraction or HELD_OUT} leaves no image of {data.name} on one side: choose another"
        )
    return _with_splits(data, train, held_out, f"held out {fraction}", evaluated_on="held-out")


def _limited(data: ImageData, limit: int) -> ImageData:
    """Return a data set with `limit` images of each split, drawn at random: the first may all be of one class."""
    train, test = (
        split.take(np.sort(rng.generator(0, "limit").permutation(len(split))[:limit]))
        for split in (data.train, data.test)
    )
    limited = _with_splits(data, train, test, f"limit {limit}", evaluated_on=data.evaluated_on)
    return replace(limited, statistics=data.statistics)


def _with_splits(
    data: ImageData, train: Split | Photographs, test: Split | Photographs, part: str, *, evaluated_on: str
) -> ImageData:
    """Return a data set with parts of its splits, its fingerprint and its statistics brought up to date.

    Those of photographs stay: they are over a sample already.
    """
    if isinstance(train, Split) and isinstance(test, Split):
        digest, numbers = fingerprint(train, test, data.class_names), statistics(train.images)
    else:
        digest, numbers = hashlib.sha256(f"{data.fingerprint}, {part}".encode()).hexdigest(), data.statistics
    return replace(data, train=train, test=test, fingerprint=digest, statistics=numbers, evaluated_on=evaluated_on)
