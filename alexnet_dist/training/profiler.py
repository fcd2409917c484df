"""A window of training steps under torch's profiler. Knows nothing about processes."""

import logging
from pathlib import Path

import torch
from torch.profiler import profile, schedule

logger = logging.getLogger(__name__)

SKIPPED, TRACED = 4, 3  # steps: the first ones allocate memory and choose kernels
ROWS = 60  # of the table


class Tracer:
    """Writes what a few steps are made of: `trace.json`, for ui.perfetto.dev, and `operators.txt`, the sums.

    Args:
        folder: where to; None traces nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.steps = 0
        self._profile: profile | None = None

    def step(self) -> None:
        """Count a training step that has ended; waits for the device where the window begins and ends."""
        if self.folder is None or self.steps >= SKIPPED + 1 + TRACED:
            return
        self.steps += 1
        if self._profile is None:
            window = schedule(wait=SKIPPED - 1, warmup=1, active=TRACED, repeat=1)
            self._profile = profile(schedule=window, on_trace_ready=self._write)
            self._profile.start()
        else:
            self._profile.step()
        if self.steps == SKIPPED + 1 + TRACED:
            self._profile.stop()

    def close(self) -> None:
        """Stop where the run was too short for the window, and say so."""
        if self.folder is None or self.steps >= SKIPPED + 1 + TRACED:
            return
        logger.warning("--profile needs %d steps and the run had %d", SKIPPED + 1 + TRACED, self.steps)
        if self._profile is not None:
            self._profile.on_trace_ready = None
            self._profile.stop()  # else the process would crash at its exit

    def _write(self, traced: profile) -> None:
        assert self.folder is not None
        self.folder.mkdir(mode=0o700, exist_ok=True)
        traced.export_chrome_trace(str(self.folder / "trace.json"))
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=key, row_limit=ROWS)
        (self.folder / "operators.txt").write_text(table, encoding="utf-8")
