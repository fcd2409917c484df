"""The watchdog: notices ranks that died or hang, names them, and ends the others.

A collective waits for all ranks, and on a GPU it does so where Python cannot interrupt it. So each rank has a thread
that writes the rank's progress into the launcher's store, reads that of the others, and ends the process when nothing
has moved for the timeout.
"""

import contextlib
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

from accelerate import Accelerator

from alexnet_dist.distributed.accelerator import from_main
from alexnet_dist.distributed.meeting import launchers_store
from alexnet_dist.errors import EXIT_FAILED, first_line

PERIOD = 1.0
"""Seconds between two messages to the store."""
SILENCE = 4
"""Periods without a message after which a rank counts as gone."""
COLLECTIVE = re.compile(r"gloo|nccl|connection (closed|reset)|timed out|pair closure", re.IGNORECASE)


class LostRankError(RuntimeError):
    """A rank died or hangs, and the others cannot go on."""


class Watchdog:
    """Writes this rank's progress for the other ranks, and watches theirs. Every rank must make one.

    Args:
        accelerator: whose ranks watch each other.
        timeout: without progress, after which the run ends.
    """

    def __init__(self, accelerator: Accelerator, *, timeout: timedelta) -> None:
        self._rank, self._num_ranks = accelerator.process_index, accelerator.num_processes
        self._timeout = timeout.total_seconds()
        self._period = min(PERIOD, self._timeout / 10)
        self._progress, self._moved, self._told = 0, time.monotonic(), 0
        self._messages: dict[int, str] = {}  # each rank's last one in the store
        self._heard: dict[int, float] = {}  # when this rank saw that message change, on its own clock
        self._over = threading.Event()
        if self._num_ranks > 1:
            self._store = launchers_store(timeout / 2)
            # The store may outlive restarts, which launchers count differently.
            run = from_main(accelerator, lambda: secrets.token_hex(8))
            self._keys = [f"alexnet_dist/{run}/{rank}" for rank in range(self._num_ranks)]
            self._tell()
            accelerator.wait_for_everyone()  # asking for what nobody has told would wait

    def progress(self) -> None:
        """Count a sign of progress. Called before each collective, so that a rank that hangs before it is behind."""
        self._progress += 1
        self._moved = time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends. The process ends with a message if all ranks wait for one.

        Raises:
            LostRankError: a collective in the block failed, because of the rank that it names.
        """
        if self._num_ranks == 1:
            yield
            return
        self.progress()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        except RuntimeError as error:
            if not COLLECTIVE.search(str(error)):
                raise
            time.sleep((SILENCE + 1) * self._period)  # by then a dead rank is silent
            raise LostRankError(self._finding() or f"a collective failed: {first_line(error)}") from error
        finally:
            self._over.set()
            thread.join(self._period)  # a store that does not answer holds the thread

    def _watch(self) -> None:
        reachable = True
        while not self._over.wait(self._period):
            try:
                if reachable:
                    self._tell()
                    self._listen()
            except RuntimeError:  # not asked again: it would never return. The age of all messages shows it
                reachable = False
            # A little later than the collectives' own timeout, whose exception lets the run end in good order.
            if time.monotonic() - self._moved > self._timeout + 2 * self._period:
                finding = self._finding() or f"no rank has moved for {self._timeout:.0f} s"
                print(f"error: {finding}", file=sys.stderr, flush=True)
                os._exit(EXIT_FAILED)

    def _tell(self) -> None:
        self._told += 1
        self._store.set(self._keys[self._rank], f"{self._told} {self._progress}")

    def _listen(self) -> None:
        for rank, answer in enumerate(self._store.multi_get(self._keys)):
            if self._messages.get(rank) != answer.decode():
                self._messages[rank], self._heard[rank] = answer.decode(), time.monotonic()

    def _finding(self) -> str | None:
        """Return which ranks the others wait for and why; None where all are heard of and equally far."""
        now = time.monotonic()
        ages = {rank: now - heard for rank, heard in self._heard.items()}
        silent = [rank for rank, age in ages.items() if age > SILENCE * self._period]
        if self._rank in silent or not self._heard:
            return "the store of the launcher does not answer: its host is dead or cut off"
        if silent:
            return f"{_named(silent)} not been heard of for {max(ages.values()):.0f} s: dead, stopped or cut off"
        progress = {rank: int(message.split()[1]) for rank, message in self._messages.items()}
        if behind := [rank for rank, number in progress.items() if number < max(progress.values())]:
            return f"{_named(behind)} not moved for {now - self._moved:.0f} s, and the others wait"
        return None


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} have"
