"""Built-in sets: scikit-learn's digits, once each, and synthetic images that can be learned."""

import sys

import numpy as np
import pytest
from image_sets import assert_equal_data

from alexnet_dist.errors import UserError


def test_digits_are_all_of_scikit_learns_once_each(load):
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    loaded = load("digits")
    assert len(loaded.train) + len(loaded.test) == 1797
    assert loaded.train.images.shape[1:] == (3, 8, 8)
    assert loaded.train.images.dtype == np.uint8
    assert loaded.train.labels.dtype == np.int64
    expected = sorted(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    found = []
    for split in (loaded.train, loaded.test):
        assert (split.images == split.images[:, :1]).all(), "grey: the channels are equal"
        found += [(i[0].tobytes(), int(k)) for i, k in zip(split.images, split.labels, strict=True)]
    assert sorted(found) == expected, "each scan once, in one of the splits"
    assert loaded.train.images.max() == 255
    assert loaded.class_names == tuple("0123456789")


def test_digits_are_split_by_class_and_always_alike(load):
    pytest.importorskip("sklearn")
    loaded = load("digits")
    for digit in range(10):
        in_test, in_train = (loaded.test.labels == digit).sum(), (loaded.train.labels == digit).sum()
        assert in_test == (in_test + in_train) // 5
    assert not loaded.flips, "a mirrored 2 is no 2"
    assert_equal_data(load("digits"), loaded)


def test_digits_without_scikit_learn(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'alexnet_dist\[demo\]'"):
        load("digits")


def test_synthetic_images_are_balanced_deterministic_and_learnable(load):
    loaded = load("synthetic")
    assert loaded.train.images.shape == (4000, 3, 32, 32)
    assert loaded.test.images.shape == (1000, 3, 32, 32)
    assert loaded.train.images.dtype == np.uint8
    assert np.bincount(loaded.train.labels).tolist() == [400] * 10
    assert np.bincount(loaded.test.labels).tolist() == [100] * 10
    assert_equal_data(load("synthetic"), loaded)
    assert not {i.tobytes() for i in loaded.train.images} & {i.tobytes() for i in loaded.test.images}

    def accuracy(labels):
        """Of the nearest class mean, learned from these labels."""
        flat = loaded.train.images.reshape(4000, -1).astype(np.float32)
        means = np.stack([flat[labels == k].mean(axis=0) for k in range(10)])
        scores = loaded.test.images.reshape(1000, -1).astype(np.float32) @ means.T - (means**2).sum(axis=1) / 2
        return (scores.argmax(axis=1) == loaded.test.labels).mean()

    assert accuracy(loaded.train.labels) > 0.5
    assert accuracy(np.random.default_rng(0).permutation(loaded.train.labels)) < 0.3
