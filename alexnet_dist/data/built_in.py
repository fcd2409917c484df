"""Built-in data sets: scikit-learn's digits, and synthetic images."""

from dataclasses import replace

import numpy as np

from alexnet_dist import rng
from alexnet_dist.data.image_data import ImageData, Split, assemble, divided
from alexnet_dist.errors import UserError


def digits() -> ImageData:
    """Return scikit-learn's 1,797 scanned digits, 8x8; a fifth of each class, drawn at random, is for evaluation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the digits data set needs scikit-learn: pip install 'alexnet_dist[demo]'") from None
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None].repeat(3, axis=1)
    labels = bunch.target.astype(np.int64)
    train, test = divided(Split(images, labels), np.bincount(labels) // 5, "digits")
    return replace(assemble("digits", train, test, tuple("0123456789")), flips=False)


def synthetic(num_classes: int = 10, size: int = 32) -> ImageData:
    """Return images whose class is a smooth colour pattern, shifted at random, with noise: easy, but not trivial."""
    drawn = rng.generator(0, "synthetic")
    coarse = drawn.normal(size=(num_classes, 3, 4, 4)).repeat(size // 4, axis=2).repeat(size // 4, axis=3)

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int64) % num_classes
        shifts = drawn.integers(-4, 5, (count, 2))
        clean = np.stack([np.roll(coarse[k], tuple(s), (1, 2)) for k, s in zip(labels, shifts, strict=True)])
        return Split(np.clip(128 + 40 * (clean + drawn.normal(size=clean.shape)), 0, 255).astype(np.uint8), labels)

    return assemble("synthetic", split(4000), split(1000), tuple(f"pattern {k}" for k in range(num_classes)))
