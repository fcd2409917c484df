"""Weights & Biases and TensorBoard: where records go besides the run folder. The only place that imports wandb.

A tracker takes the same numbers under the same keys as metrics.jsonl, and pictures and tables besides. Rank 0 alone has
trackers; runlog.py calls them on a thread, where a failure or a hang of theirs is no matter of the run.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Picture = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)

Record = dict[str, Any]

Level = Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True)
class Media:
    """What belongs to a record and is no number."""

    pictures: Mapping[str, Picture] = field(default_factory=dict)
    """(H, W, 3) uint8, by name."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """Of some pictures."""
    histograms: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(N,) values each."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint as something to publish."""

    data_name: str
    path: Path
    """A safetensors file."""
    texts: Mapping[str, str]
    """Further files: their names and contents."""
    facts: Record
    """Epoch, step, accuracy."""
    aliases: tuple[str, ...]
    """best, latest."""


class Tracker:
    """Where records go besides the run folder. A tracker that has no use for something leaves it."""

    where = ""
    """What the run card says of it."""
    resend = ""
    """The command that sends what it could not take."""
    may_lack = False
    """Whether records from before a resume may not have reached it."""
    shared_id: str | None = None
    """What the other ranks join, where they record too."""

    def log(self, record: Record) -> None:
        """Take a record of numbers."""

    def show(self, record: Record, media: Media) -> None:
        """Take what belongs to a record and is no number."""

    def confusion(self, record: Record, counts: npt.NDArray[np.int64], class_names: Sequence[str]) -> None:
        """Take a confusion matrix, (C, C), whose rows are the true classes."""

    def table(self, record: Record, name: str, rows: Sequence[Record]) -> None:
        """Take a table; values are numbers, text, or pictures, (H, W, 3) uint8."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """Tell somebody at once."""

    def publish(self, weights: Weights) -> None:
        """Take a checkpoint's weights."""

    def summary(self, summary: Record) -> None:
        """Take the run's results."""

    def preempted(self) -> None:
        """Take it that the run will be continued."""

    def close(self, exit_code: int) -> None:
        """Finish what is under way."""
