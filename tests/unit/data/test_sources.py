"""Data sets in both layouts, every kind of damage, the cache, the fallback and the bundled sets."""

import errno
import http.server
import importlib
import io
import json
import os
import re
import resource
import signal
import socket
import struct
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub.errors
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, features
from ranks import run_ranks

from alexnet_dist import atomic_files
from alexnet_dist.config import DataConfig
from alexnet_dist.data import cache as data_cache
from alexnet_dist.data import decode, image_data, sources
from alexnet_dist.errors import UserError

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
]

CAT_DOG = Features({"img": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})


# ---- helpers --------------------------------------------------------------------------------------------------------


def file_content(image, kind="PNG", **options):  # conftest's `encode` would cost the spawned ranks an import of torch
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def random_images(count, size=(4, 4), seed=0):
    """Return (count, height, width, 3) uint8."""
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def pngs(count, size=(4, 4), seed=0):
    return [file_content(Image.fromarray(pixels)) for pixels in random_images(count, size, seed)]


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


@pytest.fixture
def good(tmp_path):
    """A small data set in Hub layout without fault: 5 training and 3 test images."""
    return hub_folder(tmp_path / "good", train=pets(pngs(5)), test=pets(pngs(3, seed=1)))


@pytest.fixture
def load(tmp_path):
    """Load with a cache of the test's own."""

    def load_from(dataset, **options):
        settings = {"cache_dir": tmp_path / "cache", "batch_size": 1} | options
        return sources.load(DataConfig(dataset=str(dataset), **settings))

    return load_from


@pytest.fixture
def complaint(load):
    """Load what cannot be loaded and return the message, less the folder's name, which may hold any word."""

    def load_badly(dataset, **options):
        with pytest.raises(UserError) as caught:
            load(dataset, **options)
        message = str(caught.value)
        assert "\n" not in message, "a user's error is one line"
        assert not isinstance(caught.value, sources.HubUnreachableError)
        return message.replace(str(dataset), "FOLDER")

    return load_badly


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


# ---- layouts, columns, classes --------------------------------------------------------------------------------------


def test_hub_layout_is_read_pixel_for_pixel(tmp_path, load):
    train, test = pngs(5), pngs(3, seed=1)
    folder = hub_folder(tmp_path / "pets", train=pets(train, [0, 1, 1, 0, 1]), test=pets(test, [1, 0, 0]))
    loaded = load(folder)
    for split, encoded, labels in ((loaded.train, train, [0, 1, 1, 0, 1]), (loaded.test, test, [1, 0, 0])):
        assert split.images.shape == (len(encoded), 3, 4, 4)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == labels
        expected = np.stack([as_pillow_reads(content) for content in encoded]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.images, expected)
    assert loaded.class_names == ("cat", "dog")
    assert loaded.name == "pets"
    assert loaded.flips
    assert loaded.fallback_for is None
    assert len(loaded.train) == 5


