"""Decoding: modes, and every kind of damage."""

import io
import re
import resource
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from datasets import Features, Value
from datasets import Image as ImageFeature
from image_sets import as_pillow_reads, file_content, first_half, hub_folder, pets, pngs, random_images
from PIL import Image, features

from alexnet_dist.data import decode
from alexnet_dist.errors import UserError

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
]


def test_many_images_keep_their_order(tmp_path, load):
    """More than the thousand that are read at a time."""
    images = random_images(1203, (2, 2))
    columns = pets([file_content(Image.fromarray(pixels), "BMP") for pixels in images])
    loaded = load(hub_folder(tmp_path / "many", train=columns, test=pets(pngs(1, (2, 2)))))
    np.testing.assert_array_equal(loaded.train.images, images.transpose(0, 3, 1, 2))


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


# ---- what the configuration may ask for -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (4, 6), (6, 4)])
def test_images_must_be_square_and_not_too_large(tmp_path, complaint, size):
    folder = hub_folder(tmp_path / "sizes", train=pets(pngs(2, size)), test=pets(pngs(2, size)))
    message = complaint(folder, image_size=63)
    assert f"{size[0]}x{size[1]}" in message
    assert "--data.image-size 63" in message


def test_images_of_just_the_image_size_are_allowed(tmp_path, load):
    folder = hub_folder(tmp_path / "sizes", train=pets(pngs(2, (63, 63))), test=pets(pngs(2, (63, 63))))
    assert load(folder, image_size=63).train.images.shape == (2, 3, 63, 63)
