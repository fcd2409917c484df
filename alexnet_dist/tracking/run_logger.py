"""The run folder, and the threads that draw and send what is in it; silent on every rank but 0.

`metrics.jsonl` in the run folder is the record, written before anything else happens with it. Pictures are drawn and
written on one thread, and trackers called on another: training does not wait for a server, and neither do pictures.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import queue
import shutil
import threading
from typing import TYPE_CHECKING, Any

from PIL import Image

from alexnet_dist import atomic_files
from alexnet_dist import config as configuration
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import tensorboard_tracker, wandb_tracker
from alexnet_dist.tracking.run_dir import _read_records

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from alexnet_dist.config import Config
    from alexnet_dist.tracking.tracker import Level, Media, Record, Tracker, Weights

logger = logging.getLogger(__name__)


PREEMPTED = "PREEMPTED"
MOST_RECORDS = 10_000  # that wait for a tracker that hangs; a day of them, at one in ten seconds
MOST_DRAWINGS = 4  # that wait to be drawn: 1.3 MB of weights each; then training waits too, as drawing always goes on
MOST_MEDIA = 4  # that wait for a tracker: 10 MB of pictures each
PATIENCE_SECONDS = 30.0  # of the drawing thread, for a tracker that still has so many to send
GRACE_SECONDS = 30  # for the thread to end, after W&B's own limit


class Worker:
    """Does jobs one after another on a thread of its own.

    The thread does not keep the process alive: what hangs there is left behind.

    Args:
        name: of the thread.
        most: jobs that may wait.
    """

    def __init__(self, name: str, *, most: int) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], None], *, patience: float | None = 0.0) -> bool:
        """Take a job, and tell whether there was room for it.

        Args:
            job: what to do.
            patience: seconds to wait for room; None waits for ever.
        """
        try:
            self._jobs.put(job, block=patience != 0, timeout=patience)
        except queue.Full:
            return False
        return True

    def finish(self, seconds: float) -> bool:
        """Wait until all is done, but not longer than that; tell whether it is."""
        with contextlib.suppress(queue.Full):
            self._jobs.put(None, timeout=seconds)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while job := self._jobs.get():
            try:
                job()
            except Exception as error:  # noqa: BLE001, PERF203 - a picture is not worth a run
                logger.warning("a record's pictures or tables are left out: %s", error)


class RunLog:
    """Writes a run's records on rank 0 and does nothing elsewhere.

    Args:
        config: of the run, its `out_dir` resolved.
        facts: what else describes the run; goes to W&B's configuration.
        tags: what W&B files the run under, besides the configuration's own.
        enabled: whether this is rank 0.
        step: optimizer steps of the checkpoint that the run continues from; later records are cut off.
        stop: called, on any thread, when somebody stops the run from W&B's page.
    """

    def __init__(
        self,
        config: Config,
        *,
        facts: Record,
        tags: Sequence[str] = (),
        enabled: bool,
        step: int,
        stop: Callable[[], None] | None = None,
    ) -> None:
        assert config.out_dir is not None
        self.folder = config.out_dir
        self.enabled = enabled
        self.records: list[Record] = []
        self.tracking = "none"
        self._config = config
        self.facts = facts
        self._tags = tags
        self._first_step = step
        self._stop = stop
        self._trackers: list[Tracker] = []
        self._alerts: set[str] = set()
        self._drawing: Worker | None = None
        self._sending: Worker | None = None
        self._room = threading.Semaphore(MOST_MEDIA)
        self._patience = PATIENCE_SECONDS
        self._num_lost = 0

    def open(self) -> str:
        """Write the configuration, take up the records so far and start the trackers; return where they record.

        Raises:
            UserError: the folder cannot be written, or a tracker's package is missing.
        """
        if not self.enabled:
            return self.tracking
        config, step = self._config, self._first_step
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / PREEMPTED).unlink(missing_ok=True)
            atomic_files.write_text(self.folder / "config.yaml", configuration.to_yaml(config))
            self.records = _read_records(self.folder / "metrics.jsonl", last_step=step)
            lines = "".join(_json(record) + "\n" for record in self.records)
            atomic_files.write_text(self.folder / "metrics.jsonl", lines)
        except OSError as error:
            raise UserError(f"the run folder {self.folder} cannot be written: {error}") from None
        described = configuration.to_dict(config) | self.facts
        if "wandb" in config.log.trackers:
            self._start(
                "wandb",
                lambda: wandb_tracker.WandbTracker(
                    config.wandb, self.folder, described, tags=self._tags, stop=self._stop
                ),
            )
        if "tensorboard" in config.log.trackers:
            self._start("tensorboard", lambda: tensorboard_tracker.TensorBoardTracker(self.folder, first_step=step))
        self.tracking = "; ".join(tracker.where for tracker in self._trackers) or "none"
        self._drawing = Worker("drawing", most=MOST_DRAWINGS)
        self._sending = Worker("trackers", most=MOST_RECORDS)
        for tracker in self._trackers:
            if tracker.may_lack:
                self._sending.do(functools.partial(_send_again, tracker, list(self.records)))
        return self.tracking

    def shared_id(self) -> str | None:
        """Return the id of the W&B run that the other ranks may join; None where they need not."""
        return next((tracker.shared_id for tracker in self._trackers if tracker.shared_id), None)

    def join(self, run_id: str, *, rank: int) -> None:
        """Record another rank's system metrics in rank 0's W&B run."""
        tracker = functools.partial(
            wandb_tracker.RankTracker, self._config.wandb, self.folder, run_id=run_id, rank=rank
        )
        self._start("wandb", tracker)
        self._sending = Worker("trackers", most=MOST_RECORDS)

    def _start(self, name: str, make: Callable[[], Tracker]) -> None:
        try:
            self._trackers.append(make())
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - no tracker's failure is worth a run
            logger.warning("%s cannot be started and is left out: %s", name, error)

    def log(self, record: Record | None) -> None:
        """Append a record, which has `global_step` and `epoch`, to metrics.jsonl and the trackers; None is nothing.

        Raises:
            UserError: metrics.jsonl cannot be written.
        """
        if not self.enabled or record is None:
            return
        self.records.append(record)
        try:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(_json(record) + "\n")
        except OSError as error:
            raise UserError(f"the run folder {self.folder} cannot be written: {error}") from None
        self._each("log", record)

    def show(self, record: Record, draw: Callable[[], Media], *, send: bool = True) -> None:
        """Have pictures drawn, written to `figures/` and `figures/epoch_0007/`, and sent to the trackers.

        Args:
            record: whose step and epoch they belong to.
            draw: called on a thread; it must not read what training changes.
            send: False for what only the folder's readers understand.
        """

        def job() -> None:
            media = draw()
            self._keep(record, media)
            if send:
                self._send(record, media)

        if self._drawing is not None:
            self._drawing.do(job, patience=None)

    def _send(self, record: Record, media: Media) -> None:
        """Send pictures; a tracker that has not made room for long gets no more until it does."""
        if self._sending is None or not self._room.acquire(timeout=self._patience):
            self._patience = 0.0
            self._num_lost += 1
            return
        self._patience = PATIENCE_SECONDS

        def job() -> None:
            try:
                self._call("show", record, media)
            finally:
                self._room.release()

        self._do(job)

    def _keep(self, record: Record, media: Media) -> None:
        folder = self.folder / "figures" / f"epoch_{record['epoch']:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in media.pictures.items():
            path = folder / f"{name.rpartition('/')[2]}.png"
            Image.fromarray(picture).save(path)
            shutil.copyfile(path, folder.parent / path.name)  # the newest of each has a name that stays

    def table(self, record: Record, name: str, make: Callable[[], Sequence[Record]]) -> None:
        """Send a table to the trackers; `make` is called on the thread."""
        if self.enabled:
            self._do(lambda: self._call("table", record, name, make()))

    def confusion(self, record: Record, counts: npt.NDArray[np.int64], class_names: Sequence[str]) -> None:
        """Send a confusion matrix, (C, C), to the trackers."""
        self._each("confusion", record, counts, class_names)

    def alert(self, title: str, text: str, *, level: Level) -> None:
        """Tell somebody through the trackers; the same title once a run."""
        if title not in self._alerts:
            self._alerts.add(title)
            self._each("alert", title, text, level)

    def publish(self, weights: Weights) -> None:
        """Send a checkpoint's weights to the trackers; any thread may call it."""
        self._each("publish", weights)

    def write(self, name: str, content: Record) -> None:
        """Write a JSON file into the run folder, in one step; a disk that is full hides nothing else."""
        if self.enabled:
            self._note(name, _json(content, indent=1) + "\n")

    def write_summary(self, summary: Record) -> None:
        """Write summary.json and the trackers' summaries."""
        self.write("summary.json", summary)
        self._each("summary", summary)

    def mark_preempted(self, reason: str, *, requeue: bool) -> None:
        """Leave a file that says that the run was stopped and can be continued; continuing removes it.

        Args:
            reason: what the file says.
            requeue: whether W&B's sweeps should take it up again: a machine's end is no person's wish.
        """
        if self.enabled:
            self._note(PREEMPTED, reason + "\n")
        if requeue:
            self._each("preempted")

    def _note(self, name: str, text: str) -> None:
        """Write a file at the end of a run, whose own ending a full disk must not hide."""
        try:
            atomic_files.write_text(self.folder / name, text)
        except OSError as error:
            logger.error("%s cannot be written: %s", self.folder / name, error)

    def close(self, exit_code: int = 0) -> None:
        """End the trackers; waits for uploads, but not for ever."""
        if self._drawing is not None:
            self._drawing.finish(GRACE_SECONDS + PATIENCE_SECONDS)
        self._each("close", exit_code)
        if self._num_lost:
            logger.warning("%d records or sets of pictures were too many for a tracker", self._num_lost)
        if self._sending is not None and not self._sending.finish(wandb_tracker.FINISH_SECONDS + GRACE_SECONDS):
            ways = "".join(f", later: {tracker.resend}" for tracker in self._trackers if tracker.resend)
            logger.warning("a tracker hangs and is left behind; metrics.jsonl and figures/ have all%s", ways)
            wandb_tracker.kill_service()
        self._drawing = self._sending = None
        self._trackers = []  # which also ends what a thread may still want to do

    def _each(self, method: str, *arguments: object) -> None:
        """Have the thread call every tracker."""
        self._do(lambda: self._call(method, *arguments))

    def _do(self, job: Callable[[], None]) -> None:
        if self._sending is not None and not self._sending.do(job):
            self._num_lost += 1

    def _call(self, method: str, *arguments: object) -> None:
        """Call every tracker; one that fails is dropped, and the run goes on."""
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # noqa: BLE001, PERF203 - no tracker's failure is worth a run
                if tracker not in self._trackers:  # left behind meanwhile
                    return
                self._trackers = [other for other in self._trackers if other is not tracker]
                logger.warning("%s failed and is dropped, metrics.jsonl goes on: %s", type(tracker).__name__, error)


def _send_again(tracker: Tracker, records: Sequence[Record]) -> None:
    for record in records:
        tracker.log(record)


def _json(record: Record, *, indent: int | None = None) -> str:
    """Return JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
