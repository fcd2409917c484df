"""Reading of a run folder: the records of metrics.jsonl, summary.json, config.yaml and evaluation.json.

The files are not trusted: what is missing, torn or of another type is left out.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from alexnet_dist.config import flat
from alexnet_dist.errors import UserError
from alexnet_dist.text import NOTHING

JsonObject = dict[str, Any]
"""What a file of the run folder holds, or what the template or the page's script reads."""
MOST_STEPS = 6_000  # records of a run, besides those of epochs' ends, that are kept in memory
MOST_COUNTED = 2**53  # JavaScript rounds larger integers
STATUS = {  # in words, where the word itself is not enough
    "max_steps": "ended early, at --max-steps",
    "stopped": "stopped; the same command continues it",
    "non-finite": "ended by a NaN",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The content of one run folder."""

    name: str
    folder: Path
    config: JsonObject
    """Flat, such as `{"data.batch_size": 64}`; empty if config.yaml cannot be read."""
    summary: JsonObject
    """Empty for a run without summary.json."""
    records: list[JsonObject]
    """metrics.jsonl, as `thinned` leaves it: each has numbers as `global_step` and `epoch`."""
    evaluation: JsonObject
    """Empty, or evaluation.json with a square matrix and a name for each of its rows."""

    @property
    def steps_per_epoch(self) -> float | None:
        """Return the number of steps an epoch, from the summary or the first evaluation; None before it."""
        counted = (r["global_step"] / r["epoch"] for r in self.records if "val/top1" in r and r["epoch"])
        return finite(self.summary.get("steps_per_epoch")) or next(counted, None) or None

    @property
    def class_names(self) -> list[str]:
        """Return the names of the classes; empty before the first evaluation."""
        return [str(name) for name in self.evaluation.get("class_names", [])]

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes; None before the first evaluation."""
        found = finite(self.summary.get("num_classes")) or len(self.class_names)
        return int(found) if found >= 2 else None

    @property
    def epochs(self) -> int:
        """Return the number of epochs that the configuration asks for; without one, of those begun."""
        return int(finite(self.config.get("epochs")) or max((r["epoch"] for r in self.records), default=0))

    @property
    def state(self) -> str:
        """Return the status in words; a summary older than the last record belongs to an earlier part of the run."""
        if not self.summary:
            return "no summary yet: it still trains, or was killed"
        status = str(self.summary.get("status", "unknown"))
        step = finite(self.summary.get("global_step"))
        if step is not None and self.records and self.records[-1]["global_step"] > step:
            return f"{STATUS.get(status, status)} in an earlier part of the run: it trains on, or was killed"
        return STATUS.get(status, status)

    @property
    def best(self) -> tuple[float, int] | None:
        """Return the best top-1 in [0, 1] and its epoch, the first of equals; None before the first evaluation."""
        found = [(top1, int(r["epoch"])) for r in self.records if (top1 := finite(r.get("val/top1"))) is not None]
        return max(found, key=lambda pair: (pair[0], -pair[1]), default=None)

    def points(self, key: str, *, by_step: bool = False) -> list[tuple[float, float]]:
        """Return a metric as (x, value), x in epochs or in steps."""
        steps = 1.0 if by_step else self.steps_per_epoch or 1.0
        return [(r["global_step"] / steps, y) for r in self.records if (y := finite(r.get(key))) is not None]

    def last(self, key: str) -> float | None:
        """Return a metric's last value; None if it was never recorded."""
        return next((value for r in reversed(self.records) if (value := finite(r.get(key))) is not None), None)

    @cached_property
    def ended(self) -> dict[float, JsonObject]:
        """Return the records of epochs' ends by epoch."""
        return {r["epoch"]: r for r in self.records if "val/top1" in r}


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: there is no such folder, or no metrics.jsonl in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    try:
        with (folder / "metrics.jsonl").open("rb") as lines:
            records = thinned(map(_parse, lines))
    except OSError as error:
        reason = f"{folder} holds no metrics.jsonl that can be read ({error.strerror})"
        raise UserError(f"{reason}: name a run folder, such as one below runs/") from None
    evaluation = _parse(content(folder / "evaluation.json"))
    return Run(
        name=folder.resolve().name,
        folder=folder,
        config=_parse(content(folder / "config.yaml"), _flat_yaml),
        summary=_parse(content(folder / "summary.json")),
        records=records,
        evaluation=evaluation if _is_evaluation(evaluation) else {},
    )


def thinned(records: Iterable[JsonObject]) -> list[JsonObject]:
    """Return all records of epochs' ends and at most `MOST_STEPS` others, evenly spaced, the last among them.

    One without numbers as its step and epoch is left out: the last line of a file may be torn.
    """
    ends: list[JsonObject] = []
    steps: list[JsonObject] = []
    last: list[JsonObject] = []
    number, every = 0, 1
    for record in records:
        if None in map(finite, (record.get("global_step"), record.get("epoch"))):
            continue
        if "val/top1" in record:
            ends.append(record)
            continue
        if number % every == 0:
            steps.append(record)
        number, last = number + 1, [record]
        if len(steps) > MOST_STEPS:
            del steps[1::2]
            every *= 2
    more = last if (number - 1) % every else []
    return sorted(steps + more + ends, key=lambda record: float(record["global_step"]))


def content(path: Path) -> bytes:
    """Return a file's content; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def _parse(text: bytes, load: Callable[[bytes], object] = json.loads) -> JsonObject:
    """Return a text's mapping, JSON or what `load` reads; empty if it holds none."""
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        if isinstance(value := load(text), dict):
            return value
    return {}


def _flat_yaml(text: bytes) -> JsonObject | None:
    """Return the options of config.yaml, flat; None if it holds no mapping."""
    nested = yaml.safe_load(text)
    return flat(nested) if isinstance(nested, dict) else None


def _is_evaluation(evaluation: JsonObject) -> bool:
    """Return whether evaluation.json holds a square matrix of counts and a name for each of its rows."""
    names, rows = evaluation.get("class_names"), evaluation.get("confusion")
    if not (isinstance(names, list) and isinstance(rows, list) and len(rows) == len(names) > 0):
        return False
    square = all(isinstance(row, list) and len(row) == len(names) for row in rows)
    return square and all(isinstance(n, int) and 0 <= n < MOST_COUNTED for row in rows for n in row)


def finite(value: object) -> float | None:
    """Return a finite number; None for anything else that a file may hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None  # NaN, infinities, integers of hundreds of digits


def number(value: object, spec: str = ",.0f") -> str:
    """Return a finite number by its format specification; a dash for anything else."""
    found = finite(value)
    return NOTHING if found is None else format(found, spec)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def shorten(value: object) -> str:
    """Return a value of the configuration as text; of an absolute path only the last part, which names no machine."""
    if isinstance(value, list):
        return ", ".join(map(shorten, value)) or "none"
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return f".../{kind(text).name}"
    return text
