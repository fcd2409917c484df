"""Sums and counts of both loops on the device, and the accuracy, confusion matrix and loss computed from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Counts = npt.NDArray[np.int64]

Metrics = dict[str, Any]
"""Numbers by their keys in metrics.jsonl, such as `train/loss`."""

MOST_MISTAKES = 64
"""Worst mistakes kept of an evaluation: a page of thumbnails."""
MOST_RIGHT = 32
"""Right answers kept of an evaluation, at most: equally many of each class, or one of each of so many classes."""
CERTAINTY = 10_000
"""Steps into which a probability is rounded before images are ordered by it: other batches change its last digits."""


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


class StepWindow(list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """What `train_step` returned for each optimizer step since the last record, on the device.

    Losses (B,) float32 and ids (B,) int64 are of this rank's images, gradient norms () float32 equal on all ranks.
    """

    @property
    def num_images(self) -> int:
        """This rank's images in the window."""
        return sum(len(ids) for _, ids, _ in self)

    def loss_sums(self) -> torch.Tensor:
        """Return (steps,) float64: the sum of this rank's losses of each step, to be summed over ranks."""
        return torch.stack([losses.double().sum() for losses, _, _ in self])

    def images(self, index: int) -> list[tuple[int, float]]:
        """Return the id and the loss of a step's images on this rank. Waits for the device."""
        losses, ids, _ = self[index]
        return list(zip(ids.tolist(), losses.tolist(), strict=True))


@dataclass(frozen=True)
class Answer:
    """An image and the class that it was taken for."""

    id: int
    """Its position in the split."""
    label: int
    predicted: int
    probability: float
    """That the network gives to the predicted class."""
    loss: float


class Mistake(Answer):
    """An image that was taken for another class."""


class EvalCounts:
    """What an evaluation leaves of each image on one rank, on the device until `totals` fetches it."""

    def __init__(self) -> None:
        self._num_classes = 0
        self._whole: list[torch.Tensor] = []
        """Per batch, (5, B) int64: ids, labels, predicted classes, in the top five, right by flip TTA."""
        self._real: list[torch.Tensor] = []
        """Per batch, (2, B) float32: probabilities of the predicted class, losses."""
        self._has_mirrored = False

    def add(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        losses: torch.Tensor,
        ids: torch.Tensor,
        *,
        mirrored: torch.Tensor | None = None,
    ) -> None:
        """Add a batch. Waits for nothing.

        Args:
            logits: (B, C) float32.
            labels: (B,) int64.
            losses: (B,) float32.
            ids: (B,) int64: the images' positions in the split.
            mirrored: (B, C) float32, logits of the mirror images: their mean with `logits` decides in flip TTA.
        """
        self._num_classes, self._has_mirrored = logits.shape[1], mirrored is not None
        predicted = logits.argmax(dim=1)
        in_top5 = (logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]).any(dim=1)
        flipped = predicted if mirrored is None else (logits + mirrored).argmax(dim=1)
        self._whole.append(torch.stack([ids, labels, predicted, in_top5.long(), (flipped == labels).long()]))
        probabilities = logits.softmax(dim=1).gather(1, predicted[:, None])[:, 0]
        self._real.append(torch.stack([probabilities, losses]))

    def totals(self) -> Evaluation | None:
        """Return what was counted; None on a rank that got no share of a small split. Waits for the device."""
        if not self._whole:
            return None
        num, (_, labels, predicted, in_top5, flip_right) = self._num_classes, torch.cat(self._whole, dim=1)
        return Evaluation(
            loss_sum=sum(torch.stack([losses.double().sum() for _, losses in self._real]).tolist()),
            confusion=torch.bincount(labels * num + predicted, minlength=num * num).view(num, num).cpu().numpy(),
            num_top5=int(in_top5.sum()),
            num_mirrored=int(flip_right.sum()) if self._has_mirrored else None,
            worst=tuple(self.worst(MOST_MISTAKES)),
            best=tuple(self.best()),
        )

    def worst(self, most: int) -> list[Mistake]:
        """Return the mistakes with the largest losses, the largest first. Waits for the device."""
        whole, real = torch.cat(self._whole, dim=1)[:3], torch.cat(self._real, dim=1)
        badness = real[1].nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(whole[1] == whole[2], -torch.inf)
        chosen = badness.topk(min(most, len(badness))).indices
        rows = zip(whole[:, chosen].T.tolist(), real[:, chosen].T.tolist(), strict=True)
        return [Mistake(*whole_row, *real_row) for whole_row, real_row in rows if whole_row[1] != whole_row[2]]

    def best(self) -> list[Answer]:
        """Return the right answers to show, in the order of `best_of`. Waits for the device."""
        ids, labels, predicted = torch.cat(self._whole, dim=1)[:3].cpu().numpy()
        probabilities, losses = torch.cat(self._real, dim=1).cpu().numpy()
        found = []
        for label in _shown_classes(self._num_classes):
            (right,) = np.nonzero((labels == label) & (predicted == label) & np.isfinite(probabilities))
            order = np.lexsort((ids[right], -np.rint(CERTAINTY * probabilities[right].astype(np.float64))))
            chosen = right[order[: _most_of_each(self._num_classes)]].tolist()
            found += [Answer(int(ids[i]), label, label, float(probabilities[i]), float(losses[i])) for i in chosen]
        return found


