"""A data set in memory: image arrays, labels, class names, channel statistics and fingerprint."""

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexnet_dist.architecture import Channels

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images with their labels: `images` (N, 3, H, W) uint8, `labels` (N,) int64 in [0, number of classes)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set, ready to train on."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: Channels
    """Of the training split's channels, values in [0, 1]."""
    std: Channels
    fingerprint: str
    """SHA-256 over pixels, labels and class names: equal for equal data, wherever they came from."""
    flips: bool = True
    """Whether a mirrored image keeps its class."""
    fallback_for: str | None = None
    """The data set that was asked for, when this one stands in for it."""
    evaluated_on: str = "test"
    """Whose images `test` holds: the test split's, or "held-out" ones of the training split."""


def assemble(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> ImageData:
    """Compute a data set's statistics and fingerprint."""
    mean, std = statistics(train.images)
    return ImageData(
        name=name,
        train=train,
        test=test,
        class_names=class_names,
        mean=mean,
        std=std,
        fingerprint=fingerprint(train, test, class_names),
    )


def statistics(images: Images) -> tuple[Channels, Channels]:
    """Return each channel's mean and standard deviation in [0, 1], exactly, from the counts of the 256 values."""
    values = np.arange(256)
    means, deviations = [], []
    for channel in range(3):
        counts = np.bincount(np.ascontiguousarray(images[:, channel]).ravel(), minlength=256)
        total, first, second = int(counts.sum()), int(counts @ values), int(counts @ values**2)
        means.append(first / total / 255)
        deviations.append(math.sqrt(total * second - first**2) / total / 255)
    red, green, blue = means
    red_std, green_std, blue_std = (deviation or 1.0 for deviation in deviations)  # a constant channel stays at 0
    return (red, green, blue), (red_std, green_std, blue_std)


def fingerprint(train: Split, test: Split, class_names: tuple[str, ...]) -> str:
    """Return the SHA-256 over the pixels, labels and class names."""
    digest = hashlib.sha256(json.dumps([class_names, train.images.shape, test.images.shape]).encode())
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
