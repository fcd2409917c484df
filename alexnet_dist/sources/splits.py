"""Splits: which split of a source trains and which one evaluates."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from alexnet_dist.errors import UserError, printable
from alexnet_dist.sources.listing import SourceOptions

TRAINING = ("train", "training")
EVALUATION = ("test", "testing", "validation", "valid", "val", "eval", "evaluation", "dev")  # the first one counts
KNOWN = (*TRAINING, *EVALUATION)


@dataclass(frozen=True)
class Chosen:
    """Names of the splits that are used, as the source spells them."""

    train: str
    test: str | None
    """None where no split with labels is left to evaluate on."""
    notes: tuple[str, ...]


def choose(
    names: Sequence[str],
    has_labels: Callable[[str], bool],
    options: SourceOptions,
    source: str,
    word: Callable[[str], str | None] = str.lower,
) -> Chosen:
    """Return the training and the evaluation split.

    Args:
        names: of all splits.
        has_labels: whether a split has any label; asked of evaluation splits until one has.
        options: with the names that the user gives.
        source: begins error messages.
        word: the word of a split's name, one of `TRAINING` or `EVALUATION`.

    Raises:
        UserError: there is no training split, or a split that the user names is missing or has no labels.
    """
    train = _named(options.train_split, "--data.train-split", names, source) or _training(names, source, word)
    notes: list[str] = []
    unlabelled: list[str] = []
    if test := _named(options.eval_split, "--data.eval-split", names, source):
        if test == train:
            raise UserError(f"{source}: --data.eval-split {test} is the training split: choose another")
        if not has_labels(test):
            raise UserError(f"{source}: the split {test} has no labels: choose another --data.eval-split")
    else:
        candidates = [
            (EVALUATION.index(str(word(name))), name) for name in names if word(name) in EVALUATION and name != train
        ]
        for _, name in sorted(candidates):
            if has_labels(name):
                test = name
                break
            unlabelled.append(name)
            notes.append(f"the split {name} has no labels and is passed over")
    rest = [name for name in names if name not in (train, test, *unlabelled)]
    if rest:
        flags = "--data.train-split, --data.eval-split"
        notes.append(f"{train} trains, {test or 'no split'} evaluates; left aside: {', '.join(rest)} ({flags})")
    return Chosen(train, test, tuple(notes))


def _named(name: str | None, flag: str, names: Sequence[str], source: str) -> str | None:
    """Return the split that a flag names, after a check that it exists; None if the flag is not given."""
    if name is not None and name not in names:
        raise UserError(f"{source}: {flag} {name}: there is no such split, but {', '.join(names) or 'none'}")
    return name


def _training(names: Sequence[str], source: str, word: Callable[[str], str | None]) -> str:
    """Return the training split by its name; a single split that is not named like an evaluation split trains too."""
    found = [name for name in names if word(name) in TRAINING]
    if len(found) > 1:
        raise UserError(f"{source}: {' and '.join(found)} are both training splits: name one by --data.train-split")
    if not found and len(names) == 1 and word(names[0]) not in EVALUATION:
        return names[0]
    if not found:
        has = ", ".join(names) or "none"
        raise UserError(f"{source}: needs the splits train and test, and has {has}: name them by --data.train-split")
    return found[0]


def split_word(path: str) -> str | None:
    """Return the split that a word of a relative path stands for, outer folders first: `train` of a/train-0.tar."""
    words = (word.lower() for word in re.split(r"[^A-Za-z]+", path))
    return next((word for word in words if word in KNOWN), None)


# ---- class names ----------------------------------------------------------------------------------------------------


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of different names that differ only by upper and lower case or by their Unicode form."""
    seen: dict[str, str] = {}
    pairs = []
    for name in sorted(set(names)):
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if (other := seen.setdefault(folded, name)) != name:
            pairs.append((other, name))
    return pairs


def difference(first: str, second: str) -> str:
    r"""Return how two names that are `alike` differ, both made visible: `caf\u00e9` and `cafe\u0301`."""
    if unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second):
        shown = (printable(name).encode("ascii", "backslashreplace").decode() for name in (first, second))
        return f"{' and '.join(shown)} are one name in two Unicode forms"
    return f"{printable(first)} and {printable(second)} differ by upper and lower case alone"


def few(names: Iterable[str], most: int = 5) -> str:
    """Return the first names, and how many more there are: `a, b, c, d, e and 12 more`."""
    listed = [printable(name) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
