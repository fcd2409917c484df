"""The run folder, and the threads that draw and send what is in it; silent on every rank but 0.

`metrics.jsonl` in the run folder is the record, written before anything else happens with it. Pictures are drawn and
written on one thread, and trackers called on another: training does not wait for a server, and neither do pictures.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import yaml

from alexnet_dist import config as configuration
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import wandb_tracker

if TYPE_CHECKING:
    from alexnet_dist.config import Config
    from alexnet_dist.tracking.tracker import Record

logger = logging.getLogger(__name__)

PRIVATE = 0o700  # of a new run folder: configuration and logs are their user's alone


# ---- the run folder -------------------------------------------------------------------------------------------------


def choose_folder(config: Config, *, data_name: str) -> Path:
    """Return the run folder: the one asked for, or a new one under runs/ that says what and when."""
    if config.out_dir is not None:
        return config.out_dir
    stem = f"{data_name.rpartition('/')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
    attempt = 1
    while True:
        folder = Path("runs") / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir(mode=PRIVATE, parents=True)  # at once: another run may begin in the same second
        except FileExistsError:
            attempt += 1
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be made: {error}") from None
        else:
            return folder


def check(config: Config) -> None:
    """Refuse to overwrite a run, to resume what is not there, or to log where there is no login, before all else.

    Raises:
        UserError: naming the flags that decide.
    """
    if "wandb" in config.log.trackers:
        wandb_tracker.wandb_mode(config.wandb)
    folder = config.out_dir
    holds_run = folder is not None and (folder / "config.yaml").exists()
    if config.resume == "must" and not holds_run:
        place = f"{folder} holds no run" if folder else "no --out-dir is given"
        raise UserError(f"--resume must: {place}")
    if config.resume == "never" and holds_run:
        raise UserError(f"{folder} holds a run already: choose another --out-dir, or continue it by --resume auto")
    if holds_run and folder is not None:
        try:
            recorded = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            recorded = None
        changed = configuration.changed_fields(recorded, config) if isinstance(recorded, dict) else ["config.yaml"]
        if changed:
            raise UserError(
                f"{folder} holds a run with another configuration ({'; '.join(changed)}): give the same again, or "
                "choose another --out-dir"
            )


class Lock:
    """Keeps two runs from writing into one folder; the system lets go of it when the process ends, however it ends."""

    def __init__(self) -> None:
        self._lock: filelock.BaseFileLock | None = None

    def take(self, folder: Path) -> None:
        """Take the folder. Rank 0 alone calls it.

        Raises:
            UserError: another run has it, or it cannot be written.
        """
        lock = filelock.FileLock(folder / ".lock")
        try:
            folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(f"another run is writing into {folder}: wait for it, or choose another --out-dir") from None
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be written: {error}") from None
        self._lock = lock

    def release(self) -> None:
        """Let the next run have the folder."""
        if self._lock is not None:
            self._lock.release()


def _read_records(path: Path, *, last_step: int) -> list[Record]:
    """Return the records up to a step, so that no step is counted twice after a resume."""
    if not path.exists() or last_step == 0:
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that a killed run was writing
            continue
        if isinstance(record, dict) and record.get("global_step", last_step + 1) <= last_step:
            records.append(record)
    return records
