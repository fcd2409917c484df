"""Labels of all kinds as numbers from 0, and what is said of classes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from alexnet_dist.errors import UserError
from alexnet_dist.sources import labels
from alexnet_dist.sources.listing import ArrayImages, SourceOptions


def classes(train, test=(), names=None):
    by_split = {"train": labels.values(pa.chunked_array([train]))}
    if test:
        by_split["test"] = labels.values(pa.chunked_array([test]))
    found, numbers = labels.as_classes(by_split, names, "SET")
    assert all(label.dtype == np.int64 for label in numbers.values())
    return found, [label.tolist() for label in numbers.values()]


@pytest.mark.parametrize(
    ("train", "test", "names", "expected"),
    [
        ([2, 0, 1], [1, 1], ("0", "1", "2"), [[2, 0, 1], [1, 1]]),
        ([10, -5, 10], [700], ("-5", "10", "700"), [[1, 0, 1], [2]]),
        ([-1, 1, 1], [1], ("-1", "1"), [[0, 1, 1], [1]]),
        (["dog", "cat"], ["cat", "ape"], ("ape", "cat", "dog"), [[2, 1], [1, 0]]),
        ([True, False], [True], ("False", "True"), [[1, 0], [1]]),
        ([2.0, 0.0], [], ("0", "2"), [[1, 0]]),
        (pa.array([3, 9], pa.uint8()), pa.array([9], pa.uint8()), ("3", "9"), [[0, 1], [1]]),
        (pa.array([2**63, 1], pa.uint64()), [], ("1", str(2**63)), [[1, 0]]),
        (pa.array([9, 10, 9], pa.int8()), [], ("9", "10"), [[0, 1, 0]]),
    ],
)
def test_labels_of_all_kinds(train, test, names, expected):
    assert classes(train, test) == (names, expected)


def test_a_class_label_keeps_names_and_numbers():
    assert classes([0, 2], [2], ("p", "q", "r")) == (("p", "q", "r"), [[0, 2], [2]])


@pytest.mark.parametrize(
    ("test", "names", "message"),
    [([0], None, "some labels are names and some are numbers"), ([1, ""], ("a", "b"), "SET: test[1] has label ''")],
)
def test_names_in_one_split_and_numbers_in_another(test, names, message):
    with pytest.raises(UserError) as caught:
        labels.as_classes({"test": test} if names else {"train": ["a", "b"], "test": test}, names, "SET")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("train", "names", "message"),
    [
        ([0, None, 1], None, "SET: train[1] has label None"),
        ([0, 1, 2, -1], None, "SET: train[3] has label -1"),
        (["a", "", "b"], None, "SET: train[1] has label ''"),
        ([0.5, 1.0], None, "the labels are fractions, as 0.5"),
        ([0.0, float("nan")], None, "SET: train[1] has label None"),
        ([0, 3], ("p", "q", "r"), "SET: train[1] has label 3; labels must be from 0 to 2"),
        ([0, -1], ("p", "q", "r"), "SET: train[1] has label -1"),
        ([None, 1], ("p", "q", "r"), "SET: train[0] has label None"),
    ],
)
def test_labels_that_are_refused(train, names, message):
    with pytest.raises(UserError) as caught:
        classes(train, names=names)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, -1], False),
        ([None, None], False),
        ([-1, 0], True),
        (["", ""], False),
        ([float("nan")], False),
        ([0], True),
    ],
)
def test_whether_a_split_has_labels(values, expected):
    assert labels.labelled(labels.values(pa.chunked_array([values]))) == expected


def listed(**values):
    def images(split, numbers):
        return ArrayImages(np.zeros((len(values[split]), 2, 2), np.uint8), numbers)

    origin = labels.Origin("set", "SET", "key", ("first",))
    return labels.assemble(origin, list(values), values.__getitem__, images, SourceOptions(cache=Path()))


def test_a_listing_is_put_together():
    found = listed(train=["b", "a"], test=["a"], extra=["z"])
    assert (found.name, found.key, found.class_names, found.evaluated_on) == ("set", "key", ("a", "b"), "test")
    assert found.train.labels.tolist() == [1, 0]
    assert found.notes[0] == "first"


def test_classes_that_are_evaluated_alone_and_names_that_are_alike_are_told():
    assert "no training images of cow, which are evaluated" in listed(train=["a", "b"], test=["a", "cow"]).notes
    note = "class names: Cat and cat differ by upper and lower case alone"
    assert note in listed(train=["Cat", "cat"], test=["cat"]).notes
    assert listed(train=["a", "b"], test=["a"]).notes == ("first",)


def test_labels_of_splits_that_are_not_used_are_not_read():
    asked = []

    def values(split):
        asked.append(split)
        return [0, 1]

    origin = labels.Origin("set", "SET", "key")
    make = lambda _, numbers: ArrayImages(np.zeros((2, 2, 2), np.uint8), numbers)  # noqa: E731
    labels.assemble(origin, ["train", "test", "extra", "validation"], values, make, SourceOptions(cache=Path()))
    assert sorted(asked) == ["test", "train"]
