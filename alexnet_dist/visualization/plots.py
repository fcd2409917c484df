"""Curves and the confusion matrix as PNG files; thumbnails of images and sheets of them as arrays.

Takes records and arrays. Matplotlib is imported when the first figure is drawn (0.5 s), never before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = ("global_step", "epoch", "train/loss", "train/epoch_loss", "val/loss", "val/top1")
"""What is drawn of a record; the rest is forgotten at once, as records are many."""
SHEET_COLUMNS = 8
THUMBNAIL = 64  # pixels
MOST_NUMBERED_CLASSES = 20  # above it, numbers in the cells of a confusion matrix cannot be read


def save_curves(records: Iterable[dict[str, Any]], folder: Path, *, num_classes: int, split: str = "test") -> None:
    """Draw loss.png and accuracy.png from the lines of metrics.jsonl, with what guessing among the classes gives.

    The folder must exist.
    """
    needed = [{key: record[key] for key in CURVES if key in record} for record in records]
    train = [record for record in needed if "train/loss" in record]
    evaluations = [record for record in needed if "val/top1" in record]
    if not evaluations:
        return
    figure, axes = _figure(7, 4.2)
    last, losses = evaluations[-1], [record["train/loss"] for record in train]
    positions = [record["global_step"] * last["epoch"] / last["global_step"] for record in train]  # on the epoch axis
    axes.plot(positions, losses, color="#9aa7b5", linewidth=1, label="training, mean of steps")
    axes.plot(*_series(evaluations, "train/epoch_loss"), "o-", color="#1f5fa8", label="training, mean of the epoch")
    axes.plot(*_series(evaluations, "val/loss"), "s-", color="#d1495b", label=split)
    _finish(figure, axes, folder / "loss.png", chance=math.log(num_classes), ylabel="loss (nats)", title="Loss")
    figure, axes = _figure(7, 4.2)
    epochs, top1 = _series(evaluations, "val/top1")
    axes.plot(epochs, [100 * value for value in top1], "s-", color="#d1495b", label=f"{split}, top-1")
    title = f"{split.capitalize()} accuracy, best {100 * max(top1):.2f} %"
    _finish(figure, axes, folder / "accuracy.png", chance=100 / num_classes, ylabel="accuracy (%)", title=title)


def _series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Return the epochs in which a metric was recorded, and its values."""
    present = [record for record in records if key in record]
    return [record["epoch"] for record in present], [record[key] for record in present]


def save_confusion(confusion: npt.NDArray[np.int64], class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each row shaded by its shares.

    Args:
        confusion: (C, C) int64 counts; rows are true classes.
        class_names: C names.
        path: the PNG to write, in a folder that exists.
    """
    num_classes = len(class_names)
    numbered = num_classes <= MOST_NUMBERED_CLASSES
    figure, axes = _figure(*(2 * [2.5 + 0.55 * num_classes] if numbered else (9, 9)))
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if numbered:
        axes.set_xticks(range(num_classes), class_names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(num_classes), class_names, parse_math=False)
        for (row, column), count in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    title = f"Test images: {100 * np.trace(confusion) / max(1, confusion.sum()):.2f} % on the diagonal"
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    figure.savefig(path)


def thumbnail(image: npt.NDArray[np.uint8], size: int = THUMBNAIL) -> npt.NDArray[np.uint8]:
    """Return an image resized to a square.

    Args:
        image: (H, W, 3) uint8; small ones are enlarged pixel by pixel, large ones smoothed.
        size: of the square, in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    method = Image.Resampling.NEAREST if max(image.shape[:2]) <= size else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize((size, size), method))


def sheet(images: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return square pictures, (S, S, 3) uint8 each, as one, in rows of eight; the rest of the last row is white."""
    tiles = list(images)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % SHEET_COLUMNS)
    rows = [np.concatenate(tiles[i : i + SHEET_COLUMNS], axis=1) for i in range(0, len(tiles), SHEET_COLUMNS)]
    return np.concatenate(rows)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of so many inches that belongs to no window system, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    return figure, figure.add_subplot()


def _finish(figure: Figure, axes: Axes, path: Path, *, chance: float, ylabel: str, title: str) -> None:
    """Add the value of guessing, titles, grid and legend to a figure over epochs, and write the PNG."""
    from matplotlib.ticker import MaxNLocator

    axes.axhline(chance, label="chance", color="#777777", linestyle=":", linewidth=1)
    axes.set(xlabel="epoch", ylabel=ylabel, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
