"""Crops: random boxes of a whole epoch, and pictures resized as torchvision's transforms v2 do on uint8, to the bit.

torch's antialiased kernel is called directly: torchvision's own code around it costs 35 microseconds an image.
"""

import math
import platform

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist import rng
from alexnet_dist.data.image_data import Images

Boxes = npt.NDArray[np.int32]

BOXES_AT_ONCE = 1 << 16  # images whose boxes one generator draws: 12 MB of random numbers
ATTEMPTS = 10
RATIOS = (3 / 4, 4 / 3)  # width / height of a random crop; attempts and ratios are torchvision's
UINT8_KERNEL = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in (
    "aarch64",
    "arm64",
)
"""Whether torchvision resizes uint8 as such on this CPU: elsewhere it computes in float32 and rounds."""
ANTIALIASED = torch.ops.aten._upsample_bilinear2d_aa.out  # noqa: SLF001 - as `interpolate` does, without its checks
SHORT_SIDE = 256 / 224
"""Short side of an evaluation image over its crop (Krizhevsky et al. 2012)."""


def boxes(
    seed: int, epoch: int, heights: npt.NDArray[np.integer], widths: npt.NDArray[np.integer], scale: tuple[float, float]
) -> Boxes:
    """Return an epoch's random crop of each image, a function of (seed, epoch, image id) and the image's size alone.

    Source: torchvision's `RandomResizedCrop` (Szegedy et al., arXiv:1409.4842): ten attempts at a box of a uniform
    share of the area and a log-uniform ratio of its sides; if none fits, the largest central box of an allowed ratio.

    Args:
        seed: of all random numbers.
        epoch: counted from 0.
        heights: (N,) in pixels; position k belongs to image id k.
        widths: (N,) in pixels.
        scale: least and largest share of the image's area.

    Returns:
        (N, 4) int32: top, left, height, width.
    """
    table = np.empty((len(heights), 4), np.int32)
    for chunk, start in enumerate(range(0, len(heights), BOXES_AT_ONCE)):
        rows = slice(start, start + BOXES_AT_ONCE)
        drawn = rng.generator(seed, "boxes", epoch, chunk)
        table[rows] = _boxes(drawn, np.asarray(heights[rows], float), np.asarray(widths[rows], float), scale)
    return table


def _boxes(
    drawn: np.random.Generator,
    heights: npt.NDArray[np.float64],
    widths: npt.NDArray[np.float64],
    scale: tuple[float, float],
) -> npt.NDArray[np.float64]:
    """Return the boxes of a chunk of images, (K, 4): top, left, height, width.

    All numbers of an image are drawn in its own row, so that another image's size changes none of them.
    """
    numbers = drawn.random((len(heights), 2 * ATTEMPTS + 2))
    area = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * numbers[:, :ATTEMPTS])
    low, high = (math.log(ratio) for ratio in RATIOS)
    ratio = np.exp(low + (high - low) * numbers[:, ATTEMPTS : 2 * ATTEMPTS])
    tried_widths, tried_heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits: npt.NDArray[np.bool_] = np.minimum(tried_widths, tried_heights) > 0
    fits &= (tried_widths <= widths[:, None]) & (tried_heights <= heights[:, None])
    first = fits.argmax(axis=1)[:, None]
    found = np.take_along_axis(fits, first, 1)  # (K, 1)
    central_height = np.where(widths < heights * RATIOS[0], np.rint(widths / RATIOS[0]), heights)
    central_width = np.where(widths > heights * RATIOS[1], np.rint(heights * RATIOS[1]), widths)
    height = np.where(found[:, 0], np.take_along_axis(tried_heights, first, 1)[:, 0], central_height)
    width = np.where(found[:, 0], np.take_along_axis(tried_widths, first, 1)[:, 0], central_width)
    free = np.stack([heights - height, widths - width], axis=1)
    offset = np.floor(np.where(found, numbers[:, -2:] * (free + 1), free / 2))
    return np.column_stack([offset, height, width])


