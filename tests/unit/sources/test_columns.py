"""Columns by type and name."""

from pathlib import Path

import pytest
from datasets import ClassLabel, Features, Value
from datasets import Image as ImageFeature

from alexnet_dist.errors import UserError
from alexnet_dist.sources import columns
from alexnet_dist.sources.listing import SourceOptions

KINDS = {
    "Image": ImageFeature(),
    "ClassLabel": ClassLabel(names=["p", "q", "r"]),
    "two": ClassLabel(names=["p", "q"]),
    "record": {"bytes": Value("binary"), "path": Value("string")},
}


def choose(text, **options):
    """Choose among columns that are written as name=kind."""
    pairs = (part.split("=") for part in text.split())
    kinds = Features({name: KINDS[kind] if kind in KINDS else Value(kind) for name, kind in pairs})
    return columns.choose(kinds, SourceOptions(cache=Path(), **options), "SET")


@pytest.mark.parametrize(
    ("text", "image", "label"),
    [
        ("img=Image label=ClassLabel", "img", "label"),
        ("species=ClassLabel picture=Image id=int64", "picture", "species"),
        ("a=Image coarse=two fine=ClassLabel", "a", "fine"),
        ("a=Image label=int64 fine=ClassLabel", "a", "fine"),
        ("a=Image id=int64 label=uint8", "a", "label"),
        ("a=Image labels=string text=string", "a", "labels"),
        ("a=Image Label=bool", "a", "Label"),
        ("webp=Image cls=int64 __key__=string", "webp", "cls"),
        ("a=Image dx=string dx_type=string age=float64", "a", "dx"),
        ("mask=Image image=Image label=ClassLabel", "image", "label"),
        ("image=binary label=int64", "image", "label"),
        ("image=record label=int64", "image", "label"),
        ("thumb=binary image=Image label=int64", "image", "label"),
    ],
)
def test_columns_that_are_guessed(text, image, label):
    found = choose(text)
    assert (found.image, found.label) == (image, label)


def test_columns_that_are_named():
    found = choose("a=Image b=Image label=ClassLabel kind=string", image_column="b", label_column="kind")
    assert (found.image, found.label, found.class_names) == ("b", "kind", None)
    assert choose("a=Image c=two d=ClassLabel", label_column="c").class_names == ("p", "q")


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("img=Image label=ClassLabel", ()),
        ("img=Image labels=int64 id=int64", ()),
        ("a=Image c=two d=ClassLabel", ("labels are those of the column d, not c (--data.label-column)",)),
        ("a=Image dx=string", ("labels are those of the column dx (--data.label-column)",)),
        ("img=Image mask=Image label=two", ("images are those of the column img, not mask (--data.image-column)",)),
    ],
)
def test_choices_are_told(text, notes):
    assert choose(text).notes == notes


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("label=ClassLabel", {}, "has label (ClassLabel): name the image by --data.image-column"),
        ("img=Image", {}, "has img (Image): name the label by --data.label-column"),
        ("img=Image caption=string", {}, "img (Image), caption (string): name the label by --data.label-column"),
        ("x=Image y2=Image label=int64", {}, "name the image by --data.image-column"),
        ("img=Image label=int64", {"label_column": "lable"}, "--data.label-column lable: no such column; it has img"),
        ("img=Image label=int64", {"image_column": "label"}, "--data.image-column label holds no images"),
        ("img=Image label=int64", {"label_column": "img"}, "--data.label-column img holds no labels"),
    ],
)
def test_columns_that_are_refused(text, options, message):
    with pytest.raises(UserError) as caught:
        choose(text, **options)
    assert message in str(caught.value)
