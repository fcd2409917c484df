"""RunLogger: a run's records, pictures and summary, written to the run folder and sent to W&B and TensorBoard.

A record is written to metrics.jsonl first. Two threads do the slow work: `drawing` draws pictures and writes them to
figures/, `trackers` calls the trackers. So neither training nor the drawing of pictures waits for a server.
"""

import contextlib
import logging
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from alexnet_dist import atomic_files
from alexnet_dist import config as configuration
from alexnet_dist.config import Config
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_dir, tensorboard_tracker, wandb_tracker
from alexnet_dist.tracking.tracker import Level, Media, Record, Tracker, Weights

logger = logging.getLogger(__name__)

PREEMPTED = "PREEMPTED"  # file in the folder of a run that was stopped and can be continued
MAX_CALLS = 10_000  # calls that wait for the trackers: a day of records, at one in ten seconds
MAX_REPLAYED = MAX_CALLS + 1_000  # records that a kill may keep from W&B: those that wait, and 32 kB within wandb
MAX_DRAWINGS = 4  # sets of pictures that wait to be drawn, with 1.3 MB of weights each; with more, training waits
DRAWING_SECONDS = 60  # at the end of the run, until pictures that wait are left out
GRACE_SECONDS = 30  # at the end of the run, after W&B's own limit, until the trackers are abandoned


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
        with contextlib.suppress(queue.Full):
            self._jobs.put(job, block=wait)
            return True
        return False

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