def resized_crop(crop: Images, size: int, into: Images | None = None) -> torch.Tensor:
    """Return a box of a picture, resized to a square as torchvision's v2 `resized_crop(..., antialias=True)` does.

    Args:
        crop: (height, width, 3) uint8, the pixels of the box.
        size: S, the side of the result in pixels.
        into: (S, S, 3) uint8, memory of the result; None for new memory, which takes a fifth longer.

    Returns:
        (3, S, S) uint8.
    """
    return _resized(crop, size, size, into)


def evaluation_view(picture: Images, size: int) -> torch.Tensor:
    """Return a picture's central square after its short side is resized to 256/224 of that, as torchvision's v2 do.

    Args:
        picture: (H, W, 3) uint8.
        size: S, the side of the result in pixels; the short side becomes `round(size * 256 / 224)`.

    Returns:
        (3, S, S) uint8, which may be a view of the picture.
    """
    height, width = picture.shape[:2]
    resized = _resized(picture, *evaluation_size(height, width, size))
    top, left = (round((side - size) / 2) for side in resized.shape[1:])
    return resized[:, top : top + size, left : left + size]


def central_square(picture: Images, size: int) -> torch.Tensor:
    """Return a picture's largest central square, resized: what a network of small images is shown of a photograph.

    Args:
        picture: (H, W, 3) uint8.
        size: S, the side of the result in pixels.

    Returns:
        (3, S, S) uint8; the picture itself, as a view, if it has this size.
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(picture[top : top + side, left : left + side], size, size)


def evaluation_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return the height and width to which `evaluation_view` resizes a picture of this height and width."""
    return _with_short_side(height, width, round(size * SHORT_SIDE))


def shrunk(picture: Images, short_side: int) -> Images:
    """Return a picture with its short side resized to this many pixels, as v2 `resize` does; itself if it has no more.

    Args:
        picture: (H, W, 3) uint8.
        short_side: in pixels.

    Returns:
        (H, W, 3) uint8, C-contiguous if the picture is.
    """
    if min(picture.shape[:2]) <= short_side:
        return picture
    resized = _resized(picture, *shrunk_size(picture.shape, short_side))
    return np.ascontiguousarray(resized.permute(1, 2, 0).numpy())


def shrunk_size(shape: tuple[int, ...], short_side: int) -> tuple[int, int]:
    """Return the height and width that `shrunk` gives a picture of this (H, W, ...)."""
    height, width = shape[:2]
    return (height, width) if min(height, width) <= short_side else _with_short_side(height, width, short_side)


def _with_short_side(height: int, width: int, short: int) -> tuple[int, int]:
    """Return the height and width of a picture whose short side is resized to `short`: the long side is cut off."""
    long = int(short * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def _resized(picture: Images, height: int, width: int, into: Images | None = None) -> torch.Tensor:
    """Return a picture, (H, W, 3), resized by bilinear interpolation with antialiasing: (3, height, width), uint8.

    The pixels are first made contiguous, in NumPy, and the result is channels_last: for a part of a picture, torch
    would do it by several threads, which get in the way of the loader's, and for a batch of one it must see from the
    stride of the batch what the layout is (pytorch/pytorch#68430). Read-only pixels are copied, as torch warns of them.
    """
    found = f"{picture.shape} {picture.dtype}"
    assert found.endswith(", 3) uint8"), f"a picture must be (H, W, 3) uint8, not {found}"
    image = _as_batch(np.require(picture, requirements=["C", "W"]))
    result = _as_batch(np.empty((height, width, 3), np.uint8) if into is None else into)
    if (height, width) == image.shape[2:]:
        result.copy_(image)
    elif UINT8_KERNEL:
        ANTIALIASED(image, (height, width), False, None, None, out=result)  # noqa: FBT003 - corners are not aligned
    else:
        resized = torch.nn.functional.interpolate(image.float(), (height, width), mode="bilinear", antialias=True)
        result.copy_(resized.round_())
    return result[0]


def _as_batch(pixels: Images) -> torch.Tensor:
    """Return pixels, (H, W, 3), as a batch of one image: (1, 3, H, W), channels_last, in the same memory."""
    return torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
