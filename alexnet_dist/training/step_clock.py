"""Cost of optimizer steps: how long each took, how much of it went into waiting for data, and peak memory."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch

from alexnet_dist.data import Batch


class StepClock:
    """Seconds since the last record, the share of them spent waiting for data, and the time of each step.

    Args:
        device: where steps are computed. On a GPU, events on the device mark the steps, as the host runs ahead of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Begin a new record."""
        self.started, self.waited = time.perf_counter(), 0.0
        self._marks = [self._mark()]

    def end_step(self) -> None:
        """Mark the end of a step."""
        self._marks.append(self._mark())

    def _mark(self) -> Any:  # noqa: ANN401 - seconds of the host's clock, or an event on the device
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch has no types there
        event.record()
        return event

    def step_ms(self) -> list[float]:
        """Return each step's milliseconds. On a GPU, call it after the device has been waited for."""
        steps = pairwise(self._marks)
        return [a.elapsed_time(b) for a, b in steps] if self._on_gpu else [1000 * (b - a) for a, b in steps]

    def timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the loader's batches and count the seconds that each was waited for."""
        iterator = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this rank's tensors have taken on a GPU, or that its process has on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # Linux counts in KiB
