"""Pictures of the convolution kernels: before training, now, and what changed, and the numbers that go with them.

As the lecture shows them: conv1's 64 kernels of 11x11 in colour, and the 64 channels of one of conv2's kernels, 5x5, in
grey, each as an 8x8 grid. Beside them all 192 of conv2's kernels, each as the mean of its channels. Pure functions from
weights to uint8 pictures; knows nothing about processes or files.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from alexnet_dist.architecture import SHOWN_LAYERS

Picture = npt.NDArray[np.uint8]

Weights = dict[str, torch.Tensor]

WHICH = {"before": "before training", "now": "now", "diff": "difference"}
PIXEL = {"conv1": 6, "conv2": 13, "conv2_overview": 6}  # screen pixels per weight: about 540 in all
COLUMNS = {"conv1": 8, "conv2": 8, "conv2_overview": 16}
SEPARATOR = 2  # pixels of the lines between tiles
PAPER, INK = 255, 40  # grey values of lines and background, and of text
ZERO = 128  # grey value of no difference
HEADING = 30  # pixels above each picture of the summary
DEAD = 0.01  # of the layer's median norm: a kernel below it adds nothing to the next layer


@dataclass(frozen=True)
class KernelPictures:
    """One layer's kernels as pictures, with the numbers that their captions give."""

    before: Picture
    """(H, W, 3) uint8, on one scale with `now`."""
    now: Picture
    """(H, W, 3) uint8, on one scale with `before`."""
    diff: Picture
    """(H, W, 3) uint8; zero is mid-grey, and the largest change of all is black or white."""
    lowest: float
    """The weight drawn as 0, black, in `before` and `now`."""
    highest: float
    """The weight drawn as 255, white, in `before` and `now`."""
    largest_change: float
    """The absolute change drawn as black or white in `diff`."""
    relative_change: float
    """||now - before|| / ||before|| over the whole layer."""


def snapshot(model: nn.Module) -> Weights:
    """Return a copy of conv1's (64, 3, 11, 11) and conv2's (192, 64, 5, 5) weights on the CPU, float32."""
    return {
        name: model.get_parameter(key).detach().float().cpu().clone(memory_format=torch.contiguous_format)
        for name, key in SHOWN_LAYERS.items()  # one layout: sums differ between layouts in their last bits
    }


def draw(before: Weights, now: Weights, *, conv2_kernel: int) -> dict[str, KernelPictures]:
    """Return the pictures of `conv1`, one kernel of `conv2`, and `conv2_overview`.

    Args:
        before: `snapshot` of the untrained model.
        now: `snapshot` of the model.
        conv2_kernel: which of conv2's kernels to show, from 0 to 191.
    """

    def tiles(weights: Weights) -> Weights:
        return {
            "conv1": weights["conv1"],
            "conv2": weights["conv2"][conv2_kernel][:, None],
            "conv2_overview": weights["conv2"].mean(dim=1, keepdim=True),
        }

    changes = {layer: relative_change(before[layer], now[layer]) for layer in SHOWN_LAYERS}
    old, new = tiles(before), tiles(now)
    return {name: _draw_tiles(name, old[name], new[name], changes[name.partition("_")[0]]) for name in new}


def named(layers: dict[str, KernelPictures]) -> dict[str, Picture]:
    """Return `{"conv1_before": ..., "conv1_now": ..., "conv1_diff": ..., "conv2_before": ..., ..., "summary": ...}`."""
    pictures = {f"{layer}_{which}": getattr(drawn, which) for layer, drawn in layers.items() for which in WHICH}
    return pictures | {"summary": _summary(layers)}


def captions(layers: dict[str, KernelPictures], *, when: str) -> dict[str, str]:
    """Return the captions of the pictures, by the names that `named` gives them: when, and what the shades mean.

    Args:
        layers: the pictures.
        when: such as `epoch 12, step 4680`.
    """
    texts: dict[str, str] = {}
    for layer, drawn in layers.items():
        weights = f"weights {drawn.lowest:+.3f} (dark) to {drawn.highest:+.3f} (bright)"
        now = f"{when}, relative change {drawn.relative_change:.4f}"
        texts[f"{layer}_before"] = f"before training, {weights}"
        texts[f"{layer}_now"] = f"{now}, {weights}"
        texts[f"{layer}_diff"] = f"{now}, grey is 0, ends of the scale at +-{drawn.largest_change:.4f}"
    changes = ", ".join(f"{layer} {layers[layer].relative_change:.4f}" for layer in SHOWN_LAYERS)
    return texts | {"summary": f"{when}, relative change: {changes}"}


