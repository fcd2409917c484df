"""Tracker: the interface to W&B and TensorBoard, and the types of what they are given.

A tracker gets the numbers of metrics.jsonl under the same keys, and pictures and tables besides. RunLogger calls all
trackers on one thread. A tracker that raises is dropped; a call that hangs is abandoned at the end of the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Record = dict[str, Any]  # of a step or an epoch: numbers by name, with `global_step` and `epoch`
Level = Literal["INFO", "WARN", "ERROR"]  # of an alert


@dataclass(frozen=True)
class Media:
    """Pictures and histograms that belong to one record."""

    pictures: Mapping[str, Any] = field(default_factory=dict)
    """By name, (H, W, 3) uint8 where they are drawn. A tracker gets PNG files, so that what waits for it is small."""
    captions: Mapping[str, str] = field(default_factory=dict)
    """Captions of some pictures, by the pictures' names."""
    histograms: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(N,) values of each histogram, by name."""


@dataclass(frozen=True)
class Weights:
    """A checkpoint's weights, with the other contents of W&B's artifact."""

    data_name: str
    """The data set's name."""
    path: Path
    """The safetensors file."""
    texts: Mapping[str, str]
    """Contents of further files, by file name."""
    facts: Record
    """Epoch, step and top-1, the artifact's metadata."""
    aliases: tuple[str, ...]
    """Names of this version of the artifact: best, latest."""


class Tracker:
    """Base class of trackers; each method does nothing, so that a tracker defines only those that it needs."""

    where = ""
    """Place of the tracker's records, for the run card."""
    resend = ""
    """Command that sends later what is not sent when the run ends; empty without one."""
    shared_id: str | None = None
    """Id of the W&B run that the other ranks join; None without `--wandb.shared`."""

    def replay(self, records: Sequence[Record]) -> None:
        """Send the last records from before a resume again, if a killed process may not have sent them."""

    def log(self, record: Record) -> None:
        """Send a record of numbers."""

    def show(self, record: Record, media: Media) -> None:
        """Send the pictures, as PNG files, and the histograms of a record."""

    def confusion(self, record: Record, counts: npt.NDArray[np.int64], class_names: Sequence[str]) -> None:
        """Send a confusion matrix, (C, C), whose rows are the true classes."""

    def table(self, record: Record, name: str, rows: Sequence[Record]) -> None:
        """Send a table, a dictionary per row; values are numbers, text, or pictures, (H, W, 3) uint8."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """Send an alert, which reaches a person by mail or chat."""

    def publish(self, weights: Weights) -> None:
        """Send a checkpoint's weights."""

    def summary(self, summary: Record) -> None:
        """Send the run's results."""

    def preempted(self) -> None:
        """Mark the run as preempted, for a scheduler to start it again."""

    def close(self, exit_code: int) -> None:
        """Send what waits in memory, and end the run with the exit code of its process."""
