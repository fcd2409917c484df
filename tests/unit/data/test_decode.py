"""Decoding: Pillow's pixels whatever decodes, orientation, modes, and every kind of damage."""

import io
import re
import resource
import struct
import sys
import tracemalloc
import types
import zlib

import numpy as np
import pytest
import simplejpeg
from image_sets import as_pillow_reads, file_content, first_half, pngs, random_images
from photos import InMemory, encoded, picture
from PIL import Image, ImageOps, features

from alexnet_dist.data import crops, decode
from alexnet_dist.errors import UserError

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]
SIZES = [(64, 64), (65, 63), (1, 1), (3, 2), (17, 33), (7, 16), (16, 7), (200, 301)]


def decoded(content, where="FILE"):
    return decode.pixels(content, where, decode.header(content, where))


def refusal(content):
    with pytest.raises(UserError) as caught:
        decoded(content)
    message = str(caught.value)
    assert "\n" not in message, "a user's error is one line"
    assert message.startswith("FILE "), message
    return message


@pytest.fixture
def without_simplejpeg(monkeypatch):
    monkeypatch.setattr(decode, "simplejpeg_agrees", lambda: False)


# ---- one pixel, whatever decodes ------------------------------------------------------------------------------------


def test_simplejpeg_is_used_for_jpegs(monkeypatch):
    used = []
    decode_jpeg = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda content: used.append(1) or decode_jpeg(content))
    assert decode.simplejpeg_agrees()
    used.clear()
    for content in (encoded(), encoded(mode="L"), encoded(kind="PNG"), encoded(mode="CMYK")):
        decoded(content)
    assert len(used) == 2


@pytest.mark.parametrize("size", SIZES)
def test_simplejpeg_and_pillow_give_the_same_pixels(size):
    image = picture(*size)
    files = [simplejpeg.encode_jpeg(image, colorsubsampling=sampling) for sampling in decode.SAMPLINGS]
    options = [{"progressive": True}, {"quality": 20}, {"subsampling": 0}, {"subsampling": 1, "progressive": True}]
    for mode in ("RGB", "L"):
        files += [file_content(Image.fromarray(image).convert(mode), "JPEG", **option) for option in options]
    for content in [*files, file_content(Image.fromarray(image), "JPEG", keep_rgb=True)]:
        assert decode.header(content, "FILE").is_jpeg
        np.testing.assert_array_equal(simplejpeg.decode_jpeg(content), as_pillow_reads(content))


def test_a_simplejpeg_that_gives_other_pixels_is_not_used(monkeypatch):
    decode_jpeg = simplejpeg.decode_jpeg
    decode.simplejpeg_agrees.cache_clear()
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda content: decode_jpeg(content) ^ 1)
    try:
        np.testing.assert_array_equal(decoded(encoded()), as_pillow_reads(encoded()))
        assert not decode.simplejpeg_agrees()
    finally:
        decode.simplejpeg_agrees.cache_clear()


def test_without_simplejpeg_everything_is_as_with_it(monkeypatch):
    content = encoded(orientation=6)
    expected = decoded(content)
    monkeypatch.setattr(decode, "simplejpeg", None)
    decode.simplejpeg_agrees.cache_clear()
    try:
        assert not decode.simplejpeg_agrees()
        np.testing.assert_array_equal(decoded(content), expected)
    finally:
        decode.simplejpeg_agrees.cache_clear()


