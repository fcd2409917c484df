"""What checks share, without torch: their printed result, the nodes of the launch, a deadline for calls without one."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class CheckResult:
    """Result of one check, a line of the preflight's output."""

    level: Literal["ok", "warning", "error"]
    check: str
    """Name of the check, such as `disk`."""
    message: str
    """Text of one line; that of a warning or an error ends with the remedy."""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.check:<11}  {self.message}"


# Arguments: the check's name and the message. A launch goes on after a warning; an error prevents it.
ok = partial(CheckResult, "ok")
warning = partial(CheckResult, "warning")
error = partial(CheckResult, "error")


@dataclass(frozen=True)
class Nodes:
    """Number of nodes of the launch, this node's rank, and the rendezvous address."""

    least: int
    most: int
    rank: int | None
    """Node rank; None for a node other than 0 that takes its arrival number."""
    host: str
    port: int
    launched: bool = False
    """Whether a launcher has formed the world already; its store is at `host` and `port`."""


def within(seconds: float, compute: Callable[[], T]) -> T:
    """Return the result of `compute`, called on a daemon thread that is abandoned at the deadline.

    Raises:
        TimeoutError: the deadline passed. Errors of `compute` are raised too.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(compute())
        except BaseException as fault:  # noqa: BLE001 - raised again by `result`
            future.set_exception(fault)

    threading.Thread(target=work, name="doctor", daemon=True).start()
    if not wait([future], timeout=seconds).done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return future.result()
