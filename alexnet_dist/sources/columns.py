"""Columns: which column of a table holds the images, which one the labels, and labels as numbers from 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alexnet_dist.errors import UserError
from alexnet_dist.sources.listing import Labels, SourceOptions

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixels")
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "target", "targets", "cls", "y", "fine_label", "label_name", "class_name"),
    *("class_label", "label_id", "class_id", "category", "species", "breed", "dx", "diagnosis", "answer"),
)
NO_LABEL = (None, -1, "")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read."""

    image: str
    label: str
    class_names: tuple[str, ...] | None
    """Of a ClassLabel column; None where the labels' values are the names."""
    notes: tuple[str, ...]


def choose(features: Mapping[str, Any], options: SourceOptions, source: str) -> Columns:
    """Return the image column and the label column: those that are named, else by type and name.

    Args:
        features: of the training split, as `datasets` describes them.
        options: with the names, if the user gives them.
        source: begins error messages.

    Raises:
        UserError: a column is missing, or there is none that can be guessed.
    """
    described = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items()) or "no column"
    for flag, name in (("image", options.image_column), ("label", options.label_column)):
        if name is not None and name not in features:
            raise UserError(f"{source}: --data.{flag}-column {name}: no such column; it has {described}")
    images = [name for name, feature in features.items() if _kind(feature) == "Image"]
    images = images or [name for name, feature in features.items() if _holds_bytes(feature)]
    image = options.image_column or _by_name(images, IMAGE_NAMES) or (images[0] if len(images) == 1 else None)
    if image is not None and not (_kind(features[image]) == "Image" or _holds_bytes(features[image])):
        raise UserError(f"{source}: --data.image-column {image} holds no images; it has {described}")
    classes = {name: feature.num_classes for name, feature in features.items() if _kind(feature) == "ClassLabel"}
    plain = [name for name, feature in features.items() if _is_plain(feature) and name != image]
    guessed = max(classes, key=lambda name: classes[name]) if classes else _by_name(plain, LABEL_NAMES)
    label = options.label_column or guessed
    if image is None or label is None:
        missing = " and ".join(
            f"{what} by --data.{what}-column" for what, name in (("image", image), ("label", label)) if name is None
        )
        needs = "needs one Image column and a ClassLabel column, integers or strings"
        raise UserError(f"{source}: {needs}, and has {described}: name the {missing}")
    if not (label in classes or _is_plain(features[label]) or "float" in _kind(features[label])):
        raise UserError(f"{source}: --data.label-column {label} holds no labels; it has {described}")
    notes = []
    others = [name for name in images if name != image]
    if others:
        notes.append(f"images are those of the column {image}, not {', '.join(others)} (--data.image-column)")
    rivals = [name for name in (classes or plain) if name != label and (classes or name.lower() in LABEL_NAMES)]
    if rivals or (not classes and options.label_column is None and label.lower() not in LABEL_NAMES[:2]):
        instead = f", not {', '.join(rivals)}" if rivals else ""
        notes.append(f"labels are those of the column {label}{instead} (--data.label-column)")
    return Columns(image, label, tuple(features[label].names) if label in classes else None, tuple(notes))


def _kind(feature: object) -> str:
    """Return the type of a feature of `datasets`: Image, ClassLabel, or that of its values, as int64."""
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else type(feature).__name__


def _holds_bytes(feature: object) -> bool:
    """Return whether a column holds encoded files: bytes, or records with a field `bytes`."""
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return _kind(feature) in ("binary", "large_binary")


def _is_plain(feature: object) -> bool:
    """Return whether a column can hold labels: integers, strings or booleans."""
    return _kind(feature).startswith(("int", "uint", "string", "large_string", "bool"))


def _by_name(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column whose name, in lower case, comes first in a list of names; None if none is in it."""
    known = {name.lower(): name for name in reversed(columns)}
    return next((known[name] for name in names if name in known), None)


# ---- labels ---------------------------------------------------------------------------------------------------------


def values(column: Any) -> Sequence[Any]:  # noqa: ANN401 - a pyarrow.ChunkedArray, whose package has no types
    """Return the values of an Arrow column, None and NaN as None."""
    found: list[Any] = column.to_numpy().tolist() if column.null_count == 0 else column.to_pylist()
    fractions = str(column.type) in ("halffloat", "float", "double")
    return [None if value != value else value for value in found] if fractions else found  # noqa: PLR0124 - NaN


def labelled(found: Sequence[Any]) -> bool:
    """Return whether any label is neither missing nor -1."""
    return not set(found) <= set(NO_LABEL)


def as_classes(
    columns: Mapping[str, Sequence[Any]], names: tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], dict[str, Labels]]:
    """Return the class names and the labels of each split as (N,) int64 in [0, number of classes).

    Args:
        columns: values of the label column by split.
        names: of a ClassLabel column, whose values are positions in it; None to take all values, sorted, as names.
        where: begins error messages.

    Raises:
        UserError: a label is missing, outside of the names, or a fraction.
    """
    if names is not None:
        return names, {split: _checked(found, len(names), f"{where}: {split}") for split, found in columns.items()}
    seen = {value for found in columns.values() for value in found}
    negative = -1 in seen and seen != {-1, 1}  # which are two classes
    for split, found in columns.items():
        for missing in (None, "", *((-1,) if negative else ())):
            if missing in found:
                at = f"{where}: {split}[{found.index(missing)}]"
                raise UserError(f"{at} has label {missing!r}: label it, remove it, or name another --data.label-column")
    fractions = [value for value in seen if isinstance(value, float) and not value.is_integer()]
    if fractions:
        raise UserError(f"{where}: the labels are fractions, as {fractions[0]}: name classes by --data.label-column")
    classes = sorted(seen)
    number = {value: k for k, value in enumerate(classes)}
    shown = tuple(str(int(value) if isinstance(value, float) else value) for value in classes)
    return shown, {
        split: np.fromiter(map(number.__getitem__, found), np.int64, len(found)) for split, found in columns.items()
    }


def _checked(found: Sequence[Any], num_classes: int, where: str) -> Labels:
    """Return labels as (N,) int64, after a check that all are in [0, num_classes)."""
    labels = np.array([-1 if label is None else label for label in found], np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        index = int(wrong[0])
        raise UserError(f"{where}[{index}] has label {found[index]}; labels must be from 0 to {num_classes - 1}")
    return labels