def test_what_libjpeg_warns_about_is_left_to_pillow():
    """Bytes before a marker: in some of ImageNet's files. Pillow reads them, and simplejpeg raises."""
    whole = encoded()
    scan = whole.index(b"\xff\xda")
    content = whole[:scan] + bytes(5) + whole[scan:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(content)
    np.testing.assert_array_equal(decoded(content), as_pillow_reads(whole))


def test_decoders_are_named_with_versions():
    assert re.fullmatch(r"Pillow [\d.]+, libjpeg(-turbo)? [\d.]+", decode.DECODER)


# ---- regions --------------------------------------------------------------------------------------------------------

BOXES = [[0, 0, 40, 50], [3, 5, 16, 16], [7, 0, 33, 20], [11, 34, 29, 16], [0, 9, 17, 41]]


class StandIn:
    """nvImageCodec as far as it is used; `spoil` changes what it decodes."""

    NVIMGCODEC_DEVICE_CPU_ONLY = CPU_ONLY = -1

    def __init__(self, spoil=lambda part, _: part):
        self.spoil, self.asked = spoil, []

    def Backend(self, kind):  # noqa: N802 - its name there
        return kind

    def DecodeParams(self, *, apply_exif_orientation):  # noqa: N802 - its name there
        assert not apply_exif_orientation

    def Region(self, *corners):  # noqa: N802 - its name there
        return corners

    def CodeStream(self, content):  # noqa: N802 - its name there
        try:
            image = Image.open(io.BytesIO(content))
        except OSError as error:
            raise RuntimeError(str(error)) from None
        stream = types.SimpleNamespace(image=image, height=image.height, width=image.width)
        stream.get_sub_code_stream = lambda region: types.SimpleNamespace(image=image, region=region)
        return stream

    def Decoder(self, **_options):  # noqa: N802 - its name there
        def decode_one(stream, params):
            assert params is None
            top, left, bottom, right = stream.region
            self.asked.append(stream.region)
            try:
                part = np.asarray(stream.image.convert("RGB"))[top:bottom, left:right]
            except OSError:
                return None
            return types.SimpleNamespace(cpu=lambda: self.spoil(part.copy(), stream))

        return types.SimpleNamespace(decode=decode_one)


def install(monkeypatch, library):
    package = types.ModuleType("nvidia")
    if library is not None:
        package.nvimgcodec = library
    monkeypatch.setitem(sys.modules, "nvidia", package)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", library)


@pytest.fixture
def _regions_anew():
    for cached in (decode.region_decoder_agrees, decode._Regions):
        cached.cache_clear()
    yield
    for cached in (decode.region_decoder_agrees, decode._Regions):
        cached.cache_clear()


def region(content, box):
    return decode.region(content, decode.header(content, "FILE"), box)


def cut(image, box):
    top, left, height, width = box
    return image[top : top + height, left : left + width]


@pytest.mark.usefixtures("_regions_anew")
def test_a_region_is_decoded_alone_where_a_library_can(monkeypatch):
    library = StandIn()
    install(monkeypatch, library)
    assert decode.region_decoder_agrees()
    library.asked.clear()
    content = encoded(40, 50)
    for box in BOXES:
        np.testing.assert_array_equal(region(content, box), cut(decoded(content), box))
    assert library.asked == [(top, left, top + height, left + width) for top, left, height, width in BOXES]


@pytest.mark.usefixtures("_regions_anew")
@pytest.mark.parametrize(
    "content",
    [encoded(40, 50, "PNG"), encoded(40, 50, mode="CMYK"), encoded(40, 50, orientation=6), encoded(40, 50)[:-400]],
    ids=["PNG", "CMYK", "turned", "truncated"],
)
def test_all_else_is_decoded_whole(monkeypatch, content):
    install(monkeypatch, StandIn())
    assert region(content, [3, 5, 20, 20]) is None


@pytest.mark.usefixtures("_regions_anew")
def test_narrow_regions_and_files_that_were_changed_are_decoded_whole(monkeypatch):
    install(monkeypatch, StandIn())
    assert region(encoded(40, 50), [0, 0, 40, 15]) is None
    assert decode.region(encoded(41, 50), decode.header(encoded(40, 50), "FILE"), [0, 0, 20, 20]) is None
    assert decode.region(b"garbage", decode.header(encoded(40, 50), "FILE"), [0, 0, 20, 20]) is None


def _last_column(part, stream):
    part[:, -1] ^= np.uint8(stream.region[3] == 45)
    return part


def _subsampled_both_ways(part, stream):
    return part ^ np.uint8([layer[1:3] for layer in getattr(stream.image, "layer", [])][:1] == [(2, 2)])


SPOILS = {
    "all pixels": lambda part, _: part ^ 1,
    "the last column": _last_column,
    "4:2:0": _subsampled_both_ways,
    "progressive": lambda part, stream: part ^ np.uint8("progressive" in stream.image.info),
    "grey": lambda part, stream: part ^ np.uint8(stream.image.mode == "L"),
    "shape": lambda part, _: part[1:],
}


@pytest.mark.usefixtures("_regions_anew")
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_library_that_gives_other_pixels_is_not_used(monkeypatch, spoil):
    install(monkeypatch, StandIn(SPOILS[spoil]))
    assert not decode.region_decoder_agrees()
    assert region(encoded(40, 50), [3, 5, 20, 20]) is None


@pytest.mark.usefixtures("_regions_anew")
@pytest.mark.parametrize("library", [None, types.SimpleNamespace(), simplejpeg], ids=["none", "empty", "another"])
def test_without_the_library_or_with_another_version_nothing_is_decoded_alone(monkeypatch, library):
    install(monkeypatch, library)
    assert region(encoded(40, 50), [3, 5, 20, 20]) is None


@pytest.mark.usefixtures("_regions_anew")
def test_nvimagecodec_gives_the_pixels_of_the_whole_image():
    """Seen with 0.9.0, where it is installed."""
    pytest.importorskip("nvidia.nvimgcodec")
    assert decode.region_decoder_agrees()
    options = [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"mode": "L"}, {"quality": 20}]
    for seed, option in enumerate(options):
        content = encoded(90 + seed, 61, seed=seed, **option)
        for box in crops.boxes(seed, 0, np.full(40, 90 + seed), np.full(40, 61), (0.2, 1.0)).tolist():
            np.testing.assert_array_equal(region(content, box), cut(decoded(content), box))


