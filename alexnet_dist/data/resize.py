"""Exact enlargement: Pillow's bilinear resize of uint8 images, to the bit, on any device."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

FRACTION_BITS = 22
"""Bits behind the point of Pillow's fixed-point weights (Resample.c: PRECISION_BITS = 32 - 8 - 2)."""


def enlarge(images: torch.Tensor, size: int) -> torch.Tensor:
    """Enlarge as Pillow's `Image.resize((size, size), BILINEAR)` does, to the bit.

    Torch's uint8 kernel on the CPU takes 32 us an image where Pillow takes 220, but keeps its weights in 16 bits: it
    is used where it is equal to Pillow on all inputs, which is when no output lies half-way between two values (7 for
    CIFAR-10, any odd factor, powers of two) and not, for example, at digits' factor of 28.

    Args:
        images: (B, C, S, S) uint8 with S <= size.
        size: side of the result.

    Returns:
        (B, C, size, size) uint8.
    """
    source = images.shape[-1]
    if source == size:
        return images
    if images.device.type == "cpu" and torch_kernel_is_exact(source, size):
        channels_last = images.contiguous(memory_format=torch.channels_last)
        return F.interpolate(channels_last, size=(size, size), mode="bilinear", antialias=True)
    return enlarge_fixed_point(images, size)


def enlarge_fixed_point(images: torch.Tensor, size: int) -> torch.Tensor:
    """Compute Pillow's own arithmetic, on any device: a horizontal pass, rounded to uint8, then a vertical one.

    Args and result as `enlarge`. Source: Pillow's Resample.c, ImagingResampleHorizontal_8bpc and Vertical_8bpc.
    """
    return _enlarge_axis(_enlarge_axis(images, -1, size), -2, size)


def _enlarge_axis(images: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    left, right, left_weight, right_weight = _taps(images.shape[axis], size, images.device)
    shape = (-1,) + (1,) * (-1 - axis)  # weights vary along the axis alone
    total = images.index_select(axis, left).int().mul_(left_weight.view(shape))
    total.addcmul_(images.index_select(axis, right).int(), right_weight.view(shape))
    return total.add_(1 << (FRACTION_BITS - 1)).bitwise_right_shift_(FRACTION_BITS).to(torch.uint8)


@cache
def _taps(
    source: int, size: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return, for each output pixel, its two source pixels and their weights in fixed point.

    Pillow drops taps outside the image and normalises the rest, so that a border pixel has all the weight. Their sum
    stays below 2**31: 255 * (2**22 + 1).
    """
    centre = (np.arange(size) + 0.5) * (source / size)
    left = np.floor(centre - 0.5).astype(np.int64)
    right_weight = centre - 0.5 - left
    left_weight = np.where(left < 0, 0.0, 1 - right_weight)
    right_weight = np.where(left + 1 >= source, 0.0, right_weight)
    total = left_weight + right_weight
    fixed = [np.floor(0.5 + weight / total * (1 << FRACTION_BITS)) for weight in (left_weight, right_weight)]
    taps = (left.clip(0), (left + 1).clip(max=source - 1), fixed[0].astype(np.int32), fixed[1].astype(np.int32))
    first, second, third, fourth = (torch.from_numpy(values).to(device) for values in taps)
    return first, second, third, fourth


@cache
def torch_kernel_is_exact(source: int, size: int) -> bool:
    """Compare torch's uint8 kernel with Pillow's arithmetic on every pair of neighbours at every phase of one axis.

    Rows of a probe image walk through all 65,536 pairs, so the answer holds for every image: 20 ms for 32 -> 224.
    """
    if size % source:
        return False
    pairs = torch.cartesian_prod(*[torch.arange(256, dtype=torch.uint8)] * 2)  # (65536, 2): phases of one interval
    expected = _enlarge_axis(pairs, -1, 2 * size // source)
    probe = pairs.expand(1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    shape = (len(pairs), 2 * size // source)
    horizontal = F.interpolate(probe, size=shape, mode="bilinear", antialias=True)[0, 0]
    vertical = F.interpolate(probe.transpose(2, 3), size=shape[::-1], mode="bilinear", antialias=True)[0, 0]
    return torch.equal(horizontal, expected) and torch.equal(vertical.T, expected)
