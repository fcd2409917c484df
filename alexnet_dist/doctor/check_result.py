"""Result of one preflight check, as it is printed, and a deadline for calls that have none. Imports no torch."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class CheckResult:
    """One line of the preflight."""

    level: Literal["ok", "warning", "error"]
    check: str
    """Name of the check, such as `disk`."""
    message: str
    """One line; for a warning or an error it ends with the remedy."""

    def __str__(self) -> str:
        return f"{self.level:<8} {self.check:<11}  {self.message}"


# Each takes the check's name and the message. The launch goes on after a warning; an error prevents it.
ok = partial(CheckResult, "ok")
warning = partial(CheckResult, "warning")
error = partial(CheckResult, "error")


def within(seconds: float, compute: Callable[[], T]) -> T:
    """Return what `compute` returns, on a thread that is abandoned at the deadline.

    Raises:
        TimeoutError: the deadline passed. What `compute` raises comes through.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(compute())
        except BaseException as fault:  # noqa: BLE001 - raised again by `result`
            future.set_exception(fault)

    threading.Thread(target=work, name="doctor", daemon=True).start()
    if not wait_for([future], timeout=seconds).done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return future.result()
