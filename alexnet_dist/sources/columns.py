"""Columns: which column of a table holds the images, and which one the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alexnet_dist.errors import UserError
from alexnet_dist.sources.listing import SourceOptions

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixels")
LABEL_NAMES = (
    *("label", "labels", "class", "classes", "target", "targets", "cls", "y", "fine_label", "label_name", "class_name"),
    *("class_label", "label_id", "class_id", "category", "species", "breed", "dx", "diagnosis", "answer"),
)


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
        missing = "image" if image is None else "label"
        needs = "needs one Image column and a ClassLabel column, integers or strings"
        raise UserError(f"{source}: {needs}, and has {described}: name the {missing} by --data.{missing}-column")
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
    return "bytes" in feature if isinstance(feature, Mapping) else _kind(feature) in ("binary", "large_binary")


def _is_plain(feature: object) -> bool:
    """Return whether a column can hold labels: integers, strings or booleans."""
    return _kind(feature).startswith(("int", "uint", "string", "large_string", "bool"))


def _by_name(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """Return the column whose name, in lower case, comes first in a list of names; None if none is in it."""
    known = {name.lower(): name for name in reversed(columns)}
    return next((known[name] for name in names if name in known), None)
