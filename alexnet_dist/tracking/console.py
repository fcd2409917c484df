"""What a run prints: the run card, a progress bar, a line per epoch, the result card. Silent on every rank but 0."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from alexnet_dist.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping


LINE_SECONDS = 30.0  # between two progress lines where there is no terminal


class Console:
    """Prints on rank 0.

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
        """Print a titled table of facts."""
        width = max(map(len, rows))
        lines = [
            f"-- {title} ".ljust(78, "-"),
            *(f"{name:<{width}}  {value}" for name, value in rows.items()),
            "-" * 78,
        ]
        self.print("\n".join(lines))

    def start_epoch(self, epoch: int, epochs: int, *, steps: int, done: int) -> None:
        """Open the epoch's progress bar; where output is not a terminal there is a plain line now and then instead."""
        if self.enabled and sys.stderr.isatty():
            self._bar = tqdm(total=steps, initial=done, desc=f"epoch {epoch}/{epochs}", unit="step", leave=False)

    def step(self, record: Mapping[str, Any] | None, *, step: int, last_step: int) -> None:
        """Show one more optimizer step, and the record that it ends, if it ends one."""
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
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def warn(self, text: str) -> None:
        """Print a warning that stands out."""
        if self.enabled:
            tqdm.write(f"\n{'!' * 78}\nWARNING: {text}\n{'!' * 78}\n", file=sys.stderr)
