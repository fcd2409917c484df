"""Worker: a daemon thread with a bounded queue of jobs, for calls that training must not wait for."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Worker:
    """Daemon thread that runs jobs in order; the process can end while a job hangs.

    Args:
        name: of the thread.
        capacity: number of jobs that may wait.
    """

    def __init__(self, name: str, *, capacity: int) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], None], *, wait: bool = False) -> bool:
        """Queue a job and return True; if the queue is full, wait for room, or without `wait` return False."""
        try:
            self._jobs.put(job, block=wait)
        except queue.Full:
            return False
        return True

    def finish(self, seconds: float) -> bool:
        """Return whether all jobs are done, after waiting at most `seconds` for room and `seconds` for the jobs."""
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=seconds)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        """Run the jobs until None comes."""
        while job := self._jobs.get():
            try:
                job()
            except Exception as error:  # noqa: BLE001, PERF203 - a picture is not worth a run
                logger.warning("a record's pictures or tables are left out: %s", error)
