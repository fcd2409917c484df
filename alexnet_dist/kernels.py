"""Pictures of the convolution kernels: before training, now, and what changed.

As the lecture shows them: conv1's 64 kernels of 11x11 in colour, and the 64 channels of one of conv2's kernels, 5x5, in
grey, each as an 8x8 grid. Pure functions from weights to uint8 pictures; knows nothing about processes or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import nn

    Picture = npt.NDArray[np.uint8]

Weights = dict[str, torch.Tensor]

GRID = 8
PIXEL = {"conv1": 6, "conv2": 13}  # screen pixels per weight: both pictures come to about 540 pixels
SEPARATOR = 2
PAPER = 255
ZERO = 128  # grey of no difference


@dataclass(frozen=True)
class KernelPictures:
    """One layer's pictures and the numbers that belong to them."""

    before: Picture
    """(H, W, 3) uint8, on one scale with `now`."""
    now: Picture
    diff: Picture
    """Zero is mid-grey; the largest change of all is black or white."""
    lowest: float
    """The weight shown as 0 in before and now, and"""
    highest: float
    """the one shown as 255."""
    largest_change: float
    """The absolute difference shown at the ends of the scale."""
    relative_change: float
    """||now - before|| / ||before|| over the whole layer."""

    @property
    def captions(self) -> dict[str, str]:
        """Name each picture's scale."""
        weights = f"weights {self.lowest:+.3f} (dark) to {self.highest:+.3f} (bright)"
        return {
            "before": f"before training, {weights}",
            "now": f"now, {weights}, relative change {self.relative_change:.4f}",
            "diff": f"now - before, grey is 0, ends of the scale at +-{self.largest_change:.4f}",
        }


def snapshot(model: nn.Module) -> Weights:
    """Copy conv1's (64, 3, 11, 11) and conv2's (192, 64, 5, 5) weights to the CPU, float32."""
    return {
        name: model.get_parameter(key).detach().float().cpu().clone()
        for name, key in (("conv1", "features.0.weight"), ("conv2", "features.3.weight"))
    }


def draw(before: Weights, now: Weights, *, conv2_kernel: int) -> dict[str, KernelPictures]:
    """Draw conv1's and conv2's pictures.

    Args:
        before: `snapshot` of the untrained model.
        now: `snapshot` of the model.
        conv2_kernel: which of conv2's kernels to show, from 0 to 191.
    """
    shown_kernel = {
        "conv1": lambda weight: weight,
        "conv2": lambda weight: weight[conv2_kernel, :, None].expand(-1, 3, -1, -1),
    }
    return {
        name: _draw_layer(before[name], now[name], tiles=tiles, pixel=PIXEL[name])
        for name, tiles in shown_kernel.items()
    }


def named(layers: dict[str, KernelPictures]) -> dict[str, Picture]:
    """Return `{"conv1_before": ..., "conv1_now": ..., "conv1_diff": ..., "conv2_before": ...}`."""
    return {
        f"{layer}_{which}": getattr(pictures, which)
        for layer, pictures in layers.items()
        for which in ("before", "now", "diff")
    }


def captions(layers: dict[str, KernelPictures]) -> dict[str, str]:
    """Return the captions of the pictures, by the names that `named` gives them."""
    return {f"{layer}_{which}": text for layer, pictures in layers.items() for which, text in pictures.captions.items()}


def _draw_layer(
    before: torch.Tensor, now: torch.Tensor, *, tiles: Callable[[torch.Tensor], torch.Tensor], pixel: int
) -> KernelPictures:
    shown_before, shown_now = tiles(before), tiles(now)
    lowest = float(torch.minimum(shown_before.min(), shown_now.min()))
    highest = float(torch.maximum(shown_before.max(), shown_now.max()))
    change = shown_now - shown_before
    largest = float(change.abs().max())

    def shade(weight: torch.Tensor) -> Picture:
        return _grid((weight - lowest) / ((highest - lowest) or 1.0) * 255, pixel)

    return KernelPictures(
        before=shade(shown_before),
        now=shade(shown_now),
        diff=_grid(ZERO + change / (largest or 1.0) * (255 - ZERO), pixel),
        lowest=lowest,
        highest=highest,
        largest_change=largest,
        relative_change=relative_change(before, now),
    )


def relative_change(before: torch.Tensor, now: torch.Tensor) -> float:
    """Return ||now - before|| / ||before||."""
    return float((now - before).norm() / before.norm())


def _grid(tiles: torch.Tensor, pixel: int) -> Picture:
    """Set (64, 3, S, S) values in [0, 255] as 8 rows of 8 with white lines between, each weight a square of pixels."""
    values = tiles.round().clamp(0, 255).to(torch.uint8)
    values = values.repeat_interleave(pixel, dim=2).repeat_interleave(pixel, dim=3)
    values = torch.nn.functional.pad(values, (0, SEPARATOR, 0, SEPARATOR), value=PAPER)
    _, channels, height, width = values.shape
    grid = values.view(GRID, GRID, channels, height, width).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(GRID * height, GRID * width, channels)
    return np.pad(grid.numpy(), ((SEPARATOR, 0), (SEPARATOR, 0), (0, 0)), constant_values=PAPER)
