"""Signals and requests that arrive in the middle of a run, agreed between ranks so that all act at the same step.

SIGTERM and SIGINT ask for a checkpoint and the end, SIGUSR1 and a file `RUN/save` for a checkpoint. The same signal a
second time does at once what it does in any program; SIGTERM only after a while.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist  # noqa: TID251 - a group of CPU messages beside the one for gradients

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path
    from types import FrameType

    from accelerate import Accelerator

REQUEST = "save"
REPEAT_SECONDS = 5.0  # in which SIGTERM is the same one: schedulers signal all processes, and launchers pass theirs on
LOOK_SECONDS = 1.0  # between two looks for the file: a network file system answers in milliseconds


class Wish(IntEnum):
    """What to do after the current step; of several wishes the largest counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


WISHES = {"SIGTERM": Wish.STOP, "SIGINT": Wish.STOP, "SIGUSR1": Wish.SAVE}


class StoppedError(Exception):
    """The run was asked to end and has saved its state."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)

    @property
    def exit_code(self) -> int:
        """What shells report for a program that a signal ended."""
        return 128 + self.signal


class Interrupts:
    """Collects this rank's wishes and agrees on them with the others.

    Args:
        accelerator: whose ranks agree.
        folder: the run folder, where rank 0 looks for the request.
        timeout: after which a rank that does not answer is given up.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, *, timeout: timedelta) -> None:
        self.wish = Wish.NOTHING
        """What all ranks agreed on and nobody has answered yet."""
        self.signal = signal.SIGTERM
        """The signal that asked for the end, if it came to this rank."""
        self._request = folder / REQUEST if accelerator.is_main_process else None
        self._own: queue.SimpleQueue[Wish] = queue.SimpleQueue()  # made for signal handlers: nothing is lost in between
        self._seen: dict[int, float] = {}  # when each signal first came
        self._looked = 0.0
        # Gradients may travel over NCCL, whose results only the device can wait for: this group is the host's.
        several = accelerator.num_processes > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if several else None
        self._pending: tuple[torch.Tensor, Any] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals until the block ends; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        known = [number for number in signal.Signals if number.name in WISHES]
        before = {number: signal.signal(number, self._take) for number in known}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        wish = WISHES[signal.Signals(number).name]
        if wish is Wish.STOP:
            patience = REPEAT_SECONDS if number == signal.SIGTERM else 0.0
            now = time.monotonic()
            # A launcher turns Ctrl-C into SIGTERM too, so one of each is still the first time.
            if number in self._seen and now - self._seen[number] >= patience:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._seen.setdefault(number, now)
            self.signal = signal.Signals(number)
        self.ask(wish)

    def ask(self, wish: Wish) -> None:
        """Note a wish of this rank; any thread may call it."""
        self._own.put(wish)

    def stop(self) -> None:
        """Note a person's wish to end the run, as SIGINT does; any thread may call it."""
        self.signal = signal.SIGINT
        self.ask(Wish.STOP)

    def _asked(self) -> Wish:
        """Return the largest wish since the last call."""
        largest = Wish.NOTHING
        while not self._own.empty():
            largest = max(largest, self._own.get_nowait())
        return largest

    def agree(self) -> Wish:
        """Bring `wish` up to date and return it. Every rank must call it, after every step.

        A rank's wish counts one step later, with everyone: the message travels while the next step is computed.
        """
        self._look()
        if self._group is None:
            self.wish = max(self.wish, self._asked())
        else:
            self.wish = max(self.wish, self._arrived())
            mine = torch.tensor(int(self._asked()))
            self._pending = (mine, dist.all_reduce(mine, dist.ReduceOp.MAX, group=self._group, async_op=True))
        return self.wish

    def answered(self) -> None:
        """Forget a wish that was fulfilled.

        Raises:
            StoppedError: it was to end.
        """
        if self.wish is Wish.STOP:
            raise StoppedError(self.signal)
        self.wish = Wish.NOTHING

    def _arrived(self) -> Wish:
        if self._pending is None:
            return Wish.NOTHING
        agreed, work = self._pending
        self._pending = None
        work.wait()
        return Wish(int(agreed))

    def _look(self) -> None:
        if self._request is None or time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if self._request.exists():
            self._request.unlink(missing_ok=True)
            self.ask(Wish.SAVE)
