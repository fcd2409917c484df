"""Labels of all kinds as numbers from 0, and the listing of what has a label for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from alexnet_dist.errors import UserError
from alexnet_dist.sources import splits
from alexnet_dist.sources.listing import ArrayImages, EncodedImages, Labels, Listing, SourceOptions

NO_LABEL = (None, -1, "")


@dataclass(frozen=True)
class Origin:
    """What a listing says of its source."""

    name: str
    source: str
    """Begins error messages."""
    key: str
    notes: tuple[str, ...] = ()


def assemble(
    origin: Origin,
    names: Sequence[str],
    values: Callable[[str], Sequence[Any]],
    images: Callable[[str, Labels], EncodedImages | ArrayImages],
    options: SourceOptions,
    *,
    class_names: tuple[str, ...] | None = None,
) -> Listing:
    """Return the listing of a source that has a label for each image.

    Args:
        origin: name, key and notes.
        names: of all splits.
        values: returns the labels of a split, of any kind, -1 or None where there are none.
        images: makes the images of a split, from its labels as numbers.
        options: with the names of the splits, if they are given.
        class_names: of a ClassLabel column.

    Raises:
        UserError: a split or a label is missing or wrong.
    """
    read = cache(values)
    chosen = splits.choose(names, lambda name: labelled(read(name)), options, origin.source)
    used = [chosen.train, *([chosen.test] if chosen.test else [])]
    shown, labels = as_classes({name: read(name) for name in used}, class_names, origin.source)
    notes = [*origin.notes, *chosen.notes, *_compared(shown, [labels[name] for name in used])]
    made = {name: images(name, labels[name]) for name in used}
    test = made[chosen.test] if chosen.test else None
    return Listing(origin.name, shown, made[chosen.train], test, chosen.test or "", origin.key, tuple(notes))


def _compared(names: tuple[str, ...], labels: Sequence[Labels]) -> list[str]:
    """Return notes on classes that only the evaluation split has, and on names that are alike."""
    notes = [f"class names: {splits.difference(one, other)}" for one, other in splits.alike(names)]
    trained, *evaluated = (set(np.unique(part).tolist()) for part in labels)
    if new := sorted(set().union(*evaluated) - trained):
        notes.append(f"no training images of {splits.few(names[k] for k in new)}, which are evaluated")
    return notes


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
    if str in (kinds := {type(value) for value in seen}) and len(kinds) > 1:
        raise UserError(f"{where}: some labels are names and some are numbers: make them one kind")
    fractions = [value for value in seen if isinstance(value, float) and not value.is_integer()]
    if fractions:
        raise UserError(f"{where}: the labels are fractions, as {fractions[0]}: name classes by --data.label-column")
    classes = sorted(seen)
    number = {value: k for k, value in enumerate(classes)}
    shown = tuple(str(int(value) if isinstance(value, float) else value) for value in classes)
    return shown, {
        split: np.fromiter(map(number.__getitem__, found), np.int64, len(found)) for split, found in columns.items()
    }


def translated(
    found: Sequence[Any], own: Sequence[str] | None, names: tuple[str, ...] | None, where: str
) -> Sequence[Any]:
    """Return a split's labels as positions in the training split's class names, which may be others than its own.

    Args:
        found: positions in `own`; without it, names, or positions in `names`.
        own: class names of the split's ClassLabel column; None where it has a column of another kind.
        names: those of the training split; None where the values of its column are the names.
        where: begins error messages.

    Raises:
        UserError: a label's name is none of the training split's.
    """
    if names is None or (own is not None and tuple(own) == names):
        return found
    number = {name: k for k, name in enumerate(names)}
    named = [own[label] if own and label in range(len(own)) else label for label in found]
    if new := {name for name in named if isinstance(name, str) and name} - number.keys():
        known = splits.few(names)
        raise UserError(f"{where} has the class {splits.few(sorted(new))}, and the training split has {known}")
    return [number.get(name, name) for name in named]


def _checked(found: Sequence[Any], num_classes: int, where: str) -> Labels:
    """Return labels as (N,) int64, after a check that all are in [0, num_classes)."""
    labels = np.array([-1 if label in NO_LABEL else label for label in found], np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        index = int(wrong[0])
        raise UserError(f"{where}[{index}] has label {found[index]!r}; labels must be from 0 to {num_classes - 1}")
    return labels
