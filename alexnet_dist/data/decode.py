"""Decoding: the encoded images and labels of a data set, as uint8 and int64 arrays; errors name split and index."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from alexnet_dist.config import LARGEST_IMAGE
from alexnet_dist.data.image_data import Images, Labels, Split
from alexnet_dist.errors import UserError, first_line

if TYPE_CHECKING:
    import datasets

CONVERTIBLE_MODES = {"RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr"}  # at most 8 bits a channel: more is clipped
EVALUATION_SPLITS = ("test", "validation", "valid", "val")


def decode(splits: datasets.DatasetDict, source: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Return the training split, the evaluation split and the class names of a data set.

    Args:
        splits: at least `train` and one of `EVALUATION_SPLITS`, whose first one is taken.
        source: name of the data set in error messages.

    Raises:
        UserError: a split, a column, an image or a label is missing or wrong.
    """
    test_name = next((name for name in EVALUATION_SPLITS if name in splits), None)
    if "train" not in splits or test_name is None:
        raise UserError(f"{source}: needs the splits train and test, and has {', '.join(splits) or 'none'}")
    image_column, label_column = _columns(splits["train"], source)
    names = _class_names(splits["train"], label_column, f"{source}: train")
    decoded: dict[str, Split] = {}
    size: tuple[int, int] | None = None
    for name in ("train", test_name):
        split = splits[name]
        if len(split) == 0:
            raise UserError(f"{source}: the split {name} is empty")
        missing = {image_column, label_column} - set(split.column_names)
        if missing:
            raise UserError(f"{source}: the split {name} has no column {' or '.join(sorted(missing))}")
        labels = _checked_labels(split[label_column], len(names), f"{source}: {name}")
        images = _decode_images(split, image_column, size, f"{source}: {name}")
        size = (images.shape[3], images.shape[2])
        decoded[name] = Split(images, labels)
    return decoded["train"], decoded[test_name], names


def _columns(split: datasets.Dataset, source: str) -> tuple[str, str]:
    """Return the names of the image and the label column, by their types; the label with the most classes."""
    import datasets

    features = split.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = {name: kind.num_classes for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    integers = (name for name in ("label", "labels") if getattr(features.get(name), "dtype", "").startswith("int"))
    label = max(classes, key=lambda name: classes[name]) if classes else next(integers, None)
    if len(images) != 1 or label is None:
        described = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        raise UserError(f"{source}: needs one Image column and a ClassLabel column, and has {described or 'none'}")
    return images[0], label


def _class_names(split: datasets.Dataset, label_column: str, where: str) -> tuple[str, ...]:
    """Return the names of a ClassLabel column, or "0", "1", ... up to the largest label of an integer column."""
    if names := getattr(split.features[label_column], "names", None):
        return tuple(names)
    labels = [-1 if label is None else label for label in split[label_column]]
    largest = max(labels, default=0)
    if largest >= max(len(labels), 1):
        found = f"{where}[{labels.index(largest)}] has label {largest} in a split of {len(labels)} images"
        raise UserError(f"{found}: integer labels must count the classes from 0")
    return tuple(str(k) for k in range(max(largest, 0) + 1))


def _checked_labels(labels: Sequence[int | None], num_classes: int, where: str) -> Labels:
    """Return labels as (N,) int64, after a check that all are in [0, num_classes)."""
    for index, label in enumerate(labels):
        if label is None or not 0 <= label < num_classes:
            raise UserError(f"{where}[{index}] has label {label}; labels must be from 0 to {num_classes - 1}")
    return np.array(labels, dtype=np.int64)


def _decode_images(split: datasets.Dataset, column: str, size: tuple[int, int] | None, where: str) -> Images:
    """Return (N, 3, H, W) uint8; all images must have this (width, height), or for None that of the first one."""
    import datasets

    encoded = split.cast_column(column, datasets.Image(decode=False))
    size = size or _open(encoded[0][column], f"{where}[0]").size
    if max(size) > LARGEST_IMAGE:
        raise UserError(f"{where}[0] is {size[0]}x{size[1]} pixels: at most {LARGEST_IMAGE} a side are of use")
    images = np.empty((len(split), 3, size[1], size[0]), np.uint8)

    def decode(item: tuple[int, dict[str, Any] | None]) -> None:
        index, record = item
        images[index] = _pixels(record, size, f"{where}[{index}]").transpose(2, 0, 1)

    records = (record for batch in encoded.iter(batch_size=1000) for record in batch[column])
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the GIL
        list(pool.map(decode, enumerate(records)))  # raises the error of the first faulty image
    return images


def _open(record: dict[str, Any] | None, where: str) -> Image.Image:
    """Return an encoded image with its header read: the size is known before pixels take memory."""
    if record is None or (record["bytes"] is None and not record["path"]):
        raise UserError(f"{where} has no image")
    try:
        content = record["bytes"] if record["bytes"] is not None else Path(record["path"]).read_bytes()
        return Image.open(io.BytesIO(content))
    except Exception as error:  # noqa: BLE001 - damage makes Pillow's readers raise nearly anything
        raise UserError(f"{where} is not an image that can be read: {first_line(error)}") from None


def _pixels(record: dict[str, Any] | None, size: tuple[int, int], where: str) -> Images:
    """Return an image's pixels, (H, W, 3) uint8, converted to RGB as Pillow does."""
    with _open(record, where) as image:
        if image.size != size:
            sizes = f"{image.width}x{image.height} pixels, the first training image is {size[0]}x{size[1]}"
            raise UserError(f"{where} is {sizes}: all images must have one size")
        if image.mode not in CONVERTIBLE_MODES:
            raise UserError(f"{where} has mode {image.mode}, which has no faithful conversion to 8-bit RGB")
        try:
            if image.format == "PNG":  # decoding ends at the last pixel, before the checksums that follow it
                with _open(record, where) as copy:
                    copy.verify()
            return np.asarray(image.convert("RGB"))
        except Exception as error:  # noqa: BLE001 - as above
            raise UserError(f"{where} is damaged: {first_line(error)}") from None
