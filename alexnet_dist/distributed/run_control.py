"""Stop requests, save requests and the watchdog of a run, in one object that the train command makes."""

import contextlib
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from torch import nn

from alexnet_dist.distributed.signals import Request, Requests, StoppedError
from alexnet_dist.distributed.watchdog import Watchdog

T = TypeVar("T")


class RunControl:
    """What may end or interrupt a run, agreed between its ranks. Every rank must make one.

    Args:
        accelerator: whose ranks agree and watch each other.
        folder: the run folder, where rank 0 looks for a request.
        timeout: without progress, after which ranks are given up.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, *, timeout: timedelta) -> None:
        self._num_ranks = accelerator.num_processes
        self.requests = Requests(accelerator, folder, timeout=timeout)
        self._watchdog = Watchdog(accelerator, timeout=timeout)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Take signals and watch the other ranks until the block ends.

        Raises:
            LostRankError: a rank died or hangs.
        """
        with self.requests.listening(), self._watchdog.watching():
            yield

    def watch(self, model: nn.Module) -> None:
        """Count each forward pass as progress: a rank that hangs in its own is then behind those in the all-reduce."""
        if self._num_ranks > 1:
            model.register_forward_hook(lambda *_: self._watchdog.progress())

    def after_step(self) -> Request:
        """Return the request that all ranks agreed on. Every rank must call it after every step."""
        self._watchdog.progress()
        return self.requests.sync()

    def interruptible(self, loader: Collection[T], *, num_batches: int) -> Iterator[T]:
        """Yield a loader's batches, and end early where a stop is agreed on. Every rank must exhaust it.

        Args:
            loader: of this rank, which may have fewer batches than another: a small split's last one is not shared.
            num_batches: global batches of the split, the same on all ranks.

        Raises:
            StoppedError: on every rank, after the same batch; nothing is saved yet.
        """
        shares = iter(loader)
        for _ in range(num_batches):
            if (batch := next(shares, None)) is not None:
                yield batch
            if self.after_step() is Request.STOP:
                raise StoppedError(self.requests.signal)
