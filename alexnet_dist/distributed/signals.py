"""Signals and requests in the middle of a run, agreed between ranks so that all act at the same step, and RunControl.

SIGTERM and SIGINT ask for a checkpoint and the end, SIGUSR1 and a file `RUN/save` for a checkpoint. The same signal a
second time ends the process at once, as in any program; SIGTERM only after REPEAT_SECONDS. RunControl joins them with
the watchdog, in one object that the train command makes.
"""

import contextlib
import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist  # noqa: TID251 - a group of CPU messages beside the one for gradients
from accelerate import Accelerator

from alexnet_dist.distributed.watchdog import LostRankError, Watchdog

T = TypeVar("T")
REPEAT_SECONDS = 5.0
"""Time in which a second SIGTERM counts as the first: schedulers signal all processes, and launchers pass theirs on."""
GRACE_SECONDS = 10.0
"""Time that a disk has to answer after a stop, where several ranks wait for it: launchers kill after 30 s."""
LOOK_SECONDS = 1.0
"""Time between two looks for the file: a network file system answers in milliseconds."""


class Request(IntEnum):
    """What to do after the current step; of several requests the largest counts."""

    NONE = 0
    SAVE = 1
    STOP = 2
    """Save, then end with the signal's exit code."""
    ABORT = 3
    """End with the error of a checkpoint that could not be written in the background."""


BY_SIGNAL = {signal.SIGTERM: Request.STOP, signal.SIGINT: Request.STOP, signal.SIGUSR1: Request.SAVE}


class StoppedError(Exception):
    """The run was asked to end and has saved its state."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.exit_code = 128 + number
        """The exit code that shells report for a program that a signal ended."""
        super().__init__(self.signal.name)


class Requests:
    """This rank's requests, from signals, files and other threads, and the one that all ranks agreed on.

    Args:
        accelerator: whose ranks agree.
        folder: the run folder, where rank 0 looks for the request.
        timeout: after which a rank that does not answer is given up.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, *, timeout: timedelta) -> None:
        self.agreed = Request.NONE
        """The request that all ranks agreed on and that is not fulfilled yet."""
        self.signal = signal.SIGTERM
        """The signal that asked for the end, if it came to this rank."""
        self.stop_asked = math.inf
        """When this rank was first asked for the end, by `time.monotonic`."""
        self._file = folder / "save" if accelerator.is_main_process else None
        # A SimpleQueue is made for signal handlers: nothing is lost where one interrupts a `get`.
        self._own: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._seen: dict[int, float] = {}  # when each signal first came
        self._looked = 0.0
        # Gradients may travel over NCCL, whose results only the device can wait for: this group is the host's.
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if accelerator.num_processes > 1 else None
        self._pending: tuple[torch.Tensor, Any] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals until the block ends; only the main thread can."""
        can_listen = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._take) for number in BY_SIGNAL if can_listen}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _frame: object) -> None:
        request = BY_SIGNAL[signal.Signals(number)]
        if request is Request.STOP:
            patience = REPEAT_SECONDS if number == signal.SIGTERM else 0.0
            now = time.monotonic()
            # A launcher turns Ctrl-C into SIGTERM too, so one of each is still the first time.
            if number in self._seen and now - self._seen[number] >= patience:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._seen.setdefault(number, now)
            self.signal = signal.Signals(number)
        self.ask(request)

    def ask(self, request: Request) -> None:
        """Add a request of this rank; any thread may call it."""
        if request is Request.STOP:
            self.stop_asked = min(self.stop_asked, time.monotonic())
        self._own.put(request)

    def stop(self) -> None:
        """Ask for the end as a person does, by SIGINT; any thread may call it."""
        self.signal = signal.SIGINT
        self.ask(Request.STOP)

    def sync(self) -> Request:
        """Bring `agreed` up to date and return it. Every rank must call it, after every step.

        A rank's request counts one step later, on all ranks: the message travels while the next step is computed.
        """
        # ---- this rank's largest request since the last call
        asked = Request.NONE
        if self._file is not None and time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            if self._file.exists():
                self._file.unlink(missing_ok=True)
                asked = Request.SAVE
        while not self._own.empty():
            asked = max(asked, self._own.get_nowait())

        # ---- the largest of all ranks
        if self._group is None:
            self.agreed = max(self.agreed, asked)
            return self.agreed
        if self._pending is not None:
            largest, work = self._pending
            work.wait()
            self.agreed = max(self.agreed, Request(int(largest)))
        mine = torch.tensor(int(asked))
        self._pending = (mine, dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True))
        return self.agreed

    def raise_if_stop(self) -> None:
        """Clear the agreed request, whose checkpoint is written.

        Raises:
            StoppedError: it was to end the run.
        """
        if self.agreed is Request.STOP:
            raise StoppedError(self.signal)
        self.agreed = Request.NONE


class RunControl:
    """What may end or interrupt a run, agreed between its ranks. Every rank must make one.

    Args:
        accelerator: whose ranks agree and watch each other.
        folder: the run folder, where rank 0 looks for a request.
        timeout: without progress, after which ranks are given up.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, *, timeout: timedelta) -> None:
        self._rank, self._num_ranks = accelerator.process_index, accelerator.num_processes
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

    def watch(self, model: torch.nn.Module) -> None:
        """Count each forward pass as progress: a rank that hangs in its own is then behind those in the all-reduce."""
        if self._num_ranks > 1:
            model.register_forward_hook(lambda *_: self._watchdog.progress())

    def waiting(self, seconds: float, file: Callable[[], str]) -> bool:
        """Count the wait for images as progress, and return whether a request ends it. See `PhotoLoader`.

        A rank that waits for its disk does not hang. One process is then between two steps, whose state can be saved.
        Of several, the others may be within the next one, which they cannot leave.

        Args:
            seconds: in which no image has come.
            file: returns the one that is waited for; its name may lie on a disk that does not answer.

        Raises:
            LostRankError: of several ranks this one was asked to stop, and its disk does not answer.
        """
        self._watchdog.progress()
        if self._num_ranks == 1:
            return self.requests.sync() >= Request.STOP
        if min(seconds, time.monotonic() - self.requests.stop_asked) > GRACE_SECONDS:
            asked = f"rank {self._rank} was asked to stop by {self.requests.signal.name}"
            raise LostRankError(
                f"{asked} and waits for {file()}, which does not come: the run goes on from its last checkpoint"
            )
        return False

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
            if self.after_step() >= Request.STOP:
                raise StoppedError(self.requests.signal)
