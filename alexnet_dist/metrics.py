"""Sums and counts that stay on the device until somebody asks, and what is computed from them.

Knows nothing about processes: a sum over ranks is a sum over their tensors, taken elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    Counts = npt.NDArray[np.int64]


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step is NaN or infinite; no optimizer step was taken from it on.

    Args:
        message: for the user.
        step: which one, counted from 1.
        images: (id, loss) of the global batch's images, in the order of the ranks.
    """

    def __init__(self, message: str, *, step: int, images: list[tuple[int, float]]) -> None:
        super().__init__(message)
        self.step = step
        self.images = images


@dataclass
class StepWindow:
    """What the optimizer steps since the last look have left on the device."""

    losses: list[torch.Tensor] = field(default_factory=list)
    """Per step, (B,) float32: each image's loss on this rank."""
    ids: list[torch.Tensor] = field(default_factory=list)
    """Per step, (B,) int64: the images' ids."""
    gradient_norms: list[torch.Tensor] = field(default_factory=list)
    """Per step, () float32, equal on all ranks."""

    def __len__(self) -> int:
        return len(self.losses)

    def add(self, losses: torch.Tensor, ids: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Note one optimizer step; copies nothing and waits for nothing."""
        self.losses.append(losses)
        self.ids.append(ids)
        self.gradient_norms.append(gradient_norm)

    def loss_sums(self) -> torch.Tensor:
        """Return (steps,) float64: the sum of this rank's losses of each step, to be summed over ranks."""
        return torch.stack([losses.double().sum() for losses in self.losses])

    def images(self, index: int) -> list[tuple[int, float]]:
        """Return the id and the loss of a step's images on this rank. Waits for the device."""
        return list(zip(self.ids[index].tolist(), self.losses[index].tolist(), strict=True))


class EvalCounts:
    """The confusion matrix and the summed loss of an evaluation, on the device.

    Args:
        num_classes: of the data set.
        device: where logits and labels live.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor) -> None:
        """Count a batch. Waits for nothing (`bincount` would: its result's size depends on the data).

        Args:
            logits: (B, num_classes) float.
            labels: (B,) int64.
            losses: (B,) float32.
        """
        cell = labels * self.num_classes + logits.argmax(dim=1)
        self.confusion.index_add_(0, cell, torch.ones_like(cell))
        self.loss_sum += losses.double().sum()


@dataclass(frozen=True)
class Evaluation:
    """An evaluation over a whole split, each image counted once."""

    loss: float
    """Mean over the images."""
    confusion: Counts
    """(C, C) int64: rows are true classes, columns predicted ones."""

    @property
    def num_images(self) -> int:
        """How many images were counted."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose most likely class is the true one."""
        return float(np.trace(self.confusion) / self.num_images)

    @property
    def per_class(self) -> list[float | None]:
        """Return each class's share of recognised images; None for a class without any."""
        totals = self.confusion.sum(axis=1)
        return [
            float(hits / total) if total else None
            for hits, total in zip(self.confusion.diagonal(), totals, strict=True)
        ]

    def collapse(self) -> str | None:
        """Say in what way the network has learned nothing, or return None.

        Accuracy counts as chance within three standard deviations of always naming the most frequent class.
        """
        if self.top1 == 1:
            return None  # a small split may leave chance that much room, or hold images of one class only
        predicted = np.flatnonzero(self.confusion.sum(axis=0))
        if len(predicted) == 1 and len(self.confusion) > 1:
            return f"every image is taken for class {predicted[0]}"
        chance = float(self.confusion.sum(axis=1).max() / self.num_images)
        noise = 3 * math.sqrt(chance * (1 - chance) / self.num_images)
        if chance < 1 and self.top1 <= chance + noise:
            return f"top-1 {self.top1:.2%} is no better than chance ({chance:.2%})"
        return None
