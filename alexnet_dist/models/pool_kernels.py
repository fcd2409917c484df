"""Kernels of `pool_relu.py` for CUDA, written in Triton: a maximum of 3 x 3 values at stride 2, and ReLU, at once.

Bytes of AlexNet's three pools at batch 512 in bf16: forward 386 MB are read, 90 MB of maxima and 45 MB of one-byte
places are written, and backward as many the other way: 1.04 GB. Torch's pool and ReLU, with places of eight bytes and
passes of their own for ReLU and for zeros, move at least 2.1 GB. Both are counted, not timed: not measured on a GPU.
Tests run the kernels by Triton's interpreter, on a CPU.
"""

import torch
import triton
import triton.language as tl

from alexnet_dist.models.pool_relu import NOWHERE, pooled_side

PIXELS, CHANNELS = 16, 64  # a program's tile; AlexNet's maps have 64, 192 and 256 channels
_NOWHERE = tl.constexpr(NOWHERE)


def forward(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maxima, not below 0, and their places, as `pool_relu.pool_relu` does."""
    batch, channels, height, width = maps.shape
    values = maps.permute(0, 2, 3, 1).contiguous()
    pooled = values.new_empty((batch, pooled_side(height), pooled_side(width), channels))
    places = torch.empty_like(pooled, dtype=torch.uint8)
    _forward[_grid(pooled)](values, pooled, places, pooled.numel() // channels, height, width, *pooled.shape[1:])
    return pooled.permute(0, 3, 1, 2), places.permute(0, 3, 1, 2)


def backward(gradient: torch.Tensor, places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the gradient of the maps, as `pool_relu.pool_relu_backward` does."""
    of_pooled, places = (tensor.permute(0, 2, 3, 1).contiguous() for tensor in (gradient, places))
    batch, *pooled_shape = of_pooled.shape
    of_maps = of_pooled.new_empty((batch, height, width, pooled_shape[-1]))
    pixels = batch * height * width
    _backward[_grid(of_maps)](of_pooled, places, of_maps, pixels, height, width, *pooled_shape)
    return of_maps.permute(0, 3, 1, 2)


def _grid(tensor: torch.Tensor) -> tuple[int, int]:
    """Return how many programs write a (B, H, W, C) tensor: blocks of pixels, and of channels."""
    channels = tensor.shape[-1]
    return triton.cdiv(tensor.numel() // channels, PIXELS), triton.cdiv(channels, CHANNELS)


@triton.jit
def _tile(pixels, height, width, channels, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return image, row and column of this program's pixels, its channels, where they lie, and which of them exist."""
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    image, row, column = pixel // (height * width), pixel // width % height, pixel % width
    return image, row, column, channel, pixel * channels + channel, (pixel < pixels) & (channel < channels)


@triton.jit
def _forward(
    values, pooled, places, pixels, height, width, pooled_height, pooled_width, channels,
    PIXELS: tl.constexpr = PIXELS, CHANNELS: tl.constexpr = CHANNELS,
):  # fmt: skip
    """Write a tile of maxima and of their places, 3 * row + column of the window, the first of equal ones."""
    image, row, column, channel, written, exists = _tile(
        pixels, pooled_height, pooled_width, channels, PIXELS, CHANNELS
    )
    first = ((image * height + 2 * row) * width + 2 * column) * channels + channel
    kind = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    largest = tl.load(values + first, mask=exists, other=0.0).to(kind)
    place = tl.full((PIXELS, CHANNELS), 0, tl.int32)
    for index in tl.static_range(1, 9):
        other = first + (index // 3 * width + index % 3) * channels
        value = tl.load(values + other, mask=exists, other=0.0).to(kind)
        is_larger = (value > largest) | (value != value)  # the last NaN wins, as in torch
        largest, place = tl.where(is_larger, value, largest), tl.where(is_larger, index, place)
    is_off = largest <= 0
    tl.store(pooled + written, tl.where(is_off, 0.0, largest).to(pooled.dtype.element_ty), mask=exists)
    tl.store(places + written, tl.where(is_off, _NOWHERE, place).to(tl.uint8), mask=exists)


@triton.jit
def _backward(
    of_pooled, places, of_maps, pixels, height, width, pooled_height, pooled_width, channels,
    PIXELS: tl.constexpr = PIXELS, CHANNELS: tl.constexpr = CHANNELS,
):  # fmt: skip
    """Write a tile of the maps' gradient: the sum over the up to four windows whose maximum a value is."""
    image, row, column, channel, written, exists = _tile(pixels, height, width, channels, PIXELS, CHANNELS)
    total = tl.full((PIXELS, CHANNELS), 0, tl.float64 if of_maps.dtype.element_ty == tl.float64 else tl.float32)
    for index in tl.static_range(4):
        window_row, window_column = row // 2 - 1 + index // 2, column // 2 - 1 + index % 2
        place_row, place_column = row - 2 * window_row, column - 2 * window_column  # 0 to 3
        reads = exists & (place_row < 3) & (window_row >= 0) & (window_row < pooled_height)
        reads = reads & (place_column < 3) & (window_column >= 0) & (window_column < pooled_width)
        read = ((image * pooled_height + window_row) * pooled_width + window_column) * channels + channel
        is_mine = tl.load(places + read, mask=reads, other=_NOWHERE).to(tl.int64) == 3 * place_row + place_column
        gradient = tl.load(of_pooled + read, mask=reads & is_mine, other=0.0)
        total += gradient.to(total.dtype)
    tl.store(of_maps + written, total.to(of_maps.dtype.element_ty), mask=exists)