def test_what_datasets_itself_writes_is_read(tmp_path, load):
    images = random_images(4)
    rows = {"img": [Image.fromarray(pixels) for pixels in images], "label": ["dog", "cat", "dog", "dog"]}
    (tmp_path / "own" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        dataset = datasets.Dataset.from_dict(rows, features=CAT_DOG)
        dataset.to_parquet(tmp_path / "own" / "data" / f"{split}-00000-of-00001.parquet")
    loaded = load(tmp_path / "own")
    np.testing.assert_array_equal(loaded.train.images, images.transpose(0, 3, 1, 2))
    assert loaded.test.labels.tolist() == [1, 0, 1, 1]


def test_image_folder_is_read_pixel_for_pixel(image_folder, load):
    folder = image_folder(size=6, per_class=3, classes=("owl", "bee", "cow"))
    loaded = load(folder)
    assert loaded.class_names == ("bee", "cow", "owl")
    for name, split in (("train", loaded.train), ("test", loaded.test)):
        files = sorted((folder / name).glob("*/*.png"))
        assert split.images.shape == (9, 3, 6, 6)
        expected = np.stack([as_pillow_reads(file.read_bytes()) for file in files]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.images, expected)
        assert [loaded.class_names[label] for label in split.labels] == [file.parent.name for file in files]


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("image", "species"), ("picture", "y")])
def test_columns_are_found_by_type_whatever_their_names(tmp_path, load, image, label):
    kind = Features({"id": Value("int64"), label: ClassLabel(names=["cat", "dog"]), image: ImageFeature()})
    columns = {"id": [7, 8, 9], label: [1, 0, 1], image: pngs(3)}
    loaded = load(hub_folder(tmp_path / "pets", kind, train=columns, test=columns))
    assert loaded.train.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(loaded.train.images, random_images(3).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("order", [("coarse", "fine"), ("fine", "coarse")])
def test_of_several_labels_the_finest_counts(tmp_path, load, order):
    labels = {"coarse": ClassLabel(names=["a", "b"]), "fine": ClassLabel(names=["p", "q", "r"])}
    kind = Features({"image": ImageFeature()} | {name: labels[name] for name in order})
    columns = {"image": pngs(3), "coarse": [0, 1, 1], "fine": [2, 0, 1]}
    loaded = load(hub_folder(tmp_path / "two", kind, train=columns, test=columns))
    assert loaded.train.labels.tolist() == [2, 0, 1]
    assert loaded.class_names == ("p", "q", "r")


@pytest.mark.parametrize(("name", "dtype"), [("label", "int64"), ("labels", "int8")])
def test_integers_serve_as_labels(tmp_path, load, name, dtype):
    kind = Features({"image": ImageFeature(), name: Value(dtype)})
    columns = {"image": pngs(3), name: [2, 0, 1]}
    loaded = load(hub_folder(tmp_path / "plain", kind, train=columns, test=columns))
    assert loaded.train.labels.tolist() == [2, 0, 1]
    assert loaded.train.labels.dtype == np.int64
    assert loaded.class_names == ("0", "1", "2")


@pytest.mark.parametrize("present", [("validation",), ("validation", "test")])
def test_validation_stands_in_only_where_there_is_no_test_split(tmp_path, load, present):
    sizes = {"validation": 2, "test": 3}
    splits = {name: pets(pngs(sizes[name])) for name in present}
    loaded = load(hub_folder(tmp_path / "pets", train=pets(pngs(4)), **splits))
    assert len(loaded.test) == sizes[present[-1]]


def test_loading_warns_of_nothing(good, load):
    """Not even where the user has switched off the progress bars of `datasets`, as this suite does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(good)


def test_many_images_keep_their_order(tmp_path, load):
    """More than the thousand that are read at a time."""
    images = random_images(1203, (2, 2))
    columns = pets([file_content(Image.fromarray(pixels), "BMP") for pixels in images])
    loaded = load(hub_folder(tmp_path / "many", train=columns, test=pets(pngs(1, (2, 2)))))
    np.testing.assert_array_equal(loaded.train.images, images.transpose(0, 3, 1, 2))


def test_equal_pixels_have_equal_fingerprints_wherever_they_came_from(tmp_path, image_folder, load):
    folder = image_folder(size=4, per_class=2)
    splits = {}
    for split in ("train", "test"):
        files = sorted((folder / split).glob("*/*.png"))
        splits[split] = pets([file.read_bytes() for file in files], [0, 0, 1, 1])
    assert load(hub_folder(tmp_path / "hub", **splits)).fingerprint == load(folder).fingerprint

    other_label = splits | {"test": splits["test"] | {"label": [0, 0, 1, 0]}}
    other_pixel = splits | {"train": splits["train"] | {"img": [*splits["train"]["img"][:3], *pngs(1, seed=9)]}}
    other_names = Features({"img": ImageFeature(), "label": ClassLabel(names=["cat", "wolf"])})
    variants = [
        hub_folder(tmp_path / "label", **other_label),
        hub_folder(tmp_path / "pixel", **other_pixel),
        hub_folder(tmp_path / "names", other_names, **splits),
    ]
    assert len({load(variant).fingerprint for variant in [folder, *variants]}) == 4


# ---- modes ----------------------------------------------------------------------------------------------------------


def in_mode(mode):
    """Return the content of an image file that Pillow opens in this mode."""
    image = Image.fromarray(random_images(1, (16, 16))[0])
    if mode == "P with transparency":
        return file_content(image.convert("P"), transparency=3)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(random_images(1, (16, 16), seed=5)[0, :, :, 0]))
    kind = {"CMYK": "JPEG", "YCbCr": "TIFF"}.get(mode, "PNG")
    return file_content(image.convert(mode), kind)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "P with transparency", "CMYK", "1", "LA", "YCbCr"])
def test_other_modes_become_rgb_as_pillow_converts_them(tmp_path, load, mode):
    content = in_mode(mode)
    with Image.open(io.BytesIO(content)) as image:
        assert image.mode == mode.split()[0], "the file does not test what it should"
    images = [*pngs(1, (16, 16)), content]
    loaded = load(hub_folder(tmp_path / "modes", train=pets(images), test=pets(images)))
    np.testing.assert_array_equal(loaded.train.images[1].transpose(1, 2, 0), as_pillow_reads(content))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deeper_images_are_refused_and_not_clipped(tmp_path, complaint, mode):
    deep = np.arange(16).reshape(4, 4) * 4000
    image = Image.fromarray(deep.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    content = file_content(image, "PNG" if mode == "I;16" else "TIFF")
    folder = hub_folder(tmp_path / "deep", train=pets([*pngs(1), content]), test=pets(pngs(2)))
    assert re.search(rf"train\[1\] .*{re.escape(mode)}", complaint(folder))


# ---- damage ---------------------------------------------------------------------------------------------------------


def png_of_size(width, height):
    """Return a PNG that is valid but for its pixels, which are a few zeros."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def tiff_with_broken_offset():
    """Return a TIFF whose StripOffsets (tag 273) claims to be a float instead of an integer."""
    content = file_content(Image.fromarray(random_images(1)[0]), "TIFF")
    return content.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 11))


def dds_without_format():
    """Return a DDS whose pixel format flags (offset 80) are none."""
    content = bytearray(file_content(Image.fromarray(random_images(1)[0]), "DDS"))
    content[80:84] = bytes(4)
    return bytes(content)


def avif_without_pixels():
    if not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    content = file_content(Image.fromarray(random_images(1)[0]), "AVIF")
    header = content.index(b"mdat") + 4
    return content[:header] + bytes(len(content) - header)