def numbers(before: Weights, now: Weights) -> dict[str, float]:
    """Return the numbers of the kernels, such as `conv1_rel_change`.

    For each layer `rel_change` and `cosine` to the start over all of its weights, and over its kernels the number of
    `dead` ones, the `signal` and the smallest, the median and the largest norm.
    """
    found: dict[str, float] = {}
    for layer in SHOWN_LAYERS:
        start, weights, sizes = before[layer].double(), now[layer].double(), norms(now)[layer]
        found |= {
            f"{layer}_rel_change": relative_change(start, weights),
            f"{layer}_cosine": float(torch.cosine_similarity(start.flatten(), weights.flatten(), dim=0)),
            f"{layer}_dead": num_dead(start, weights),
            f"{layer}_signal": signal(start, weights),
            f"{layer}_norm_min": float(sizes.min()),
            f"{layer}_norm_median": float(sizes.median()),
            f"{layer}_norm_max": float(sizes.max()),
        }
    return found


def norms(weights: Weights) -> Weights:
    """Return the Euclidean norm of each kernel, by layer: (64,) and (192,)."""
    return {layer: weights[layer].flatten(1).norm(dim=1) for layer in SHOWN_LAYERS}


def moved(before: Weights, now: Weights) -> bool:
    """Return whether training has changed any weight of the layers shown."""
    return any(not torch.equal(start, now[layer]) for layer, start in before.items())


def num_dead(before: torch.Tensor, now: torch.Tensor) -> int:
    """Return the number of kernels whose norm is next to zero, or that no gradient has ever changed."""
    sizes = now.flatten(1).norm(dim=1)
    unmoved = (now == before).flatten(1).all(dim=1) & bool((now != before).any())
    return int(((sizes <= DEAD * sizes.median()) | unmoved).sum())


def signal(before: torch.Tensor, now: torch.Tensor) -> float:
    """Return the share of kernels, in [0, 1], whose learned part is larger than their draw: |now - before| > |before|.

    |.| is the Euclidean norm over a kernel. In a picture of `now`, the draw covers the learned part of the others.
    Weight decay alone comes to |before| at most and so never counts. The definition is this package's own, for each
    kernel what tells lazy training for a network: weights that move by less than they began with (arXiv:1812.07956).
    """
    learned, draw = (part.flatten(1).norm(dim=1) for part in (now - before, before))
    return float((learned > draw).double().mean())


def _summary(layers: dict[str, KernelPictures]) -> Picture:
    """Return conv1's and conv2's pictures side by side under headings, for tables that show one picture of a run."""
    rows = [[getattr(layers[layer], which) for which in WHICH] for layer in SHOWN_LAYERS]
    width = max(picture.shape[1] for row in rows for picture in row) + HEADING
    heights = [row[0].shape[0] + HEADING for row in rows]
    sheet = Image.new("RGB", (len(WHICH) * width, sum(heights)), (PAPER,) * 3)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(HEADING * 0.6)
    for row, layer in enumerate(SHOWN_LAYERS):
        for column, (which, title) in enumerate(WHICH.items()):
            change = f": relative change {layers[layer].relative_change:.4f}" if which == "diff" else ""
            left, top = column * width + HEADING // 2, sum(heights[:row])
            pen.text((left, top + HEADING // 5), f"{layer}, {title}{change}", fill=(INK,) * 3, font=font)
            sheet.paste(Image.fromarray(rows[row][column]), (left, top + HEADING))
    return np.array(sheet)


def _draw_tiles(name: str, before: torch.Tensor, now: torch.Tensor, change: float) -> KernelPictures:
    """Return the pictures of tiles: before and now on one scale, the difference around mid-grey.

    Args:
        name: of the picture, such as `conv2_overview`.
        before: (N, 3, S, S) in colour, or (N, 1, S, S) in grey.
        now: of the same shape.
        change: the layer's relative change.
    """
    lowest, highest = min(float(before.min()), float(now.min())), max(float(before.max()), float(now.max()))
    shown_before, shown_now = (_grid((w - lowest) / ((highest - lowest) or 1.0) * 255, name) for w in (before, now))
    difference = now - before
    largest = float(difference.abs().max())
    shown_difference = _grid(ZERO + difference / (largest or 1.0) * (255 - ZERO), name)
    return KernelPictures(shown_before, shown_now, shown_difference, lowest, highest, largest, relative_change=change)


def relative_change(before: torch.Tensor, now: torch.Tensor) -> float:
    """Return ||now - before|| / ||before||."""
    return float((now - before).norm() / before.norm())


def _grid(tiles: torch.Tensor, name: str) -> Picture:
    """Return tiles of values in [0, 255] in rows, with white lines around them, each weight a square of pixels."""
    weights = tiles.round().clamp(0, 255).to(torch.uint8)
    squares = weights.repeat_interleave(PIXEL[name], dim=2).repeat_interleave(PIXEL[name], dim=3)
    grid = torchvision.utils.make_grid(squares, nrow=COLUMNS[name], padding=SEPARATOR, pad_value=PAPER)
    return np.ascontiguousarray(grid.permute(1, 2, 0))
