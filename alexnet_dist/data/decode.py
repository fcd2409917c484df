"""Decoding: encoded images of any format as 8-bit RGB pixels, upright by their EXIF orientation; errors name the file.

JPEGs are decoded by simplejpeg, which needs half of Pillow's time, where it gives the pixels that Pillow gives. Pillow
decodes all else, and whatever simplejpeg objects to: a pixel never depends on whether simplejpeg is installed. Nor does
it on nvImageCodec, which decodes no more of a JPEG than a crop's region, where it is installed and its pixels agree.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from alexnet_dist.data.image_data import Images
from alexnet_dist.errors import UserError, first_line
from alexnet_dist.sources.listing import EncodedImages

try:
    import simplejpeg
except ImportError:  # no wheel for this machine
    simplejpeg = None

Picture = str | Path | Image.Image | Images
"""A file, or an image of Pillow's, or (H, W, 3) uint8, RGB."""

logger = logging.getLogger(__name__)

CONVERTIBLE_MODES = {"RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr"}  # at most 8 bits a channel: more is clipped
PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""What a PNG with an orientation contains. To look for it behind the pixels, Pillow decodes them."""
SAMPLINGS = ("444", "422", "420", "440", "411")
"""Colour resolutions of a JPEG, each of which has upsampling code of its own."""


def _decoder() -> str:
    """Return the names and versions of the libraries that decide what pixels a file has."""
    turbo = features.version_feature("libjpeg_turbo")
    return f"Pillow {PIL.__version__}, " + (f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}")


DECODER = _decoder()
"""Decoders with their versions, equal on machines that decode equally. simplejpeg and nvImageCodec are left out: they
change no pixel."""


class Header(NamedTuple):
    """What an image's header says."""

    height: int
    """In pixels, after the orientation is applied."""
    width: int
    """In pixels, after the orientation is applied."""
    orientation: int
    """EXIF orientation, 1 to 8, 1 for upright."""
    is_jpeg: bool
    """Whether simplejpeg may decode it: a JPEG with three channels or a grey one."""


class SizesDifferError(UserError):
    """Error of images that are to become one array and have several sizes."""


def header(content: bytes, where: str) -> Header:
    """Return an encoded image's size, orientation and kind, without decoding its pixels.

    Args:
        content: the file's bytes.
        where: place of the image in error messages.

    Raises:
        UserError: not an image, more than 8 bits a channel, or more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _open(content, where) as image:
        if image.mode not in CONVERTIBLE_MODES:
            raise UserError(f"{where} has mode {image.mode}, which has no faithful conversion to 8-bit RGB")
        if image.width * image.height > (Image.MAX_IMAGE_PIXELS or image.width * image.height):
            size = f"{image.width}x{image.height} pixels"
            raise UserError(f"{where} is {size}: more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,} pixels in all")
        try:
            orientation = _orientation(image, content)
        except Exception as error:  # noqa: BLE001 - damage makes Pillow's readers raise nearly anything
            raise UserError(f"{where} is damaged: {first_line(error)}") from None
        height, width = (image.height, image.width) if orientation < 5 else (image.width, image.height)
        return Header(height, width, orientation, image.format == "JPEG" and image.mode in ("RGB", "L"))


def pixels(content: bytes, where: str, head: Header) -> Images:
    """Return an encoded image's pixels, (H, W, 3) uint8, RGB, upright.

    Args:
        content: the file's bytes; of an animation, the first frame is decoded.
        where: place of the image in error messages.
        head: what `header` returned for these bytes.

    Raises:
        UserError: the image is damaged or truncated.
    """
    if head.is_jpeg and simplejpeg_agrees():
        with contextlib.suppress(ValueError):  # a warning of libjpeg's: Pillow decides if the file is damaged
            return upright(simplejpeg.decode_jpeg(content), head.orientation)
    return upright(_by_pillow(content, where), head.orientation)


def picture(source: Picture) -> Images:
    """Return the pixels of a file, of an image of Pillow's, or of an array, (H, W, 3) uint8, RGB, upright.

    Raises:
        UserError: a file cannot be read, or is no image.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise UserError(f"an array of pixels must be (H, W, 3) uint8, not {source.shape} {source.dtype}")
        return source
    if isinstance(source, Image.Image):
        if source.mode not in CONVERTIBLE_MODES:
            raise UserError(f"an image of mode {source.mode} has no faithful conversion to 8-bit RGB: convert it first")
        return np.array(ImageOps.exif_transpose(source).convert("RGB"))
    try:
        content = Path(source).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return pixels(content, str(source), header(content, str(source)))


def region(content: bytes, head: Header, box: list[int]) -> Images | None:
    """Return a box of what `pixels` returns, (height, width, 3), decoded alone; None where that has to decode all.

    That is the case for a file that is to be turned, for damage, and for sides below 16: at a width of 1, nvImageCodec
    0.9 upsamples colours in another way. Damage outside the box may go unnoticed.

    Args:
        content: the file's bytes.
        head: what `header` returned for these bytes.
        box: top, left, height, width.
    """
    usable = head.is_jpeg and head.orientation == 1 and min(box[2:]) >= 16 and region_decoder_agrees()
    return _region(content, head, box) if usable else None


def upright(picture: Images, orientation: int) -> Images:
    """Return a picture, (H, W, 3), turned and mirrored by its EXIF orientation, C-contiguous.

    Orientations 2 to 4 mirror columns, both axes or rows; 5 to 8 do the same to the transposed picture (EXIF 2.32,
    4.6.4, tag 274), where 6 is a quarter turn clockwise and 8 one counterclockwise.
    """
    if orientation >= 5:
        picture = picture.transpose(1, 0, 2)
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(picture[rows, columns])