def first_half(content):
    return content[: len(content) // 2]


BROKEN = {
    "truncated PNG": lambda: first_half(pngs(1)[0]),
    "truncated JPEG": lambda: file_content(Image.fromarray(random_images(1)[0]), "JPEG")[:-20],
    "header alone": lambda: pngs(1)[0][:33],
    "garbage": lambda: b"this is no image" * 10,
    "zero bytes": lambda: b"",
    "no image": lambda: None,
    "neither bytes nor path": lambda: {"bytes": None, "path": None},
    "path to nowhere": lambda: {"bytes": None, "path": "/nonexistent/1.png"},
    "wrong size": lambda: pngs(1, (4, 5))[0],
    "broken TIFF": tiff_with_broken_offset,
    "broken DDS": dds_without_format,
    "broken AVIF": avif_without_pixels,
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("split", ["train", "test"])
def test_broken_images_are_named_by_split_and_index(tmp_path, complaint, broken, split):
    images = [*pngs(2), BROKEN[broken](), *pngs(1)]
    splits = {"train": pets(pngs(4)), "test": pets(pngs(4))} | {split: pets(images)}
    message = complaint(hub_folder(tmp_path / "broken", **splits))
    assert re.search(rf"FOLDER: {split}\[2\] ", message)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"], "something was cached"


def test_wrong_size_is_told_with_both_sizes(tmp_path, complaint):
    folder = hub_folder(tmp_path / "sizes", train=pets(pngs(2, (4, 4))), test=pets([*pngs(1), *pngs(1, (6, 5))]))
    message = complaint(folder)
    assert "test[1]" in message
    assert "6x5" in message
    assert "4x4" in message


def test_index_deep_in_a_split_is_named_rightly(tmp_path, complaint):
    images = pngs(1, (2, 2)) * 1300
    images[1103] = first_half(images[1103])
    images[1250] = b"later"
    message = complaint(hub_folder(tmp_path / "deep", train=pets(images), test=pets(pngs(1, (2, 2)))))
    assert re.search(r"train\[1103\] ", message)


def test_broken_file_of_an_image_folder_is_named(image_folder, complaint):
    folder = image_folder(per_class=3)
    broken = folder / "test" / "dog" / "1.png"
    broken.write_bytes(first_half(broken.read_bytes()))
    assert "test[4] " in complaint(folder)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_no_damage_escapes_as_another_error(kind):
    """A few hundred random faults: each is either harmless or the user's error."""
    rng = np.random.default_rng(0)
    whole = file_content(Image.fromarray(random_images(1, (8, 8))[0]), kind)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            content[position] = rng.integers(0, 256)
        if rng.random() < 0.3:
            del content[rng.integers(0, len(content)) :]
        try:
            pixels = decode._pixels({"bytes": bytes(content), "path": None}, (8, 8), "train[0]")
        except UserError:
            refused += 1
        else:
            assert pixels.shape == (8, 8, 3)
    assert refused > 50


def test_png_checksums_are_heeded():
    """No flipped bit of a PNG may change a pixel unnoticed; its tail is where the decoder stops looking."""
    image = Image.fromarray((np.add.outer(np.arange(32), np.arange(32)) * 4).astype(np.uint8)).convert("RGB")
    whole = file_content(image)
    changed = []
    for position in range(len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[position] ^= 1 << bit
            try:
                pixels = decode._pixels({"bytes": bytes(content), "path": None}, (32, 32), "train[0]")
            except UserError:
                continue
            if not np.array_equal(pixels, np.asarray(image)):
                changed.append((position, bit))
    assert changed == []


@pytest.mark.parametrize("side", [20_000, 13_000])
@pytest.mark.parametrize("where", ["train[0]", "test[1]"])
def test_a_huge_image_is_refused_before_it_takes_memory(tmp_path, complaint, side, where):
    """Pillow by itself refuses from 179 megapixels on; 13,000 x 13,000 has 169."""
    splits = {"train": pngs(3), "test": pngs(3)}
    split, index = where[:-3], int(where[-2])
    splits[split][index] = png_of_size(side, side)
    folder = hub_folder(tmp_path / "huge", train=pets(splits["train"]), test=pets(splits["test"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        message = complaint(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert where in message
    assert peak < 50e6, f"{peak / 1e6:.0f} MB were asked for"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; one such image is 500 MB


@pytest.mark.parametrize("label", [-1, 2, None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_outside_the_classes_are_named(tmp_path, complaint, label, split):
    splits = {"train": pets(pngs(4)), "test": pets(pngs(4))} | {split: pets(pngs(4), [0, 1, 1, label])}
    message = complaint(hub_folder(tmp_path / "labels", **splits))
    assert re.search(rf"FOLDER: {split}\[3\] .*label {label}\b", message)


@pytest.mark.parametrize(
    ("split", "labels"), [("train", [0, 2, -1]), ("train", [0, None, 2]), ("test", [0, 2, 3]), ("test", [0, 1, -2])]
)
def test_integer_labels_outside_those_of_training_are_named(tmp_path, complaint, split, labels):
    kind = Features({"image": ImageFeature(), "label": Value("int64")})
    splits = {name: {"image": pngs(3), "label": [0, 1, 2]} for name in ("train", "test")}
    splits[split]["label"] = labels
    index = next(i for i, label in enumerate(labels) if label not in (0, 1, 2))
    assert f"{split}[{index}] " in complaint(hub_folder(tmp_path / "labels", kind, **splits))


def test_an_outlier_among_integer_labels_does_not_make_millions_of_classes(tmp_path, complaint):
    """With 2**40, a file name read as a number, say, the list of class names would not fit into memory."""
    kind = Features({"image": ImageFeature(), "label": Value("int64")})
    splits = {name: {"image": pngs(3), "label": [0, 1, 1]} for name in ("train", "test")}
    splits["train"]["label"] = [0, 1, 3_000_000]
    message = complaint(hub_folder(tmp_path / "labels", kind, **splits))
    assert "label" in message
    assert "3000000" in message


@pytest.mark.parametrize("missing", ["img", "label"])
def test_column_missing_in_the_test_split_is_named(tmp_path, complaint, missing):
    test_kind = Features({name: kind for name, kind in CAT_DOG.items() if name != missing})
    columns = {name: values for name, values in pets(pngs(2)).items() if name != missing}
    folder = hub_folder(tmp_path / "partial", train=pets(pngs(4)), test=columns, test_kind=test_kind)
    message = complaint(folder)
    assert re.search(r"FOLDER: (test\[0\]|the split test) ", message)
    assert re.search({"img": "image|img", "label": "label"}[missing], message)


@pytest.mark.parametrize(
    ("columns", "present"),
    [
        ({"label": (ClassLabel(names=["cat", "dog"]), [0, 1])}, "label (ClassLabel)"),
        ({"img": (ImageFeature(), [b"", b""])}, "img (Image)"),
        ({"img": (ImageFeature(), [b"", b""]), "label": (Value("string"), ["0", "1"])}, "label (Value)"),
        ({"img": (Value("binary"), [b"", b""]), "label": (ClassLabel(names=["cat", "dog"]), [0, 1])}, "img (Value)"),
    ],
)
def test_without_image_or_label_column_the_present_ones_are_told(tmp_path, complaint, columns, present):
    kind = Features({name: feature for name, (feature, _) in columns.items()})
    values = {name: rows for name, (_, rows) in columns.items()}
    message = complaint(hub_folder(tmp_path / "columns", kind, train=values, test=values))
    assert "one Image column and a ClassLabel column" in message
    assert present in message


def test_two_image_columns_are_ambiguous(tmp_path, complaint):
    kind = Features({"left": ImageFeature(), "right": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    columns = {"left": pngs(2), "right": pngs(2), "label": [0, 1]}
    message = complaint(hub_folder(tmp_path / "stereo", kind, train=columns, test=columns))
    assert "left (Image)" in message
    assert "right (Image)" in message


@pytest.mark.parametrize("row_groups", [0, 1])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_named(tmp_path, complaint, split, row_groups):
    """With no row group, as `datasets` writes it, and with one that has no rows, as pyarrow does."""
    folder = hub_folder(tmp_path / "hollow", train=pets(pngs(2)), test=pets(pngs(2)))
    file = folder / "data" / f"{split}-00000-of-00001.parquet"
    table = CAT_DOG.arrow_schema.empty_table()
    if row_groups:
        pq.write_table(table, file)
    else:
        pq.ParquetWriter(file, table.schema).close()
    assert pq.ParquetFile(file).metadata.num_row_groups == row_groups
    message = complaint(folder)
    assert "empty" in message
    assert re.search(rf"split {split}\b|{split}-00000", message)


@pytest.mark.parametrize(("present", "missing"), [("train", "test"), ("test", "train")])
def test_a_missing_split_is_told(tmp_path, complaint, present, missing):
    message = complaint(hub_folder(tmp_path / "half", **{present: pets(pngs(2))}))
    assert re.search(rf"splits train and test, and has {present}$", message)
    assert not message.endswith(missing)


def test_image_folder_without_test_images(image_folder, complaint):
    folder = image_folder()
    for file in (folder / "test").glob("*/*.png"):
        file.unlink()
    assert complaint(folder).endswith("needs the splits train and test, and has train")


USELESS = {
    "nothing": {},
    "text": {"notes.txt": b"nothing to see"},
    "unknown files": {"model.xyz": b"\x00\x01"},
    "loading script": {"useless.py": b"import datasets"},
    "broken card": {"README.md": b"---\nlicense: [mit\nother: }\n---\n"},
    "broken JSON": {"train.json": b"{", "test.json": b"{"},
}


@pytest.mark.parametrize("content", USELESS)
def test_a_folder_with_nothing_usable(tmp_path, complaint, content):
    folder = tmp_path / "useless"
    folder.mkdir()
    for name, text in USELESS[content].items():
        (folder / name).write_bytes(text)
    assert "FOLDER" in complaint(folder)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "zero bytes"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_corrupt_parquet_file_is_named(good, complaint, damage, split):
    file = good / "data" / f"{split}-00000-of-00001.parquet"
    content = file.read_bytes()
    damaged = {"garbage": b"PAR1" + bytes(1000) + b"????", "truncated": content[:-10], "zero bytes": b""}
    file.write_bytes(damaged[damage])
    assert file.name in complaint(good)


def test_a_flipped_bit_of_a_parquet_file_is_harmless_or_the_users_error(good, load):
    file = good / "data" / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    refused = 0
    for position in range(4, len(content) - 8, len(content) // 10):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        file.write_bytes(damaged)
        try:
            assert len(load(good).train) == 5
        except UserError:
            refused += 1
    assert refused > 0
    file.write_bytes(content)
    assert len(load(good).train) == 5


def test_an_unreadable_source_is_the_users_error(good, complaint, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(atomic_files, "sha256", denied)
    assert "Permission denied" in complaint(good)


# ---- what the configuration may ask for -----------------------------------------------------------------------------


def test_fewer_images_than_a_batch(good, complaint):
    assert re.search(r"5 training images.*--data\.batch-size 6", complaint(good, batch_size=6))
    assert re.search(r"2 training images.*--data\.batch-size 3", complaint(good, batch_size=3, limit=2))


def test_a_batch_of_all_images_is_allowed(good, load):
    assert len(load(good, batch_size=5).train) == 5


@pytest.mark.parametrize("size", [(64, 64), (4, 6), (6, 4)])
def test_images_must_be_square_and_not_too_large(tmp_path, complaint, size):
    folder = hub_folder(tmp_path / "sizes", train=pets(pngs(2, size)), test=pets(pngs(2, size)))
    message = complaint(folder, image_size=63)
    assert f"{size[0]}x{size[1]}" in message
    assert "--data.image-size 63" in message


def test_images_of_just_the_image_size_are_allowed(tmp_path, load):
    folder = hub_folder(tmp_path / "sizes", train=pets(pngs(2, (63, 63))), test=pets(pngs(2, (63, 63))))
    assert load(folder, image_size=63).train.images.shape == (2, 3, 63, 63)


def test_limit_draws_from_all_classes(image_folder, load):
    folder = image_folder(size=4, per_class=20, classes=("ant", "bee", "cow"))
    whole, few, again, fewer = load(folder), load(folder, limit=12), load(folder, limit=12), load(folder, limit=5)
    assert (whole.train.labels[:12] == 0).all(), "the first images are all of one class"
    for split, source in ((few.train, whole.train), (few.test, whole.test)):
        assert len(split) == len(split.images) == 12
        assert len(set(split.labels.tolist())) > 1
        originals = {image.tobytes(): label for image, label in zip(source.images, source.labels, strict=True)}
        assert len({image.tobytes() for image in split.images}) == 12, "each image once"
        for image, label in zip(split.images, split.labels, strict=True):
            assert originals[image.tobytes()] == label
    assert_equal_data(few, again)
    assert len({whole.fingerprint, few.fingerprint, fewer.fingerprint}) == 3
    assert few.class_names == whole.class_names


def test_held_out_images_are_of_the_training_split_and_no_longer_in_it(image_folder, load):
    folder = image_folder(size=4, per_class=20, classes=("ant", "bee", "cow"))
    whole, held = load(folder), load(folder, val_fraction=0.25)
    assert (whole.evaluated_on, held.evaluated_on) == ("test", "held-out")
    assert np.bincount(held.test.labels).tolist() == [5, 5, 5], "a quarter of each class"
    assert np.bincount(held.train.labels).tolist() == [15, 15, 15]
    originals = sorted(image.tobytes() for image in whole.train.images)
    assert sorted(image.tobytes() for image in (*held.train.images, *held.test.images)) == originals
    assert held.mean == image_data.statistics(held.train.images)[0], "statistics are those of what is trained on"
    assert held.fingerprint != whole.fingerprint
    assert_equal_data(held, load(folder, val_fraction=0.25))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_split_without_images_is_refused(image_folder, complaint, fraction):
    assert "--data.val-fraction" in complaint(image_folder(size=4, per_class=20), val_fraction=fraction)


def test_held_out_digits_stay_digits(load):
    held = load("digits", val_fraction=0.1)
    assert (held.name, held.flips) == ("digits", False)


def test_limit_beyond_the_data_keeps_all(good, load):
    assert_equal_data(load(good, limit=1000), load(good))


def test_mean_and_std_are_those_of_the_training_pixels(tmp_path, load):
    rng = np.random.default_rng(3)
    images = np.clip(rng.normal([60, 128, 200], [10, 40, 70], (40, 5, 5, 3)), 0, 255).astype(np.uint8)
    contents = [file_content(Image.fromarray(pixels)) for pixels in images]
    loaded = load(hub_folder(tmp_path / "statistics", train=pets(contents), test=pets(pngs(2, (5, 5)))))
    values = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(loaded.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(loaded.std, values.std(axis=0), rtol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3, 4, 4), (7, 3, 7, 7), (3, 3, 5, 5)])
def test_a_constant_channel_has_a_deviation_of_one(shape):
    """Rounding must not leave 1e-16, by which another image's pixels would be divided."""
    wrong = [value for value in range(256) if image_data.statistics(np.full(shape, value, np.uint8))[1] != (1, 1, 1)]
    assert wrong == []
    images = np.zeros(shape, np.uint8)
    images[0, 1, 0, 0] = 1
    red, green, blue = image_data.statistics(images)[1]
    assert (red, blue) == (1, 1)
    assert 0 < green < 1 / 255


# ---- the cache ------------------------------------------------------------------------------------------------------


def test_a_second_load_maps_the_cache_and_decodes_nothing(good, load, monkeypatch):
    first = load(good)
    monkeypatch.setattr(sources, "decode", undecodable)
    monkeypatch.setattr(datasets, "load_dataset", undecodable)
    second = load(good)
    assert_equal_data(first, second)
    for split in (first.train, first.test, second.train, second.test):
        assert isinstance(split.images, np.memmap)
        assert isinstance(split.labels, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            split.images[0] = 0
    assert sorted(path.name for path in cache_of(second).iterdir()) == [
        "meta.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]


def test_the_cache_defaults_to_the_users_cache_folder(good, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    loaded = sources.load(DataConfig(dataset=str(good), batch_size=1))
    assert Path(loaded.train.images.filename).is_relative_to(tmp_path / "xdg" / "alexnet_dist")


def test_a_changed_source_is_decoded_again(image_folder, load):
    folder = image_folder(size=4)
    before = load(folder)
    changed = Image.fromarray(random_images(1, seed=8)[0])
    changed.save(folder / "train" / "dog" / "3.png")
    after = load(folder)
    assert after.fingerprint != before.fingerprint
    np.testing.assert_array_equal(after.train.images[7].transpose(1, 2, 0), np.asarray(changed))
    (folder / "train" / "dog" / "3.png").rename(folder / "train" / "cat" / "9.png")
    assert load(folder).train.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_data_sets_of_one_name_do_not_share_a_cache(tmp_path, load):
    folders = [hub_folder(tmp_path / str(k) / "pets", train=pets(pngs(2, seed=k)), test=pets(pngs(2))) for k in (1, 2)]
    for folder in folders * 2:
        expected = random_images(2, seed=int(folder.parent.name)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(load(folder).train.images, expected)


def flip(position):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[position] ^= 0x10
        file.write_bytes(content)

    return damage


def cut(length):
    def damage(file):
        file.write_bytes(file.read_bytes()[:length])

    return damage


def becomes(text):
    return lambda file: file.write_text(text)


CACHE_DAMAGE = {
    "flipped pixel": ("train_images.npy", flip(-10)),
    "flipped test pixel": ("test_images.npy", flip(-1)),
    "flipped label": ("train_labels.npy", flip(-8)),
    "flipped test label": ("test_labels.npy", flip(-8)),
    "flipped magic": ("train_images.npy", flip(0)),
    "truncated images": ("train_images.npy", cut(-5)),
    "truncated labels": ("test_labels.npy", cut(-8)),
    "truncated header": ("train_labels.npy", cut(40)),
    "empty file": ("train_images.npy", cut(0)),
    "zip": ("train_images.npy", lambda file: file.write_bytes(b"PK\x03\x04" + bytes(100))),
    "missing array": ("test_images.npy", Path.unlink),
    "missing meta": ("meta.json", Path.unlink),
    "meta is empty": ("meta.json", becomes("")),
    "meta is malformed": ("meta.json", becomes('{"name": ')),
    "meta is a list": ("meta.json", becomes("[]")),
    "meta lacks keys": ("meta.json", becomes("{}")),
    "meta has wrong types": (
        "meta.json",
        becomes(json.dumps({"class_names": 3, "mean": None, "std": 1, "fingerprint": ""})),
    ),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGE)
def test_a_damaged_cache_is_decoded_again(good, load, caplog, monkeypatch, damage):
    loaded = load(good)
    intact = in_memory(loaded)
    name, harm = CACHE_DAMAGE[damage]
    harm(cache_of(loaded) / name)
    caplog.clear()
    assert_equal_data(load(good), intact)
    assert [r.levelname for r in caplog.records if "is damaged: decoding again" in r.getMessage()] == ["WARNING"]
    caplog.clear()
    monkeypatch.setattr(sources, "decode", undecodable)
    assert_equal_data(load(good), intact)
    assert caplog.records == [], "the second load found it repaired"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy.*")
@pytest.mark.parametrize("name", ["meta.json", "train_labels.npy"])
def test_no_flipped_bit_of_the_cache_goes_unnoticed(good, load, caplog, name):
    """Byte order, mean and deviation included: what is not recognised as damaged must be unharmed."""
    caplog.set_level("CRITICAL", logger="alexnet_dist.data")  # hundreds of warnings
    loaded = load(good)
    intact, folder = in_memory(loaded), cache_of(loaded)
    content = (folder / name).read_bytes()
    bits = (0,) if name == "meta.json" else (1, 3, 4)  # 1: '<' to '>'; 3: 'i' to 'a'; 4: a bracket closes no more
    unnoticed = []
    for position in range(len(content)):
        for bit in bits:
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            (folder / name).write_bytes(damaged)
            found = data_cache._load(folder, "good")
            if found is None:
                continue
            try:
                assert_equal_data(found, intact)
            except AssertionError:
                unnoticed.append(bytes(damaged[max(0, position - 8) : position + 8]))
    assert unnoticed == []


class Killed(BaseException):
    """As KeyboardInterrupt or SystemExit: nothing may catch it."""


@pytest.mark.parametrize("saved", [0, 2])
def test_an_interrupted_writer_leaves_nothing(good, load, tmp_path, monkeypatch, saved):
    save, calls = np.save, []

    def interrupted(path, array):
        if len(calls) == saved:
            Path(path).write_bytes(b"half of it")
            raise Killed
        calls.append(path)
        save(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", interrupted)
        with pytest.raises(Killed):
            load(good)
    assert len(calls) == saved
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    loaded = load(good)
    np.testing.assert_array_equal(loaded.train.images, random_images(5).transpose(0, 3, 1, 2))
    assert not list((tmp_path / "cache").glob(".writing-*"))


def die_while_writing(dataset, cache):
    def killed(path, array):
        Path(path).write_bytes(array.tobytes()[:10])
        os.kill(os.getpid(), signal.SIGKILL)

    np.save = killed
    sources.load(DataConfig(dataset=dataset, cache_dir=Path(cache), batch_size=1))


def test_a_killed_writer_does_no_harm(good, load, tmp_path):
    """SIGKILL leaves no time to tidy up: its lock is free, and what it left is never taken for a cache."""
    with pytest.raises(AssertionError, match=r"ranks \[0\] died with \[-9\]"):
        run_ranks(die_while_writing, str(good), str(tmp_path / "cache"), world_size=1, deadline=60)
    assert list((tmp_path / "cache").glob(".writing-*")), "it was not killed where it should"
    loaded = load(good)
    np.testing.assert_array_equal(loaded.train.images, random_images(5).transpose(0, 3, 1, 2))
    assert isinstance(loaded.train.images, np.memmap)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("200 requested and 10 written"),  # what numpy raises when the disk fills up under it
    ],
)
def test_a_full_disk_is_the_users_error(good, complaint, load, monkeypatch, failure):
    def full(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        message = complaint(good)
    assert "--data.cache-dir" in message
    assert str(failure) in message
    loaded = load(good)
    assert len(loaded.train) == 5
    assert [path for path in cache_of(loaded).parent.iterdir() if path.suffix != ".lock"] == [cache_of(loaded)]


def test_a_cache_that_cannot_be_made_is_the_users_error(good, complaint, tmp_path):
    (tmp_path / "file").touch()
    for dataset in (good, "cifar10"):
        message = complaint(dataset, cache_dir=tmp_path / "file" / "cache", fallback="digits")
        assert "--data.cache-dir" in message
        assert str(tmp_path / "file") in message


def load_counted(dataset, cache, log):
    """Load as one of two processes that start together; each decoding leaves a line in the log."""
    original = sources.decode

    def counted(*arguments):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)  # the other has every chance to decode, too
        return original(*arguments)

    sources.decode = counted
    Path(f"{log}.{os.environ['RANK']}").touch()
    end = time.monotonic() + 60
    while not (Path(f"{log}.0").exists() and Path(f"{log}.1").exists()):
        assert time.monotonic() < end, "the other process did not start"
        time.sleep(0.005)
    loaded = sources.load(DataConfig(dataset=dataset, cache_dir=Path(cache), batch_size=1))
    return in_memory(loaded), type(loaded.train.images).__name__


def test_of_two_processes_one_decodes(good, tmp_path):
    log = tmp_path / "decoded"
    (first, first_type), (second, second_type) = run_ranks(
        load_counted, str(good), str(tmp_path / "cache"), str(log), world_size=2, deadline=60
    )
    assert len(log.read_text().splitlines()) == 1
    assert_equal_data(first, second)
    np.testing.assert_array_equal(first.train.images, random_images(5).transpose(0, 3, 1, 2))
    assert (first_type, second_type) == ("memmap", "memmap")


# ---- the Hub and the fallback ---------------------------------------------------------------------------------------


def test_without_network_the_ways_out_are_told(load):
    with pytest.raises(sources.HubUnreachableError) as caught:
        load("cifar10")
    message = str(caught.value)
    assert "uoft-cs/cifar10" in message
    assert "--data.fallback digits" in message
    assert "--data.dataset FOLDER" in message
    assert "\n" not in message


def test_the_fallback_is_used_and_nobody_can_miss_it(load, caplog):
    loaded = load("cifar10", fallback="digits")
    assert loaded.name == "digits"
    assert loaded.fallback_for == "cifar10"
    assert not loaded.flips
    (record,) = (record for record in caplog.records if "FALLBACK" in record.getMessage())
    assert record.levelname == "WARNING"
    assert "digits instead of cifar10" in record.getMessage()
    assert load("digits", fallback="digits").fallback_for is None


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "{tmp}/nowhere", "~/nowhere", "a/b/c", "{tmp}/file"])
def test_the_fallback_is_no_excuse_for_a_missing_folder(complaint, tmp_path, caplog, name):
    (tmp_path / "file").touch()
    dataset = name.format(tmp=tmp_path)
    assert "a folder that exists" in complaint(dataset, fallback="digits")
    assert caplog.records == []


def test_a_folder_of_the_same_name_does_not_shadow_a_named_data_set(tmp_path, load, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "synthetic"):
        hub_folder(tmp_path / name, train=pets(pngs(2)), test=pets(pngs(2)))
    with pytest.raises(sources.HubUnreachableError):
        load("cifar10")
    assert load("synthetic").train.images.shape[2:] == (32, 32)
    assert load("./cifar10").train.images.shape == (2, 3, 4, 4)


def test_a_name_that_no_path_can_have(complaint):
    assert "--data.dataset" in complaint("long" * 1000, fallback="digits")


def test_the_fallback_is_no_excuse_for_a_broken_folder(tmp_path, complaint, caplog):
    folder = hub_folder(tmp_path / "broken", train=pets([*pngs(1), b"broken"]), test=pets(pngs(1)))
    assert "train[1]" in complaint(folder, fallback="digits")
    (tmp_path / "empty").mkdir()
    assert "FOLDER" in complaint(tmp_path / "empty", fallback="digits")
    assert not [record for record in caplog.records if "FALLBACK" in record.getMessage()]


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'some/set' doesn't exist on the Hub"),
        datasets.exceptions.DataFilesNotFoundError("No (supported) data files found in some/set"),
        datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
        datasets.exceptions.NonMatchingSplitsSizesError("[{'expected': 2, 'recorded': 1}]"),
        RuntimeError("Dataset scripts are no longer supported, but found set.py"),
        ValueError("Config name is missing."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_fallback_is_no_excuse_for_what_the_hub_answers(complaint, caplog, monkeypatch, error):
    def answer(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert "--data.dataset FOLDER" in complaint("some/set", fallback="digits")
    assert not [record for record in caplog.records if "FALLBACK" in record.getMessage()]


def test_a_connection_that_breaks_counts_as_unreachable(load, monkeypatch):
    """The Hub's client retries and then lets the errors of its HTTP library through; httpx's are no OSErrors."""
    library = importlib.import_module(huggingface_hub.errors.HTTPError.__module__.partition(".")[0])

    def broken(*_, **__):
        raise library.ReadTimeout("The read operation timed out")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(sources.HubUnreachableError, match="timed out"):
        load("some/set")


def test_a_hub_data_set_is_cached_by_revision(load, monkeypatch):
    asked = []

    def read(name, revision):
        asked.append((name, revision))
        images = random_images(2, seed=len(asked)).transpose(0, 3, 1, 2)
        split = image_data.Split(images, np.array([0, 1]))
        return split, split, ("cat", "dog")

    monkeypatch.setattr(sources, "_read_hub", read)
    first, pinned, again = load("cifar10"), load("cifar10", revision="abc"), load("cifar10")
    assert asked == [("uoft-cs/cifar10", None), ("uoft-cs/cifar10", "abc")]
    assert_equal_data(first, again)
    assert pinned.fingerprint != first.fingerprint
    assert isinstance(again.train.images, np.memmap)


def test_a_revision_that_is_ignored_is_told(good, load, caplog):
    load(good, revision="abc")
    (record,) = caplog.records
    assert "--data.revision is ignored" in record.getMessage()


class _Teapot(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(418)

    def log_message(self, *_):
        pass


@pytest.fixture
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_proxy")
def test_any_answer_of_a_server_is_an_answer():
    with http.server.HTTPServer(("127.0.0.1", 0), _Teapot) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            assert sources.answers(url)
        finally:
            server.shutdown()
            thread.join()
    assert not sources.answers(url), "nobody listens any more"


def test_the_hub_has_an_address_unless_it_is_to_be_left_alone():
    assert sources.hub({}) == "https://huggingface.co"
    assert sources.hub({"HF_ENDPOINT": "http://mirror"}) == "http://mirror"
    for yes in ("1", "true", "YES", "on"):
        assert sources.hub({"HF_ENDPOINT": "http://mirror", "HF_HUB_OFFLINE": yes}) is None
    assert sources.hub({"HF_HUB_OFFLINE": "0"}) is not None


@pytest.mark.parametrize(("reachable", "offline"), [(True, None), (False, "1")])
def test_a_hub_that_does_not_answer_is_not_asked_for_images(monkeypatch, reachable, offline):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sources, "answers", lambda _: reachable)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(sources.HubUnreachableError):
        sources.load(DataConfig(dataset="cifar10"))
    assert os.environ.get("HF_HUB_OFFLINE") == offline


@pytest.mark.usefixtures("no_proxy")
def test_a_captive_portal_that_speaks_no_http_is_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"login first\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            assert not sources.answers(f"http://127.0.0.1:{server.getsockname()[1]}")
        finally:
            thread.join()


# ---- bundled sets ---------------------------------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learns_once_each(load):
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    loaded = load("digits")
    assert len(loaded.train) + len(loaded.test) == 1797
    assert loaded.train.images.shape[1:] == (3, 8, 8)
    assert loaded.train.images.dtype == np.uint8
    assert loaded.train.labels.dtype == np.int64
    expected = sorted(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    found = []
    for split in (loaded.train, loaded.test):
        assert (split.images == split.images[:, :1]).all(), "grey: the channels are equal"
        found += [(i[0].tobytes(), int(k)) for i, k in zip(split.images, split.labels, strict=True)]
    assert sorted(found) == expected, "each scan once, in one of the splits"
    assert loaded.train.images.max() == 255
    assert loaded.class_names == tuple("0123456789")


def test_digits_are_split_by_class_and_always_alike(load):
    pytest.importorskip("sklearn")
    loaded = load("digits")
    for digit in range(10):
        in_test, in_train = (loaded.test.labels == digit).sum(), (loaded.train.labels == digit).sum()
        assert in_test == (in_test + in_train) // 5
    assert not loaded.flips, "a mirrored 2 is no 2"
    assert_equal_data(load("digits"), loaded)


def test_digits_without_scikit_learn(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'alexnet_dist\[demo\]'"):
        load("digits")


def test_synthetic_images_are_balanced_deterministic_and_learnable(load):
    loaded = load("synthetic")
    assert loaded.train.images.shape == (4000, 3, 32, 32)
    assert loaded.test.images.shape == (1000, 3, 32, 32)
    assert loaded.train.images.dtype == np.uint8
    assert np.bincount(loaded.train.labels).tolist() == [400] * 10
    assert np.bincount(loaded.test.labels).tolist() == [100] * 10
    assert_equal_data(load("synthetic"), loaded)
    assert not {i.tobytes() for i in loaded.train.images} & {i.tobytes() for i in loaded.test.images}

    def accuracy(labels):
        """Of the nearest class mean, learned from these labels."""
        flat = loaded.train.images.reshape(4000, -1).astype(np.float32)
        means = np.stack([flat[labels == k].mean(axis=0) for k in range(10)])
        scores = loaded.test.images.reshape(1000, -1).astype(np.float32) @ means.T - (means**2).sum(axis=1) / 2
        return (scores.argmax(axis=1) == loaded.test.labels).mean()

    assert accuracy(loaded.train.labels) > 0.5
    assert accuracy(np.random.default_rng(0).permutation(loaded.train.labels)) < 0.3


@pytest.mark.skipif("ALEXNET_DIST_TEST_CIFAR10" not in os.environ, reason="names no folder with the real CIFAR-10")
def test_real_cifar10(load, monkeypatch):
    folder = os.environ["ALEXNET_DIST_TEST_CIFAR10"]
    loaded = load(folder)
    for split, count in ((loaded.train, 50_000), (loaded.test, 10_000)):
        assert split.images.shape == (count, 3, 32, 32)
        assert np.bincount(split.labels).tolist() == [count // 10] * 10
    assert len(loaded.class_names) == 10
    # as widely published for the original; of copies compressed as JPEG, too
    np.testing.assert_allclose(loaded.mean, (0.4914, 0.4822, 0.4465), atol=3e-3)
    np.testing.assert_allclose(loaded.std, (0.2470, 0.2435, 0.2616), atol=3e-3)
    rows = pq.read_table(next(Path(folder).rglob("train-*.parquet"))).column("img")
    for index in range(0, 50_000, 997):
        pixels = as_pillow_reads(rows[index]["bytes"].as_py())
        np.testing.assert_array_equal(loaded.train.images[index].transpose(1, 2, 0), pixels)
    monkeypatch.setattr(sources, "decode", undecodable)
    assert load(folder).fingerprint == loaded.fingerprint
