"""Resize: exact enlargement of uint8 images, equal to Pillow's bilinear resize to the bit, on any device."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

FRACTION_BITS = 22
"""Bits behind the point of Pillow's fixed-point weights (Resample.c: PRECISION_BITS = 32 - 8 - 2)."""


def enlarge(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return enlarged images, equal to Pillow's `Image.resize((size, size), BILINEAR)` to the bit.

    Torch's uint8 kernel on the CPU takes 32 us an image where Pillow takes 220, but has weights of 16 bits. It is used
    for factors at which it equals Pillow on all inputs, because no output lies half-way between two values: odd ones
    (7 for CIFAR-10) and powers of two, but not, for example, the factor 28 of digits.

    Args:
        images: (B, C, S, S) uint8 with S <= size.
        size: side of the result.

    Returns:
        (B, C, size, size) uint8.
    """
    source = images.shape[-1]
    is_right = images.dtype == torch.uint8 and images.shape[-2] == source <= size
    assert is_right, f"images must be (B, C, S, S) uint8, S at most {size}, not {tuple(images.shape)} {images.dtype}"
    if source == size:
        return images
    if images.device.type == "cpu" and torch_kernel_is_exact(source, size):
        channels_last = images.contiguous(memory_format=torch.channels_last)
        return F.interpolate(channels_last, size=(size, size), mode="bilinear", antialias=True)
    return enlarge_fixed_point(images, size)


def enlarge_fixed_point(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return enlarged images by Pillow's arithmetic, on any device: a horizontal, then a vertical pass, each uint8.

    Arguments and result as of `enlarge`. Source: Pillow's Resample.c, ImagingResampleHorizontal_8bpc and Vertical_8bpc.
    """
    return _enlarge_axis(_enlarge_axis(images, -1, size), -2, size)


def _enlarge_axis(images: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Return uint8 images enlarged along one axis, -1 or -2."""
    left, right, left_weight, right_weight = taps(images.shape[axis], size, images.device)
    shape = (-1,) + (1,) * (-1 - axis)  # weights vary along the axis alone
    total = images.index_select(axis, left).int().mul_(left_weight.view(shape))
    total.addcmul_(images.index_select(axis, right).int(), right_weight.view(shape))
    return total.add_(1 << (FRACTION_BITS - 1)).bitwise_right_shift_(FRACTION_BITS).to(torch.uint8)


@cache
def taps(source: int, size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return left and right source pixel of each output pixel, (size,) int64, and their weights, (size,) int32.

    Weights are in fixed point. Pillow drops taps outside the image and normalises the rest, so that a border pixel has
    all the weight. Weighted sums stay below 2**31: 255 * (2**22 + 1).
    """
    centre = (np.arange(size) + 0.5) * (source / size)
    left = np.floor(centre - 0.5).astype(np.int64)
    right_weight = centre - 0.5 - left
    left_weight = np.where(left < 0, 0.0, 1 - right_weight)
    right_weight = np.where(left + 1 >= source, 0.0, right_weight)
    total = left_weight + right_weight
    fixed = [np.floor(0.5 + weight / total * (1 << FRACTION_BITS)) for weight in (left_weight, right_weight)]
    taps = (left.clip(0), (left + 1).clip(max=source - 1), *(weights.astype(np.int32) for weights in fixed))
    return tuple(torch.from_numpy(values).to(device) for values in taps)


@cache
def torch_kernel_is_exact(source: int, size: int) -> bool:
    """Return whether torch's uint8 kernel equals Pillow's arithmetic: on all pairs of neighbours, in all phases.

    The rows of a probe image are all 65,536 pairs, so the result holds for every image. It takes 20 ms for 32 -> 224.
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