def decode_all(images: EncodedImages, size: tuple[int, int]) -> Images:
    """Return a split's images, decoded in threads, (N, 3, H, W) uint8.

    Args:
        images: at least one.
        size: (height, width) that all of them must have.

    Raises:
        SizesDifferError: an image has another size.
        UserError: an image cannot be read or decoded. Both messages name its file.
    """
    decoded = np.empty((len(images), 3, *size), np.uint8)

    def decode(index: int) -> bool:
        content, where = images.read(index), images.where(index)
        head = header(content, where)
        if (head.height, head.width) != size:
            sizes = f"{head.width}x{head.height} pixels, the first training image is {size[1]}x{size[0]}"
            raise SizesDifferError(f"{where} is {sizes}: all images must have one size")
        decoded[index] = pixels(content, where, head).transpose(2, 0, 1)
        return head.orientation > 1

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # decoders work outside the GIL
        turned = sum(pool.map(decode, range(len(images))))  # raises the error of the first faulty image
    tell_of_turned(turned, len(images), images.where(0))
    return decoded


def tell_of_turned(turned: int, count: int, where: str) -> None:
    """Say how many images of a split their EXIF orientation turned or mirrored: version 0.1 left them as stored."""
    if turned:
        told = "%s: %s of %s images are turned or mirrored by their EXIF orientation, which version 0.1 left as stored"
        logger.warning(told, where, f"{turned:,}", f"{count:,}")


@cache
def simplejpeg_agrees() -> bool:
    """Return whether simplejpeg is installed and decodes as Pillow does: both bring a libjpeg-turbo of their own."""
    if simplejpeg is None:
        return False
    return all(np.array_equal(simplejpeg.decode_jpeg(probe), _by_pillow(probe, "probe")) for probe in _probes())


@cache
def region_decoder_agrees() -> bool:
    """Return whether nvImageCodec is installed and gives regions the pixels that the whole image has there."""
    head = Header(37, 45, 1, is_jpeg=True)
    boxes = [box for k in range(30) for box in ([k % 21, k, 37 - k % 21, 45 - k], [k % 21, k, 16, 16])]
    try:
        wholes = [(probe, _by_pillow(probe, "probe")) for probe in _probes()]
        return all(
            np.array_equal(np.asarray(_region(probe, head, box)), whole[box[0] :, box[1] :][: box[2], : box[3]])
            for probe, whole in wholes
            for box in boxes
        )
    except (ImportError, AttributeError, TypeError):  # or another version; or simplejpeg, for the probes, is not
        return False


def _probes() -> list[bytes]:
    """Return JPEGs of 45x37 pixels: odd sides, so that blocks are cut at the border."""
    row, column = np.mgrid[:37, :45]
    picture = np.stack([row * 7 % 256, column * 5 % 256, (row * column) % 256], axis=2).astype(np.uint8)
    probes: list[bytes] = [simplejpeg.encode_jpeg(picture, colorsubsampling=sampling) for sampling in SAMPLINGS]
    Image.fromarray(picture).save(progressive := io.BytesIO(), "JPEG", progressive=True)
    grey = simplejpeg.encode_jpeg(picture[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray")
    return [*probes, progressive.getvalue(), grey]


@cache
class _Regions(threading.local):
    """nvImageCodec on the CPU, with a decoder for each thread: its own threads would compete with the loader's."""

    def __init__(self) -> None:
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # it misses CUDA's libraries, which are not needed
        from nvidia import nvimgcodec as codec

        self.codec, self.params = codec, codec.DecodeParams(apply_exif_orientation=False)
        options = {"backends": [codec.Backend(codec.CPU_ONLY)], "options": ":fancy_upsampling=1"}
        self.decoder = codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, **options)


def _region(content: bytes, head: Header, box: list[int]) -> Images | None:
    """Return what `region` does; None if the file is damaged, or another one than when its header was read."""
    (top, left, height, width), regions = box, _Regions()
    with contextlib.suppress(RuntimeError, ValueError, AttributeError):  # the last of None, for what it cannot decode
        stream = regions.codec.CodeStream(content)
        if (stream.height, stream.width) == (head.height, head.width):
            part = stream.get_sub_code_stream(region=regions.codec.Region(top, left, top + height, left + width))
            return np.asarray(regions.decoder.decode(part, params=regions.params).cpu())
    return None


def _open(content: bytes, where: str) -> Image.Image:
    """Return an encoded image with its header read: the size is known before pixels take memory."""
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:  # its message names a buffer in memory
        fault = "no known format" if content else "it is empty"
    except Exception as error:  # noqa: BLE001 - damage makes Pillow's readers raise nearly anything
        fault = first_line(error)
    raise UserError(f"{where} is not an image that can be read: {fault}")


def _orientation(image: Image.Image, content: bytes) -> int:
    """Return an opened image's EXIF orientation, 1 to 8; 1 if it has none or an invalid one."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFFs itself
    if image.format == "PNG" and not any(name in content for name in PNG_ORIENTATION):
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _by_pillow(content: bytes, where: str) -> Images:
    """Return the pixels that Pillow decodes, (H, W, 3) uint8, RGB, not turned but for TIFF."""
    with _open(content, where) as image:
        try:
            if image.format == "PNG":  # decoding ends at the last pixel, before the checksums that follow it
                with _open(content, where) as copy:
                    copy.verify()
            return np.array(image.convert("RGB"))  # a copy that is writable, as torch wants it
        except Exception as error:  # noqa: BLE001 - as above
            raise UserError(f"{where} is damaged: {first_line(error)}") from None
