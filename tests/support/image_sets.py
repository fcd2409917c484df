"""Small data sets in Hub layout, whole and broken, and how loaded ones are compared."""

import importlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from PIL import Image

from alexnet_dist.config import DataConfig
from alexnet_dist.data import image_data
from alexnet_dist.errors import UserError
from alexnet_dist.sources import HubUnreachableError

LOADING = importlib.import_module("alexnet_dist.data.load")  # the function of this name hides the module
CAT_DOG = Features({"img": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})


def file_content(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_images(count, size=(4, 4), seed=0):
    """Return (count, height, width, 3) uint8."""
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def pngs(count, size=(4, 4), seed=0):
    return [file_content(Image.fromarray(pixels)) for pixels in random_images(count, size, seed)]


def as_files(folder, images, labels):
    """Write images, (H, W, 3) uint8, as PNG files in class folders and return their paths, in the order given."""
    paths = [folder / label / f"{k:05}.png" for k, label in enumerate(labels)]
    for path, image in zip(paths, images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(path)
    return paths


def as_pillow_reads(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def write_parquet(path, kind, columns):
    """Write rows as they are: unlike `Dataset.from_dict`, also those that break the promises of their features."""

    def stored(name, value):
        return (
            {"bytes": value, "path": None}
            if isinstance(kind[name], ImageFeature) and isinstance(value, bytes)
            else value
        )

    schema = kind.arrow_schema
    arrays = {
        name: pa.array([stored(name, value) for value in values], type=schema.field(name).type)
        for name, values in columns.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays, schema=schema), path)


def hub_folder(folder, kind=CAT_DOG, test_kind=None, **splits):
    """Write a data set in Hub layout: a parquet file for each split, given as columns."""
    for split, columns in splits.items():
        chosen = test_kind if test_kind is not None and split != "train" else kind
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", chosen, columns)
    return folder


def pets(images, labels=None):
    return {"img": images, "label": [k % 2 for k in range(len(images))] if labels is None else labels}


def undecodable(*_):
    raise AssertionError("decoded although the cache holds it")


def assert_equal_data(left, right):
    for one, other in ((left.train, right.train), (left.test, right.test)):
        for a, b in ((one.images, other.images), (one.labels, other.labels)):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    assert (left.mean, left.std, left.class_names) == (right.mean, right.std, right.class_names)
    assert left.fingerprint == right.fingerprint


def in_memory(loaded):
    """Copy, so that what happens to the cache's files later does not matter."""
    train, test = (image_data.Split(np.array(s.images), np.array(s.labels)) for s in (loaded.train, loaded.test))
    return replace(loaded, train=train, test=test)


def cache_of(loaded):
    return Path(loaded.train.images.filename).parent


def first_half(content):
    return content[: len(content) // 2]


@pytest.fixture
def good(tmp_path):
    """A small data set in Hub layout without fault: 5 training and 3 test images."""
    return hub_folder(tmp_path / "good", train=pets(pngs(5)), test=pets(pngs(3, seed=1)))


@pytest.fixture
def load(tmp_path):
    """Load with a cache of the test's own."""

    def load_from(dataset, **options):
        settings = {"cache_dir": tmp_path / "cache", "batch_size": 1} | options
        return LOADING.load(DataConfig(dataset=str(dataset), **settings))

    return load_from


@pytest.fixture
def complaint(load):
    """Load what cannot be loaded and return the message, less the folder's name, which may hold any word."""

    def load_badly(dataset, **options):
        with pytest.raises(UserError) as caught:
            load(dataset, **options)
        message = str(caught.value)
        assert "\n" not in message, "a user's error is one line"
        assert not isinstance(caught.value, HubUnreachableError)
        return message.replace(str(dataset), "FOLDER")

    return load_badly