def worst_of(mistakes: Iterable[Mistake], most: int) -> tuple[Mistake, ...]:
    """Return the worst of all ranks' mistakes; the same images at any world size."""
    return tuple(sorted(mistakes, key=lambda m: (-math.inf if math.isnan(m.loss) else -m.loss, m.id))[:most])


def best_of(answers: Iterable[Answer], num_classes: int) -> tuple[Answer, ...]:
    """Return the most certain of all ranks' right answers to each class, class by class; the same at any world size.

    Among equal probabilities the image that comes first in the split wins; `CERTAINTY` says which are equal.
    """
    ordered = sorted(answers, key=lambda a: (a.label, -round(CERTAINTY * a.probability), a.id))
    groups = itertools.groupby(ordered, key=lambda a: a.label)
    return tuple(a for _, group in groups for a in itertools.islice(group, _most_of_each(num_classes)))


def _shown_classes(num_classes: int) -> list[int]:
    """Return the classes of which right answers are kept: all, or `MOST_RIGHT`, evenly spread."""
    if num_classes <= MOST_RIGHT:
        return list(range(num_classes))
    return [index * (num_classes - 1) // (MOST_RIGHT - 1) for index in range(MOST_RIGHT)]


def _most_of_each(num_classes: int) -> int:
    """Return how many right answers of a class are kept."""
    return max(1, MOST_RIGHT // num_classes)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation over a whole split, or what one rank counted of it, each image counted once."""

    loss_sum: float
    confusion: Counts
    """(C, C) int64: rows are true classes, columns predicted ones."""
    num_top5: int
    """Images whose true class is among the five most likely."""
    worst: tuple[Mistake, ...]
    """The mistakes with the largest losses, the largest first."""
    num_mirrored: int | None = None
    """Images recognised by the mean of their and their mirror images' logits: flip TTA; None without it."""
    best: tuple[Answer, ...] = ()
    """The most certain right answers of each class, class by class."""

    @classmethod
    def of_ranks(cls, totals: Sequence[Evaluation | None]) -> Evaluation:
        """Add up what the ranks counted, in their order."""
        found = [each for each in totals if each is not None]
        mirrored = [each.num_mirrored for each in found if each.num_mirrored is not None]
        return cls(
            loss_sum=sum(each.loss_sum for each in found),
            confusion=np.sum([each.confusion for each in found], axis=0),
            num_top5=sum(each.num_top5 for each in found),
            worst=worst_of((mistake for each in found for mistake in each.worst), MOST_MISTAKES),
            num_mirrored=sum(mirrored) if mirrored else None,
            best=best_of((answer for each in found for answer in each.best), len(found[0].confusion)),
        )

    @property
    def num_images(self) -> int:
        """How many images were counted."""
        return int(self.confusion.sum())

    @property
    def loss(self) -> float:
        """Mean loss over the images."""
        return self.loss_sum / self.num_images

    @property
    def top1(self) -> float:
        """Share of the images whose most likely class is the true one."""
        return float(np.trace(self.confusion) / self.num_images)

    @property
    def top5(self) -> float | None:
        """Share of the images whose true class is among the five most likely; None where that is no achievement."""
        return self.num_top5 / self.num_images if len(self.confusion) > 5 else None

    @property
    def top1_flip_tta(self) -> float | None:
        """Top-1 of the mean over each image and its mirror image: test-time augmentation."""
        return None if self.num_mirrored is None else self.num_mirrored / self.num_images

    @property
    def per_class(self) -> list[float | None]:
        """Return each class's share of recognised images; None for a class without any."""
        counts = zip(self.confusion.diagonal(), self.confusion.sum(axis=1), strict=True)
        return [float(hits / total) if total else None for hits, total in counts]

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
