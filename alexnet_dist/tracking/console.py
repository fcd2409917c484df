"""Console: a run's output on the terminal, from rank 0 alone: cards, a progress bar, lines and warnings.

A pipe that is closed, a disk that is full or a terminal that is gone ends no run.
"""

import contextlib
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from alexnet_dist.text import duration

LINE_SECONDS = 30.0  # between two lines of progress, if stderr is no terminal


class Console:
    """Terminal output of rank 0; on other ranks each method does nothing.

    Args:
        enabled: whether this is rank 0.
        drop: whether what cannot be printed is dropped, as for a run, whose results are files.
    """

    def __init__(self, *, enabled: bool, drop: bool = False) -> None:
        self.enabled = enabled
        # ValueError: of a stream that was closed
        self._careful = contextlib.suppress(OSError, ValueError) if drop else contextlib.nullcontext()
        self._bar: Any = None
        self._last_line = time.perf_counter()

    def print(self, text: str) -> None:
        """Print a line to stdout, above the progress bar."""
        if self.enabled:
            with self._careful:
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()

    def card(self, title: str, rows: Mapping[str, object]) -> None:
        """Print a table of names and values under a title."""
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
        self.print("\n".join([f"-- {title} ".ljust(78, "-"), *lines, "-" * 78]))

    def start_epoch(self, epoch: int, epochs: int, *, steps: int, done: int) -> None:
        """Open the epoch's progress bar if stderr is a terminal; otherwise `step` prints a line every `LINE_SECONDS`.

        Args:
            epoch: number of the epoch, counted from 1.
            epochs: number of epochs of the run.
            steps: number of optimizer steps of the epoch.
            done: steps of the epoch that the run continues behind.
        """
        with self._careful:
            if self.enabled and sys.stderr.isatty():
                self._bar = tqdm(total=steps, initial=done, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False)

    def step(self, record: Mapping[str, Any] | None, *, step: int, last_step: int) -> None:
        """Show one more optimizer step and, of a record, loss, throughput and the remaining time.

        Args:
            record: of the step; None where the step has none.
            step: optimizer steps so far.
            last_step: optimizer steps of the whole run.
        """
        if self._bar is not None:
            with self._careful:
                self._bar.update()
        if record is None:
            return
        left = (last_step - step) * record["perf/step_ms"] / 1000
        rate = f"{record['perf/images_per_second']:,.0f} images/s"
        if self._bar is not None:
            with self._careful:
                self._bar.set_postfix_str(f"loss {record['train/loss']:.4f}, {rate}, run ends in {duration(left)}")
        elif time.perf_counter() - self._last_line >= LINE_SECONDS:
            self._last_line = time.perf_counter()
            self.print(f"step {step}/{last_step}  loss {record['train/loss']:.4f}  {rate}  {duration(left)} left")

    def end_epoch(self) -> None:
        """Close the progress bar, if one is open."""
        if self._bar is not None:
            with self._careful:
                self._bar.close()
            self._bar = None

    def warn(self, text: str) -> None:
        """Print a warning to stderr, between two lines of exclamation marks."""
        if self.enabled:
            with self._careful:
                tqdm.write(f"\n{'!' * 78}\nWARNING: {text}\n{'!' * 78}\n", file=sys.stderr)
