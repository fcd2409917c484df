"""Deadlines that grow with the load of this machine, as a fixed piece of work measures it."""

import contextlib
import os
import signal
import subprocess
import time

IDLE_SECONDS = 0.1
"""What `work` takes on an idle core of the machine on which the tests' deadlines were chosen."""
STALE_SECONDS = 20
"""After so long a busy machine is measured again."""

_greatest, _measured_at = 1.0, float("-inf")


def work() -> None:
    """Add up numbers, in Python: what most tests wait for is an interpreter that starts and imports."""
    sum(number * number for number in range(1_500_000))


def slowness(*, measure: bool = False) -> float:
    """Return how many times slower than an idle machine this one was, at most, since these tests began; at least 1.

    It never falls, so that a deadline is no shorter than one that was set before. The work is timed at the first call,
    while the load average is above the number of cores, and where `measure` is set.
    """
    global _greatest, _measured_at  # noqa: PLW0603 - one measurement serves all tests of a process
    age = time.monotonic() - _measured_at
    is_busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    if measure or age == float("inf") or (is_busy and age > STALE_SECONDS):
        began = time.perf_counter()
        work()
        _greatest = max(_greatest, (time.perf_counter() - began) / IDLE_SECONDS)
        _measured_at = time.monotonic()
    return _greatest


def deadline(seconds: float) -> float:
    """Return how long this machine may take for what takes an idle one so many seconds."""
    return seconds * slowness()


class Deadline:
    """A moment so many seconds of an idle machine from now.

    Args:
        seconds: on an idle machine.
    """

    def __init__(self, seconds: float) -> None:
        self._idle_seconds, self._began = seconds, time.monotonic()
        slowness()

    @property
    def seconds(self) -> float:
        """Return how long this machine may take, as far as it has been measured."""
        return deadline(self._idle_seconds)

    def left(self) -> float:
        """Return the seconds that are left; before none are, the machine is measured again."""
        elapsed = time.monotonic() - self._began
        if elapsed > self.seconds:
            slowness(measure=True)
        return max(0.0, self.seconds - elapsed)

    def has_passed(self) -> bool:
        """Tell whether even a machine as slow as this one should be done."""
        return self.left() == 0


def communicate(process: "subprocess.Popen[str]", seconds: float) -> tuple[str, str]:
    """Return what a process prints until it ends, or kill it at the deadline.

    Raises:
        AssertionError: the deadline passed. The message has what was printed.
    """
    end = Deadline(seconds)
    while left := end.left():  # again where the machine turns out to be slower than it was
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=left)
    with contextlib.suppress(ProcessLookupError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)  # also those that hold its pipes
    process.kill()
    out, errors = process.communicate()
    raise AssertionError(f"still alive after {end.seconds:.0f} s:\n{out}\n{errors}")


def wait(process: "subprocess.Popen[str]", seconds: float) -> int:
    """Return the exit code of a process, psutil's or subprocess's.

    Raises:
        AssertionError: the deadline passed; the process lives on.
    """
    end = Deadline(seconds)
    while (code := process.poll()) is None:
        assert not end.has_passed(), f"not over after {end.seconds:.0f} s"
        time.sleep(0.02)
    return code
