"""Console: a run's output on the terminal, that is cards, a progress bar, lines and warnings, from rank 0 alone."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from alexnet_dist.text import duration

LINE_SECONDS = 30.0  # between two lines of progress where stderr is no terminal


class Console:
    """Terminal output of rank 0; on other ranks each method does nothing.

    Args:
        enabled: whether this is rank 0.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._bar: Any = None
        self._last_line = time.perf_counter()

    def print(self, text: str) -> None:
        """Print a line without tearing the progress bar."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def card(self, title: str, rows: Mapping[str, object]) -> None:
        """Print a table of names and values under a title."""
        width = max(map(len, rows))
        lines = [
            f"-- {title} ".ljust(78, "-"),
            *(f"{name:<{width}}  {value}" for name, value in rows.items()),
            "-" * 78,
        ]
        self.print("\n".join(lines))

    def start_epoch(self, epoch: int, epochs: int, *, steps: int, done: int) -> None:
        """Open the epoch's progress bar if stderr is a terminal; else `step` prints a line every `LINE_SECONDS`."""
        if self.enabled and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=done, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False)

    def step(self, record: Mapping[str, Any] | None, *, step: int, last_step: int) -> None:
        """Show one more optimizer step and, if a record is given, loss, throughput and the time that is left."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.update()
        if record is None:
            return
        left = (last_step - step) * record["perf/step_ms"] / 1000
        rate = f"{record['perf/images_per_second']:,.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {record['train/loss']:.4f}, {rate}, run ends in {duration(left)}")
        elif time.perf_counter() - self._last_line >= LINE_SECONDS:
            self._last_line = time.perf_counter()
            self.print(f"step {step}/{last_step}  loss {record['train/loss']:.4f}  {rate}  {duration(left)} left")

    def end_epoch(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def warn(self, text: str) -> None:
        """Print a warning to stderr, between two lines of exclamation marks."""
        if self.enabled:
            tqdm.write(f"\n{'!' * 78}\nWARNING: {text}\n{'!' * 78}\n", file=sys.stderr)