class RunLogger:
    """Writer of the run folder, and sender to the trackers; on other ranks than 0 only `join` has an effect.

    Args:
        config: of the run, its `out_dir` resolved.
        facts: further facts of the run, for W&B's configuration.
        enabled: whether this is rank 0.
    """

    def __init__(self, config: Config, facts: Record, *, enabled: bool) -> None:
        assert config.out_dir is not None
        self.folder = config.out_dir
        self.facts = facts
        self.enabled = enabled
        self.tracking = "none"  # places of the trackers' records, for the run card
        self._config = config
        self._trackers: list[Tracker] = []
        self._alerts: set[str] = set()
        self._drawing: Worker | None = None
        self._sending: Worker | None = None
        self._num_lost = 0

    # ---- start ------------------------------------------------------------------------------------------------------

    def open(self, *, step: int, tags: Sequence[str] = (), stop: Callable[[], None] | None = None) -> None:
        """Write config.yaml, cut the records behind the checkpoint, and start the trackers.

        Args:
            step: optimizer steps of the checkpoint that the run continues from; later records are cut off.
            tags: of the W&B run, besides the configuration's own.
            stop: called, on any thread, when Stop is pressed on the run's page at W&B.

        Raises:
            UserError: the folder cannot be written, or a tracker's package is missing.
        """
        if not self.enabled:
            return
        config, folder = self._config, self.folder
        with run_dir.writing(folder):
            run_dir.make_run_dir(folder)
            (folder / PREEMPTED).unlink(missing_ok=True)
            atomic_files.write_text(folder / "config.yaml", configuration.to_yaml(config))
            recent = run_dir.cut_records(folder / "metrics.jsonl", last_step=step, most=MAX_REPLAYED)
        if "wandb" in config.log.trackers:
            described, make = configuration.to_dict(config) | self.facts, wandb_tracker.WandbTracker
            self._start("wandb", lambda: make(config.wandb, folder, described, tags=tags, stop=stop))
        if "tensorboard" in config.log.trackers:
            self._start("tensorboard", lambda: tensorboard_tracker.TensorBoardTracker(folder, first_step=step))
        self.tracking = "; ".join(tracker.where for tracker in self._trackers) or "none"
        self._drawing = Worker("drawing", capacity=MAX_DRAWINGS)
        self._sending = Worker("trackers", capacity=MAX_CALLS)
        self._each("replay", recent)

    def shared_id(self) -> str | None:
        """Return the id of the W&B run that the other ranks may join; None without `--wandb.shared`."""
        return next((tracker.shared_id for tracker in self._trackers if tracker.shared_id), None)

    def join(self, run_id: str, *, rank: int) -> None:
        """Record another rank's system metrics in rank 0's W&B run. Every rank but 0 calls it."""
        config = self._config.wandb
        self._start("wandb", lambda: wandb_tracker.RankTracker(config, self.folder, run_id=run_id, rank=rank))
        self._sending = Worker("trackers", capacity=MAX_CALLS)

    def _start(self, name: str, make: Callable[[], Tracker]) -> None:
        """Start a tracker; one that cannot start is left out, with a warning.

        Raises:
            UserError: the user can put it right.
        """
        try:
            self._trackers.append(make())
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - no tracker's failure is worth a run
            logger.warning("%s cannot be started and is left out: %s", name, error)

    # ---- records and pictures ---------------------------------------------------------------------------------------

    def log(self, record: Record) -> None:
        """Append a record, which has `global_step` and `epoch`, to metrics.jsonl and send it to the trackers.

        Raises:
            UserError: metrics.jsonl cannot be written.
        """
        if not self.enabled:
            return
        with run_dir.writing(self.folder), (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(run_dir.to_json(record) + "\n")
        self._each("log", record)

    def show(self, record: Record, draw: Callable[[], Media], *, send: bool = True) -> None:
        """Draw pictures on a thread, write them to `figures/epoch_0007/` with copies in `figures/`, and send the files.

        Args:
            record: the record of their step and epoch.
            draw: called on the drawing thread; must not read anything that training changes.
            send: whether trackers get the pictures too.
        """

        def job() -> None:
            media, newest = draw(), run_dir.private_folder(self.folder, "figures")
            folder = newest / f"epoch_{record['epoch']:04d}"
            folder.mkdir(exist_ok=True)
            paths = {name: folder / f"{name.rpartition('/')[2]}.png" for name in media.pictures}
            for name, path in paths.items():
                Image.fromarray(media.pictures[name]).save(path)
                shutil.copyfile(path, newest / path.name)
            if send:  # paths, not pictures: 10 MB an epoch would accumulate while a tracker hangs
                self._each("show", record, replace(media, pictures=paths))

        self._draw(job)

    def table(self, record: Record, name: str, make: Callable[[], Sequence[Record]]) -> None:
        """Send a table to the trackers; `make` returns its rows and is called on the drawing thread."""
        self._draw(lambda: self._each("table", record, name, make()))

    def _draw(self, job: Callable[[], None]) -> None:
        """Queue a job of the drawing thread; wait while `MAX_DRAWINGS` jobs wait."""
        if self._drawing is not None:
            self._drawing.do(job, wait=True)

    def confusion(self, record: Record, counts: npt.NDArray[np.int64], class_names: Sequence[str]) -> None:
        """Send a confusion matrix, (C, C), to the trackers."""
        self._each("confusion", record, counts, class_names)

    def alert(self, title: str, text: str, *, level: Level) -> None:
        """Send an alert through the trackers; at most one of each title in a run."""
        if title not in self._alerts:
            self._alerts.add(title)
            self._each("alert", title, text, level)

    def publish(self, weights: Weights) -> None:
        """Send a checkpoint's weights to the trackers; any thread may call it."""
        self._each("publish", weights)

    # ---- end --------------------------------------------------------------------------------------------------------

    def write(self, name: str, content: Record | str) -> None:
        """Write a file, text or a record as JSON, into the run folder in one step.

        A failure is logged and not raised, so that it does not hide how the run ended.
        """
        if not self.enabled:
            return
        text = content if isinstance(content, str) else run_dir.to_json(content, indent=1)
        try:
            atomic_files.write_text(self.folder / name, text + "\n")
        except OSError as error:
            logger.error("%s cannot be written: %s", self.folder / name, error)

    def write_summary(self, summary: Record) -> None:
        """Write summary.json and set the trackers' summaries."""
        self.write("summary.json", summary)
        self._each("summary", summary)

    def mark_preempted(self, reason: str, *, requeue: bool) -> None:
        """Write the file PREEMPTED, the mark of a run that was stopped; continuing the run removes the file.

        Args:
            reason: the file's content.
            requeue: whether W&B's sweeps should start the run again: after a signal of the system, not of a person.
        """
        self.write(PREEMPTED, reason)
        if requeue:
            self._each("preempted")

    def close(self, exit_code: int = 0) -> None:
        """Close the trackers, after waiting for pictures and uploads, four minutes at most."""
        if self._drawing is not None and not self._drawing.finish(DRAWING_SECONDS):
            logger.warning("pictures that are not drawn after %d s are left out", DRAWING_SECONDS)
        self._each("close", exit_code)
        if self._num_lost:
            logger.warning("%d records or sets of pictures were too many for a tracker", self._num_lost)
        if self._sending is not None and not self._sending.finish(wandb_tracker.FINISH_SECONDS + GRACE_SECONDS):
            ways = "".join(f", later: {tracker.resend}" for tracker in self._trackers if tracker.resend)
            logger.warning("a tracker hangs and is left behind; metrics.jsonl and figures/ have all%s", ways)
            wandb_tracker.kill_service()
        self._drawing = self._sending = None
        self._trackers = []  # so that an abandoned thread calls no other tracker

    # ---- calls of the trackers --------------------------------------------------------------------------------------

    def _each(self, method: str, *arguments: object) -> None:
        """Queue a call of a method of every tracker on the trackers' thread; count it as lost if the queue is full."""
        if self._sending is not None and not self._sending.do(lambda: self._call(method, *arguments)):
            self._num_lost += 1

    def _call(self, method: str, *arguments: object) -> None:
        """Call a method of every tracker; a tracker that fails is dropped, and the run goes on."""
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # noqa: BLE001, PERF203 - no tracker's failure is worth a run
                if tracker not in self._trackers:  # abandoned meanwhile
                    return
                self._trackers = [other for other in self._trackers if other is not tracker]
                if tracker.where:  # empty for what joins rank 0's run
                    self.tracking = self.tracking.replace(tracker.where, f"{tracker.where} (failed: incomplete)")
                logger.warning("%s failed and is dropped, metrics.jsonl goes on: %s", type(tracker).__name__, error)
