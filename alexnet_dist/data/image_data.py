"""ImageData, a data set in memory: image arrays, labels, class names, channel statistics and fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alexnet_dist.architecture import Channels

if TYPE_CHECKING:
    from alexnet_dist.data.photographs import Photographs

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images with their labels: `images` (N, 3, H, W) uint8, `labels` (N,) int64 in [0, number of classes)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: npt.NDArray[Any]) -> Split:
        """Return the images and labels at these positions, (K,) integers, or (N,) bool, copied."""
        return Split(self.images[chosen], self.labels[chosen])

    def picture(self, index: int) -> Images:
        """Return an image as (H, W, 3) uint8."""
        return self.images[index].transpose(1, 2, 0)


@dataclass(frozen=True)
class ImageData:
    """A training and an evaluation split, with what is computed from them."""

    name: str
    train: Split | Photographs
    test: Split | Photographs
    class_names: tuple[str, ...]
    statistics: tuple[Channels, Channels]
    """Mean and standard deviation of each channel of the training split, on the scale [0, 1]."""
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
        return self.statistics[0]

    @property
    def std(self) -> Channels:
        """Standard deviation of each channel."""
        return self.statistics[1]


def assemble(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> ImageData:
    """Return a data set in memory, with its statistics and fingerprint computed."""
    return ImageData(name, train, test, class_names, statistics(train.images), fingerprint(train, test, class_names))


def statistics(images: Images) -> tuple[Channels, Channels]:
    """Return each channel's mean and standard deviation on the scale [0, 1], exact, from counts of the 256 values.

    A constant channel has the standard deviation 1, so that normalised values stay finite.
    """
    values = np.arange(256)
    means, deviations = [], []
    for channel in range(3):
        counts = np.bincount(np.ascontiguousarray(images[:, channel]).ravel(), minlength=256)
        total, first, second = int(counts.sum()), int(counts @ values), int(counts @ values**2)
        means.append(first / total / 255)
        deviations.append(math.sqrt(total * second - first**2) / total / 255)
    red, green, blue = means
    red_std, green_std, blue_std = (deviation or 1.0 for deviation in deviations)
    return (red, green, blue), (red_std, green_std, blue_std)


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
