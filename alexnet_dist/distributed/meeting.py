"""The meeting: the ranks of a launch find each other before they prepare their data, and wait for each other after.

They meet at a key-value store, the launcher's or else rank 0's. A thread of each rank writes there that it lives: one
that is ready waits for one that still prepares, however long, and not for one that is dead or has failed.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import torch.distributed as dist  # noqa: TID251 - there is no group yet that Accelerate could have formed

from alexnet_dist.errors import UserError, first_line

PERIOD = 1.0
"""Seconds between two messages to the store; at first there are more, as most data sets are ready at once."""
SAY_AFTER = 30.0
"""Seconds until a rank says for whom it waits, and between two times."""
LAUNCHED = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""What a launcher of several processes sets."""


@contextlib.contextmanager
def meeting(timeout: timedelta) -> Iterator[Any]:
    """Find the other ranks, yield the store at which they meet, and wait until all have come out of the block.

    Every rank must call it. The store is None where this process was started alone.

    Args:
        timeout: for finding the others, and after which a rank counts as dead that is not heard of.

    Raises:
        UserError: the others are not found, or one of them failed in the block, or is dead, or the store is.
    """
    if not os.environ.keys() >= LAUNCHED or os.environ["WORLD_SIZE"] == "1":
        yield None
        return
    with finding_each_other(timeout):
        store = dist.PrefixStore(f"alexnet_dist/{_attempt()}", launchers_store(timeout, may_host=True))  # type: ignore[attr-defined]
        signs = _Signs(store, timeout)
    try:
        yield store
        signs.own = "ready"
        signs.wait_for_all()
    except BaseException as error:
        signs.own = f"failed: {first_line(error)}"
        raise
    finally:
        signs.over.set()
        signs.thread.join(2 * PERIOD)  # it tells the last news; a store that does not answer holds it


def _attempt() -> str:
    """Return what tells this restart's keys from those of the dead, in a store that the launcher keeps for all.

    Torch's own rendezvous takes it that each restart has a new one (`_create_c10d_store`), but `accelerate launch` has
    one alone. launch/multinode.sh has new ones, and launchers on several machines count restarts differently.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _launcher_keeps_it() else "0"


def _launcher_keeps_it() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


class _Signs:
    """Signs of life of all ranks: each rank's last message in the store, and when this rank saw it change.

    Args:
        store: of the launch.
        timeout: as of `meeting`.
    """

    def __init__(self, store: Any, timeout: timedelta) -> None:  # noqa: ANN401 - torch does not list its stores' types
        self.own = "preparing"
        self.over = threading.Event()
        self._store, self._timeout, self._told = store, timeout.total_seconds(), 0
        self._period = min(PERIOD, self._timeout / 10)
        self._keys = [f"rank {rank}" for rank in range(int(os.environ["WORLD_SIZE"]))]
        self._tell()
        store.wait(self._keys, timeout)  # for all to have told
        self._answers, self._heard = dict.fromkeys(self._keys, ""), dict.fromkeys(self._keys, time.monotonic())
        self.thread = threading.Thread(target=self._exchange, name="meeting", daemon=True)
        self.thread.start()

    def wait_for_all(self) -> None:
        """Wait until all ranks are ready. Only this process's memory is looked at: signals are answered at once."""
        say_at = time.monotonic() + SAY_AFTER
        while waited_for := [key for key, answer in self._answers.items() if not answer.endswith(" ready")]:
            now = time.monotonic()
            for rank in waited_for:
                if " failed: " in self._answers[rank]:
                    raise UserError(f"{rank} has{self._answers[rank].lstrip('0123456789')}")
                if now - self._heard[rank] > self._timeout:
                    silent = f"has not been heard of for {self._timeout:.0f} s"
                    raise UserError(f"{rank} {silent} while it prepared its data: see what its machine prints")
            if not self.thread.is_alive():
                raise UserError("the connection to the other processes is lost: see what their machines print")
            if now > say_at and os.environ.get("LOCAL_RANK", "0") == "0":
                say_at = now + SAY_AFTER
                told = f"waiting for {len(waited_for)} of {len(self._keys)} processes, which prepare their data"
                print(told, file=sys.stderr, flush=True)
            time.sleep(0.05)

    def _tell(self) -> None:
        self._told += 1
        self._store.set(self._keys[int(os.environ["RANK"])], f"{self._told} {self.own}")

    def _exchange(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is lost: `wait_for_all` sees that this thread has ended
            while not self.over.wait(min(self._period, 0.1 * self._told)):
                self._tell()
                for key, answer in zip(self._keys, self._store.multi_get(self._keys), strict=True):
                    if answer.decode() != self._answers[key]:
                        self._answers[key], self._heard[key] = answer.decode(), time.monotonic()
            self._tell()


@contextlib.contextmanager
def finding_each_other(timeout: timedelta) -> Iterator[None]:
    """Explain an error of the store or the group by which processes find each other.

    Raises:
        UserError: they were several and did not find each other.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        yield
    except RuntimeError as error:
        if started == 1:
            raise
        raise UserError(
            f"the {started} processes have not found each other within {timeout.total_seconds():.0f} s "
            f"({first_line(error)}): see what the other machines print, and whether a firewall lies between them"
        ) from error


def launchers_store(timeout: timedelta, *, may_host: bool = False) -> Any:  # noqa: ANN401 - torch does not list its stores' types
    """Return a connection to the launcher's key-value store.

    Args:
        timeout: after which a request fails.
        may_host: have rank 0 keep the store where the launcher does not.
    """
    hosts = may_host and os.environ["RANK"] == "0" and not _launcher_keeps_it()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    make = partial(dist.TCPStore, address, port, wait_for_workers=False, timeout=timeout)  # type: ignore[attr-defined]
    return make(is_master=hosts, multi_tenant=hosts)
