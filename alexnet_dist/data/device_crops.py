"""Crops that are resized on the device: threads copy no more than their pixels, and the GPU resizes a batch at once.

The pixels are those of torch's uint8 kernel for CPUs, which `crops.py` calls, to the bit. That kernel weighs pixels by
16-bit integers. Here each is the sum of two of 8 bits, so that float32, and TF32, holds products and sums of them
exactly, in whatever order a device adds them: up to 500 pixels that one is made of, a reduction to 1/250.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist.data import crops
from alexnet_dist.data.crops import Boxes
from alexnet_dist.data.image_data import Images

IMAGES_AT_ONCE = 64  # some 10 MB each, in 8-byte indices and float32


_Side = tuple[int, int, int, npt.NDArray[np.int32], npt.NDArray[np.int16]]
"""How a row of pixels becomes one of S: the first of them that is weighed, how many are; to which power of 2 the
weights of a new pixel add up; (S,) where its K pixels begin, counted from the first; (K, S) their weights."""


class Views(NamedTuple):
    """What of each picture of a batch is copied, and how that becomes an image of S x S pixels."""

    boxes: Boxes
    """(B, 4) top, left, height, width of what is copied."""
    first: npt.NDArray[np.int32]
    """(B, 2, S): where the pixels begin of which each row, and each column, is made."""
    weights: npt.NDArray[np.int16]
    """(B, 2, K, S) of those K pixels."""
    shifts: npt.NDArray[np.int64]
    """(B, 2): weights add up to 2 to this power."""

    def places(self) -> npt.NDArray[np.int64]:
        """Return (B + 1,): where each copy begins in the bytes of all, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(3 * self.boxes[:, 2] * self.boxes[:, 3], dtype=np.int64)])

    def parts(self, pixels: npt.NDArray[np.uint8]) -> list[Images]:
        """Return the memory of each copy, (height, width, 3), in that of all."""
        cut = np.split(pixels[: self.places()[-1]], self.places()[1:-1])
        return [part.reshape(*side, 3) for part, side in zip(cut, self.boxes[:, 2:].tolist(), strict=True)]


def views(boxes: Boxes | None, heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32], size: int) -> Views:
    """Return how pictures become images, as by `crops.resized_crop` or `crops.evaluation_view`.

    Args:
        boxes: (B, 4) random crops; None for the evaluation view.
        heights: (B,) of the pictures.
        widths: (B,) of the pictures.
        size: S, side of the images in pixels.
    """
    whole = np.column_stack([0 * heights, 0 * widths, heights, widths]) if boxes is None else boxes
    sides: list[_Side] = []
    for _, _, height, width in whole.tolist():
        outputs = crops.evaluation_size(height, width, size) if boxes is None else (size, size)
        sides += _side(height, outputs[0], size), _side(width, outputs[1], size)
    weights = np.zeros((len(sides), max(len(side[4]) for side in sides), size), np.int16)
    for row, side in zip(weights, sides, strict=True):
        row[: len(side[4])] = side[4]
    first = np.concatenate([side[3] for side in sides]).reshape(-1, 2, size)
    begins, lengths, shifts = np.array([side[:3] for side in sides]).T.reshape(3, -1, 2)
    copied = np.hstack([whole[:, :2] + begins, lengths]).astype(np.int32)
    return Views(copied, first, weights.reshape(-1, 2, *weights.shape[1:]), shifts)


@lru_cache(1 << 12)
def _side(inputs: int, outputs: int, size: int) -> _Side:
    """Return how a row of so many pixels becomes the central `size` of `outputs`.

    Source: `_compute_indices_min_size_weights_aa` and `_compute_index_ranges_int16_weights` of torch's
    aten/src/ATen/native/cpu/UpSampleKernel.cpp, in double precision as there.
    """
    reach = max(scale := inputs / outputs, 1.0)
    center = scale * (np.arange(outputs) + 0.5)
    first = np.maximum((center - reach + 0.5).astype(np.int32), 0)
    taken = first + np.arange(2 * math.ceil(reach) + 1, dtype=np.int32)[:, None]
    weights = np.maximum(1 - np.abs((taken - center + 0.5) * (1 / reach)), 0) * (taken < inputs)
    weights /= weights.cumsum(axis=0)[-1]  # which adds one by one
    shift = next(power for power in range(23) if power == 22 or int(0.5 + weights.max() * 2 ** (power + 1)) >= 1 << 15)
    central = slice(start := round((outputs - size) / 2), start + size)
    whole, begin = np.floor(0.5 + weights * 2**shift).astype(np.int16)[:, central], int(first[start])
    length = min(inputs, int(taken[-1, central][-1]) + 1) - begin
    return begin, length, shift, first[central] - np.int32(begin), np.ascontiguousarray(whole)


def resized(pixels: torch.Tensor, views: Views) -> torch.Tensor:
    """Return a batch's images.

    Args:
        pixels: uint8, the copies one behind the other, on the device.
        views: of the batch.

    Returns:
        (B, 3, S, S) uint8, channels_last, on that device.
    """
    count, size, device = len(views.boxes), views.first.shape[2], pixels.device
    images = torch.empty((count, size, size, 3), dtype=torch.uint8, device=device)
    for start in range(0, count, IMAGES_AT_ONCE):
        part = slice(start, start + IMAGES_AT_ONCE)
        height, width = views.boxes[part, 2:].max(axis=0).tolist()
        tables = views.places()[:-1][part], views.boxes[part, 3], *(table[part] for table in views[1:])
        places, widths, first, weights, shifts = (_moved(table, device) for table in tables)
        row, column = torch.arange(height, device=device), torch.arange(width, device=device)[:, None]
        pixel = row * widths[:, None, None] + column  # (b, width, height), beyond an image's border of weight 0
        index = places[:, None, None, None] + 3 * pixel[..., None] + torch.arange(3, device=device)
        wide = pixels[index.clamp_(max=len(pixels) - 1)].flatten(2)
        narrow = _weighed(wide, first[:, 1], weights[:, 1], shifts[:, 1])
        high = narrow.view(-1, size, height, 3).transpose(1, 2).flatten(2)  # (b, height, 3 S)
        images[part] = _weighed(high, first[:, 0], weights[:, 0], shifts[:, 0]).view(-1, size, size, 3)
    return images.permute(0, 3, 1, 2)


def _weighed(pixels: torch.Tensor, first: torch.Tensor, weights: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Return (b, S, M) uint8: the weighed sums, rounded, of (b, N, M) uint8 along N."""
    (count, taps, size), length = weights.shape, pixels.shape[1]
    taken = first.long()[:, None] + torch.arange(taps, device=pixels.device)[:, None]
    table = weights.new_zeros((count, length + taps, size)).scatter_(1, taken, weights)[:, :length].mT
    settings = torch.backends.cuda.matmul
    before, settings.fp32_precision = settings.fp32_precision, "tf32"  # eight times as fast, and exact here
    sums = torch.bmm(torch.cat([table >> 7, table & 127], dim=1).float(), pixels.float()).int()
    settings.fp32_precision = before
    (high, low), shift = sums.chunk(2, dim=1), shifts[:, None, None]
    return ((high << 7) + low + (1 << (shift - 1)) >> shift).clamp_(max=255).to(torch.uint8)


def _moved(table: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Return a table on the device, which is not waited for."""
    tensor = torch.from_numpy(table)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