# ---- orientation and modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied_as_pillow_does(kind, orientation):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    content = encoded(40, 30, kind, orientation=orientation)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    head = decode.header(content, "FILE")
    assert (head.height, head.width) == expected.shape[:2]
    upright = decode.pixels(content, "FILE", head)
    assert upright.flags.c_contiguous
    assert upright.flags.writeable
    np.testing.assert_array_equal(upright, expected)
    if kind in ("JPEG", "PNG"):
        assert (expected.shape == (30, 40, 3)) == (orientation in (5, 6, 7, 8)), "the file does not test what it should"


def test_grey_jpegs_are_turned_too():
    content = encoded(40, 30, mode="L", orientation=6)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(decoded(content), np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


def test_orientation_behind_a_pngs_pixels_is_found():
    content = encoded(kind="PNG", orientation=6)
    start = content.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    assert moved.index(b"eXIf") > moved.index(b"IDAT")
    np.testing.assert_array_equal(decoded(moved), decoded(content))


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
def test_other_modes_become_rgb_as_pillow_converts_them(mode):
    content = in_mode(mode)
    with Image.open(io.BytesIO(content)) as image:
        if mode == "YCbCr" != image.mode:
            pytest.skip("this Pillow opens such a TIFF file as RGB")
        assert image.mode == mode.split()[0], "the file does not test what it should"
    np.testing.assert_array_equal(decoded(content), as_pillow_reads(content))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deeper_images_are_refused_and_not_clipped(mode):
    deep = np.arange(16).reshape(4, 4) * 4000
    image = Image.fromarray(deep.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    assert f"mode {mode}, which has no faithful" in refusal(file_content(image, "PNG" if mode == "I;16" else "TIFF"))
    with pytest.raises(UserError, match=f"an image of mode {mode} has no faithful conversion"):
        decode.picture(image)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_decoded(kind):
    frames = [Image.fromarray(picture(20, 30, seed)) for seed in range(3)]
    content = file_content(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(content), as_pillow_reads(content))


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
    "truncated PNG": (lambda: first_half(pngs(1)[0]), "truncated|damaged"),
    "truncated JPEG": (lambda: encoded()[:-20], "truncated"),
    "JPEG without its last byte": (lambda: encoded()[:-1], "truncated"),
    "progressive JPEG, truncated": (lambda: first_half(encoded(90, 90, progressive=True)), "truncated"),
    "header alone": (lambda: pngs(1)[0][:33], "no known format"),
    "garbage": (lambda: b"this is no image" * 10, "no known format"),
    "zero bytes": (lambda: b"", "empty"),
    "broken TIFF": (tiff_with_broken_offset, ""),
    "broken DDS": (dds_without_format, ""),
    "broken AVIF": (avif_without_pixels, ""),
    "huge": (lambda: png_of_size(13_000, 13_000), "13000x13000 pixels"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_images_are_named(broken):
    make, said = BROKEN[broken]
    message = refusal(make())
    assert re.search(said, message)
    assert "BytesIO" not in message


@pytest.mark.parametrize("broken", ["truncated JPEG", "JPEG without its last byte", "progressive JPEG, truncated"])
@pytest.mark.usefixtures("without_simplejpeg")
def test_broken_images_are_named_without_simplejpeg(broken):
    assert "truncated" in refusal(BROKEN[broken][0]())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_no_damage_escapes_as_another_error(kind, monkeypatch):
    """A few hundred random faults: each is the user's error or harmless, alike with and without simplejpeg."""
    rng = np.random.default_rng(0)
    whole = file_content(Image.fromarray(random_images(1, (8, 8))[0]), kind)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for position in rng.integers(0, len(content), rng.integers(1, 4)):
            content[position] = rng.integers(0, 256)
        if rng.random() < 0.3:
            del content[rng.integers(0, len(content)) :]
        outcomes = []
        for agrees in (True, False):
            monkeypatch.setattr(decode, "simplejpeg_agrees", lambda agrees=agrees: agrees)
            try:
                head = decode.header(bytes(content), "FILE")
                if head.height * head.width > 1_000_000:
                    break  # a changed size: allowed, and slow
                outcomes.append(decode.pixels(bytes(content), "FILE", head).tobytes())
            except UserError as error:
                outcomes.append(str(error))
        refused += bool(outcomes) and isinstance(outcomes[0], str)
        assert len(set(outcomes)) <= 1
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
                pixels = decoded(bytes(content))
            except UserError:
                continue
            if not np.array_equal(pixels, np.asarray(image)):
                changed.append((position, bit))
    assert changed == []


@pytest.mark.parametrize("side", [20_000, 13_000])
def test_a_huge_image_is_refused_before_it_takes_memory(side):
    """Pillow by itself refuses from 179 megapixels on; 13,000 x 13,000 has 169."""
    content = png_of_size(side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        refusal(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6, f"{peak / 1e6:.0f} MB were asked for"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; one such image is 500 MB


# ---- a whole split --------------------------------------------------------------------------------------------------


def test_many_images_keep_their_order():
    images = random_images(1203, (2, 3))
    files = InMemory([file_content(Image.fromarray(pixels), "BMP") for pixels in images])
    np.testing.assert_array_equal(decode.decode_all(files, (3, 2)), images.transpose(0, 3, 1, 2))
    assert set(files.reads.values()) == {1}


def test_the_first_faulty_image_of_a_split_is_named():
    contents = pngs(1, (2, 2)) * 1300
    contents[1103] = first_half(contents[1103])
    contents[1250] = b"later"
    with pytest.raises(UserError, match=r"^train\[1103\] of FILE.parquet is "):
        decode.decode_all(InMemory(contents), (2, 2))


def test_another_size_is_told_with_both_sizes():
    with pytest.raises(
        decode.SizesDifferError, match=r"train\[2\] of FILE.parquet is 6x5 pixels, .* 4x4: all images must have one"
    ):
        decode.decode_all(InMemory([*pngs(2), *pngs(1, (6, 5))]), (4, 4))
    with pytest.raises(decode.SizesDifferError, match=r"train\[0\].*4x4"):
        decode.decode_all(InMemory(pngs(2)), (5, 6))


def test_images_of_a_split_are_turned():
    turned = decode.decode_all(InMemory([encoded(4, 6), encoded(6, 4, orientation=6)]), (4, 6))
    assert turned.shape == (2, 3, 4, 6)


def test_images_that_are_turned_are_told_once(caplog):
    decode.decode_all(InMemory([encoded(4, 6), encoded(4, 6)]), (4, 6))
    assert not caplog.messages
    decode.decode_all(InMemory([encoded(4, 6), encoded(6, 4, orientation=6)]), (4, 6))
    (told,) = caplog.messages
    assert "1 of 2 images are turned or mirrored by their EXIF orientation" in told
