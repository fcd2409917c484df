"""ImageData, a data set in memory: image arrays, labels, class names, channel statistics and fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from alexnet_dist import rng
from alexnet_dist.architecture import Channels

if TYPE_CHECKING:
    from alexnet_dist.data.photographs import Photographs

AnySplit = TypeVar("AnySplit", "Split", "Photographs")

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

STATISTICS_IMAGES = 5000  # a standard error of 0.0015 of the mean: photographs differ by 0.1 in their own means


@dataclass(frozen=True)
class Split:
    """Images with their labels: `images` (N, 3, H, W) uint8, `labels` (N,) int64 in [0, number of classes)."""

    images: Images
    labels: Labels

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        is_right = images.dtype == np.uint8 and images.shape == (len(labels), 3, *images.shape[-2:])
        assert is_right, f"not (N, 3, H, W) uint8 and (N,): {images.shape} {images.dtype} and {labels.shape}"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: npt.NDArray[Any]) -> Split:
        """Return the images and labels at these positions, (K,) integers, or (N,) bool, copied."""
        return Split(self.images[chosen], self.labels[chosen])

    def picture(self, index: int) -> Images:
        """Return an image as (H, W, 3) uint8."""
        image: Images = self.images[index]
        return image.transpose(1, 2, 0)


class Statistics(NamedTuple):
    """Statistics of the training pixels' channels, on the scale [0, 1]."""

    mean: Channels
    std: Channels
    """1 for a constant channel, so that normalised values stay finite."""
    covariance: tuple[Channels, Channels, Channels] | None = None
    """None where nobody has asked for it yet: `ImageData.covariance`."""


@dataclass(frozen=True)
class ImageData:
    """A training and an evaluation split, with what is computed from them."""

    name: str
    train: Split | Photographs
    test: Split | Photographs
    class_names: tuple[str, ...]
    statistics: Statistics
    """Of the training split; of photographs, over at most 5,000 images of it."""
    fingerprint: str
    """SHA-256 over pixels, labels and class names: equal for equal data, whatever their source. Of photographs, over
    encoded images, labels, class names, the store and the decoder."""
    flips: bool = True
    """Whether a mirrored image keeps its class."""
    fallback_for: str | None = None
    """Name of the data set that was asked for and could not be had; None if this is the one."""
    evaluated_on: str = "test"
    """Source of the images in `test`: the split's name, or "held-out", images of the training split."""
    notes: tuple[str, ...] = ()
    """Choices that were made for the user, one sentence each."""

    @property
    def mean(self) -> Channels:
        """Mean of each channel."""
        return self.statistics.mean

    @property
    def std(self) -> Channels:
        """Standard deviation of each channel."""
        return self.statistics.std

    def covariance(self) -> npt.NDArray[np.float64]:
        """Return the covariance of the channels, (3, 3), over at most 5,000 training images."""
        if self.statistics.covariance is not None:
            return np.array(self.statistics.covariance)
        chosen = rng.generator(0, "statistics").permutation(len(self.train))[:STATISTICS_IMAGES]
        return covariance(self.train.picture(index) for index in chosen.tolist())


def assemble(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> ImageData:
    """Return a data set in memory, with its statistics and fingerprint computed."""
    return ImageData(name, train, test, class_names, statistics(train.images), fingerprint(train, test, class_names))


def statistics(images: Images) -> Statistics:
    """Return each channel's mean and standard deviation, exact, from counts of the 256 values."""
    values = np.arange(256)
    means, deviations = [], []
    for channel in range(3):
        counts = np.bincount(np.ascontiguousarray(images[:, channel]).ravel(), minlength=256)
        total, first, second = int(counts.sum()), int(counts @ values), int(counts @ values**2)
        means.append(first / total / 255)
        deviations.append(math.sqrt(total * second - first**2) / total / 255)
    red, green, blue = means
    red_std, green_std, blue_std = (deviation or 1.0 for deviation in deviations)
    return Statistics((red, green, blue), (red_std, green_std, blue_std))


def fingerprint(train: Split, test: Split, class_names: tuple[str, ...]) -> str:
    """Return the SHA-256 over pixels, labels and class names, in hexadecimal."""
    digest = hashlib.sha256(json.dumps([class_names, train.images.shape, test.images.shape]).encode())
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def covariance(pictures: Iterable[Images]) -> npt.NDArray[np.float64]:
    """Return the covariance of the channels over all pixels of some pictures, (H, W, 3) uint8 each: (3, 3), [0, 1]."""
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    for picture in pictures:
        pixels = picture.reshape(-1, 3) / 255
        count, total, products = count + len(pixels), total + pixels.sum(axis=0), products + pixels.T @ pixels
    mean = total / count
    return products / count - np.outer(mean, mean)


def divided(split: AnySplit, counts: npt.NDArray[np.int64], purpose: str) -> tuple[AnySplit, AnySplit]:
    """Return the rest of a split, and `counts[k]` images of each class k, drawn by a fixed permutation.

    Args:
        split: images and labels, whose order both parts keep.
        counts: (C,), at most the number of images of each class.
        purpose: of the permutation: "digits" or "held out".
    """
    order = rng.generator(0, purpose).permutation(len(split))
    drawn = np.zeros(len(split), bool)
    for label, count in enumerate(counts):
        drawn[order[split.labels[order] == label][:count]] = True
    return split.take(~drawn), split.take(drawn)
