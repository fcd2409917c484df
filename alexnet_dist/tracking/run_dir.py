"""The run folder: its name, its modes, its lock, and the records in its metrics.jsonl.

A run folder has mode 0755, so that other users can read its checkpoints. Configuration, metrics, logs and pictures of
the data are private: their files have mode 0600, their sub-folders 0700.
"""

import contextlib
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import yaml

from alexnet_dist import atomic_files
from alexnet_dist import config as configuration
from alexnet_dist.config import Config
from alexnet_dist.errors import UserError, printable
from alexnet_dist.text import shortened
from alexnet_dist.tracking.tracker import Record

OPEN_MODE = 0o755  # of a new run folder
PRIVATE_MODE = 0o700  # of its sub-folders wandb/, tensorboard/, figures/, profile/ and non_finite/


# ---- folders and their modes ----------------------------------------------------------------------------------------


def choose_run_dir(config: Config, *, data_name: str) -> Path:
    """Return the run folder: `--out-dir`, or a new one under runs/, named by data set, date and time.

    Raises:
        UserError: the new folder cannot be made.
    """
    if config.out_dir is not None:
        return config.out_dir
    coding = sys.getfilesystemencoding()  # ascii under LC_ALL=C
    name = data_name.rpartition("/")[2].encode(coding, "backslashreplace").decode(coding)
    stem = f"{shortened(name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    attempt = 1
    while True:
        folder = Path("runs") / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            make_run_dir(folder, exist_ok=False)  # at once: another run may begin in the same second
            return folder
        except FileExistsError:
            attempt += 1
        except OSError as error:
            raise UserError(f"the run folder {folder} cannot be made: {error}") from None


def make_run_dir(folder: Path, *, exist_ok: bool = True) -> None:
    """Make a run folder of mode 0755, whatever the umask; one that exists keeps its mode.

    Raises:
        OSError: the folder cannot be made, or exists although `exist_ok` is False.
    """
    if exist_ok and folder.exists():
        return
    folder.mkdir(mode=OPEN_MODE, parents=True)
    atomic_files.set_mode(folder, OPEN_MODE)  # the umask cuts mkdir's


def private_folder(run_dir: Path, name: str) -> Path:
    """Return a run folder's sub-folder, made with mode 0700; one that exists keeps its mode.

    Raises:
        OSError: the folder cannot be made.
    """
    make_run_dir(run_dir)
    folder = run_dir / name
    folder.mkdir(mode=PRIVATE_MODE, exist_ok=True)
    return folder


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise a UserError that names the run folder in place of an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be written: {error}") from None


# ---- one run at a time ----------------------------------------------------------------------------------------------


def check_run_dir(config: Config) -> None:
    """Check `--resume` and the configuration against the run in `--out-dir`; nothing is written.

    Raises:
        UserError: a run would be overwritten, or there is none to continue, or it has another configuration; or the
            folder's name is not UTF-8, or the locale's encoding has no such characters: safetensors could not read what
            is written there, and W&B nothing at all.
    """
    folder = config.out_dir
    if (shown := printable(str(folder))) != str(folder):
        raise UserError(f"--out-dir {shown} is not UTF-8 here: choose another, or set LC_ALL=C.UTF-8")
    if folder is None or not (folder / "config.yaml").exists():
        if config.resume == "must":
            place = f"{folder} holds no run" if folder else "no --out-dir is given"
            raise UserError(f"--resume must: {place}")
        return
    if config.resume == "never":
        raise UserError(f"{folder} holds a run already: choose another --out-dir, or continue it by --resume auto")
    recorded = None
    with contextlib.suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        recorded = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    changed = configuration.changed_fields(recorded, config) if isinstance(recorded, dict) else ["config.yaml"]
    if changed:
        fault = f"{folder} holds a run with another configuration ({'; '.join(changed)})"
        raise UserError(f"{fault}: give the same again, or choose another --out-dir")


class RunDirLock:
    """Lock on a run folder against a second run; the system releases it when the process ends, even by a kill."""

    def __init__(self) -> None:
        self._lock: filelock.BaseFileLock | None = None

    def take(self, folder: Path) -> None:
        """Lock a run folder, which is made if it does not exist. Rank 0 alone calls it.

        Raises:
            UserError: another run has the lock, or the folder cannot be written.
        """
        self._lock = filelock.FileLock(folder / ".lock", mode=0o600)
        with writing(folder):
            make_run_dir(folder)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                raise UserError(f"another run is writing into {folder}: wait, or choose another --out-dir") from None

    def release(self) -> None:
        """Release the lock; without effect where it is not taken."""
        if self._lock is not None:
            self._lock.release()


# ---- records --------------------------------------------------------------------------------------------------------


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a metrics.jsonl, one at a time: a long run's would fill the memory."""
    with path.open("rb") as file:
        yield from filter(None, map(_record, file))


def cut_records(path: Path, *, last_step: int, most: int) -> list[Record]:
    """Cut a metrics.jsonl behind its last record up to a step, so that no step is counted twice after a resume.

    It is read from its end, so that the time does not depend on its length.

    Args:
        path: the file, made if there is none; lines that are no records are allowed.
        last_step: `global_step` of the last records to keep.
        most: number of records to return.

    Returns:
        The last records kept, in their order.
    """
    path.touch(mode=0o600)
    found: list[Record] = []
    with path.open("r+b") as file:
        end = start = file.seek(0, os.SEEK_END)
        text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if end else b""
        while start and (not found or len(found) < most):
            stop, start = start, text.rfind(b"\n", 0, start - 1) + 1
            record = _record(text[start:stop])
            if record and record["global_step"] <= last_step:
                found.append(record)
            elif not found:
                end = start
        file.truncate(end)
    return found[::-1]


def _record(line: bytes) -> Record | None:
    """Return the record of a line of metrics.jsonl; None for a line that holds none, as a killed run leaves it."""
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line) if line.endswith(b"\n") else None
        if isinstance(record, dict) and isinstance(record.get("global_step"), int):
            return record
    return None


def to_json(record: Record, *, indent: int | None = None) -> str:
    """Return a record as JSON, which has neither NaN nor infinity: both become null."""
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)  # called for NaN and both infinities
    return json.dumps(finite, indent=indent, allow_nan=False)
