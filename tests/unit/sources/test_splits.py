"""Splits by their names, and names that are alike."""

import unicodedata
from pathlib import Path

import pytest

from alexnet_dist.errors import UserError
from alexnet_dist.sources import splits
from alexnet_dist.sources.listing import SourceOptions


def choose(*names, unlabelled=(), **options):
    return splits.choose(names, lambda name: name not in unlabelled, SourceOptions(cache=Path(), **options), "SET")


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (("train", "test"), "train", "test"),
        (("train", "validation"), "train", "validation"),
        (("validation", "test", "train"), "train", "test"),
        (("train", "val", "valid"), "train", "valid"),
        (("training", "testing"), "training", "testing"),
        (("Train", "Val"), "Train", "Val"),
        (("train",), "train", None),
        (("train", "extra"), "train", None),
        (("all",), "all", None),
    ],
)
def test_splits_by_name(names, train, test):
    found = choose(*names)
    assert (found.train, found.test) == (train, test)


def test_what_is_left_aside_is_told():
    assert choose("train", "test").notes == ()
    (note,) = choose("train", "test", "extra", "contrast").notes
    assert note == "train trains, test evaluates; left aside: extra, contrast (--data.train-split, --data.eval-split)"


def test_evaluation_splits_without_labels_are_passed_over():
    found = choose("train", "validation", "test", unlabelled=("test",))
    assert (found.test, found.notes) == ("validation", ("the split test has no labels and is passed over",))
    found = choose("train", "validation", "test", unlabelled=("test", "validation"))
    assert found.test is None
    assert len(found.notes) == 2


def test_labels_are_asked_for_no_more_than_needed():
    asked = []
    splits.choose(
        ("train", "val", "test", "dev"), lambda n: asked.append(n) or True, SourceOptions(cache=Path()), "SET"
    )
    assert asked == ["test"]


def test_splits_that_are_named():
    found = choose("train", "test", "extra", train_split="extra", eval_split="train")
    assert (found.train, found.test) == ("extra", "train")
    assert choose("a", "b", train_split="b").test is None
    assert choose("test", "validation", train_split="validation").test == "test"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("test",), {}, "SET: needs the splits train and test, and has test"),
        (("a", "b"), {}, "has a, b: name them by --data.train-split"),
        ((), {}, "has none"),
        (("train", "training"), {}, "both training splits: name one by --data.train-split"),
        (("train",), {"train_split": "tran"}, "--data.train-split tran: there is no such split, but train"),
        (("train",), {"eval_split": "val"}, "--data.eval-split val: there is no such split"),
        (("train",), {"eval_split": "train"}, "--data.eval-split train is the training split"),
        (("train", "x"), {"eval_split": "x", "unlabelled": ("x",)}, "the split x has no labels"),
    ],
)
def test_splits_that_are_refused(names, options, message):
    with pytest.raises(UserError) as caught:
        choose(*names, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("train/0.tar", "train"),
        ("imagenet-train-0001.tar", "train"),
        ("val_03.tar", "val"),
        ("seg_train", "train"),
        ("test/train-1.tar", "test"),
        ("trainer/0.tar", None),
        ("0.tar", None),
    ],
)
def test_words_of_splits_in_paths(path, word):
    assert splits.split_word(path) == word


def test_names_that_are_alike():
    composed, decomposed = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFC", "NFD"))
    assert splits.alike(["cat", "dog", "Cat", "cat"]) == [("Cat", "cat")]
    assert splits.alike([composed, decomposed, "dog"]) == [(decomposed, composed)]
    assert splits.alike(["cat", "cats", "dog"]) == []
    assert splits.difference(decomposed, composed).isascii()


def test_few_names_of_many():
    assert splits.few("abc") == "a, b, c"
    assert splits.few("abcdefg") == "a, b, c, d, e and 2 more"
