"""What a run folder holds: its records, summary, configuration and evaluation, and their values in words.

Reads files and believes none of them: what is missing, torn, of another kind or of an older version is left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import yaml

from alexnet_dist.config import flat
from alexnet_dist.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

Record = dict[str, Any]

Item = dict[str, Any]  # what the template, or the page's script, reads
Point = tuple[float, float]
MOST_COUNTED = 2**53  # beyond it, JavaScript rounds
STATUS = {
    "finished": "finished",
    "max_steps": "ended early, at --max-steps",
    "stopped": "stopped; the same command continues it",
    "non-finite": "ended by a NaN",
    "failed": "failed",
}
EARLIER = "an earlier part of the run: it trains on, or was killed"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run folder holds."""

    name: str
    folder: Path
    config: Record
    """Flat, such as `{"data.batch_size": 64}`; empty if config.yaml cannot be read."""
    summary: Record
    """Empty for a run without summary.json."""
    records: list[Record]
    """metrics.jsonl: each has numbers as `global_step` and `epoch`."""
    evaluation: Record
    """Empty, or evaluation.json with a square matrix and a name for each of its rows."""

    @property
    def steps_per_epoch(self) -> float | None:
        """Return what places a step on the axis of epochs; None before anything tells."""
        counted = (
            r["global_step"] / r["epoch"] for r in self.records if finite(r.get("val/loss")) is not None and r["epoch"]
        )
        return finite(self.summary.get("steps_per_epoch")) or next(counted, None) or None

    @property
    def class_names(self) -> list[str]:
        """Return the names of the evaluation's classes; none without one."""
        return [str(name) for name in self.evaluation.get("class_names", [])]

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes, from whatever names it."""
        keys = {key for record in self.records for key in record if key.startswith("per_class/")}
        found = finite(self.summary.get("num_classes")) or len(self.class_names) or len(keys)
        return int(found) if found >= 2 else None

    @property
    def epochs(self) -> int:
        """Return how many epochs were asked for, or at least are there."""
        return int(finite(self.config.get("epochs")) or max((r["epoch"] for r in self.records), default=0))

    @property
    def state(self) -> str:
        """Return the status in words; a summary older than the last record is that of an earlier part of the run."""
        if not self.summary:
            return "no summary yet: it still trains, or was killed"
        status = str(self.summary.get("status", "unknown"))
        step = finite(self.summary.get("global_step"))
        if step is not None and self.records and self.records[-1]["global_step"] > step:
            return f"{STATUS.get(status, 'ended')} in {EARLIER}"
        return STATUS.get(status, status)

    @property
    def best(self) -> tuple[float, int] | None:
        """Return the best top-1 and its epoch, the first of equals."""
        found = [(r["val/top1"], int(r["epoch"])) for r in self.records if finite(r.get("val/top1")) is not None]
        if found:
            return max(found, key=lambda pair: (pair[0], -pair[1]))
        recorded = finite(self.summary.get("best_top1"))
        return None if recorded is None else (recorded, int(finite(self.summary.get("best_epoch")) or 0))

    def points(self, key: str, *, by_step: bool = False) -> list[Point]:
        """Return a metric over epochs, or over steps."""
        steps = 1.0 if by_step else self.steps_per_epoch or 1.0
        found = ((record["global_step"] / steps, finite(record.get(key))) for record in self.records)
        return [(x, value) for x, value in found if value is not None]

    def last(self, key: str) -> float | None:
        """Return a metric's last value."""
        values = (finite(record.get(key)) for record in reversed(self.records))
        return next((value for value in values if value is not None), None)

    def ended(self, epoch: int) -> Record:
        """Return what was recorded at an epoch's end; empty before it."""
        found = (r for r in reversed(self.records) if r["epoch"] == epoch and "val/top1" in r)
        return next(found, {})


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: there is no such folder, or no metrics.jsonl in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        raise UserError(f"{folder} holds no metrics.jsonl: name a run folder, such as one below runs/") from None
    except OSError as error:
        raise UserError(f"{folder}/metrics.jsonl cannot be read: {error}") from None
    evaluation = _parse(_text(folder / "evaluation.json"))
    return Run(
        name=folder.resolve().name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        summary=_parse(_text(folder / "summary.json")),
        records=[record for record in map(_parse, lines) if _is_record(record)],  # the last line may be torn
        evaluation=evaluation if _is_evaluation(evaluation) else {},
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parse(text: str) -> Record:
    """Return a JSON object; empty if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_config(path: Path) -> Record:
    try:
        nested = yaml.safe_load(_text(path))
        return flat({str(key): value for key, value in nested.items()}) if isinstance(nested, dict) else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}


def _is_record(record: Record) -> bool:
    return all(finite(record.get(key)) is not None for key in ("global_step", "epoch"))


def _is_evaluation(evaluation: Record) -> bool:
    names, rows = evaluation.get("class_names"), evaluation.get("confusion")
    if not isinstance(names, list) or not isinstance(rows, list) or len(rows) != len(names) or not names:
        return False
    return all(
        isinstance(row, list)
        and len(row) == len(names)
        and all(isinstance(n, int) and 0 <= n < MOST_COUNTED for n in row)
        for row in rows
    )


def finite(value: object) -> float | None:
    """Return a finite number, or None: files may hold anything."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Choose at most so many items evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def shorten(value: object) -> str:
    """Return a value as text; of an absolute path only its last part, which tells nothing about the machine."""
    if isinstance(value, list):
        return ", ".join(map(shorten, value)) or "none"
    text = str(value).lower() if value is None or isinstance(value, bool) else str(value)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(text).is_absolute():
            return f".../{kind(text).name}"
    return text
