"""The run folder and the trackers: the only place that imports wandb, and silent on every rank but 0.

`metrics.jsonl` in the run folder is the record; Weights & Biases and TensorBoard get the same numbers under the same
keys. A tracker that fails never stops a run.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from urllib.parse import urlsplit

import filelock
import yaml
from PIL import Image

from alexnet_dist import config as configuration
from alexnet_dist import files
from alexnet_dist.config import Config, UserError, WandbConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    Pictures = Mapping[str, npt.NDArray[np.uint8]]

logger = logging.getLogger(__name__)

Record = dict[str, Any]
WandbMode = Literal["online", "offline", "disabled"]
STEP_AXIS = ("train/*", "optim/*", "perf/*")
EPOCH_AXIS = ("val/*", "kernels/*", "per_class/*")
PREEMPTED = "PREEMPTED"
PRIVATE = 0o700  # of a new run folder: configuration and logs are their user's alone
INIT_SECONDS = 30  # then the run is recorded offline; wandb's own limit is 90
FINISH_SECONDS = 120  # then wandb leaves the rest for `wandb sync`


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
        wandb_mode(config.wandb)
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


class RunLog:
    """Writes a run's records on rank 0 and does nothing elsewhere.

    Args:
        config: of the run, its `out_dir` resolved.
        facts: what else describes the run; goes to W&B's configuration.
        enabled: whether this is rank 0.
        step: optimizer steps of the checkpoint that the run continues from; later records are cut off.
    """

    def __init__(self, config: Config, *, facts: Record, enabled: bool, step: int) -> None:
        assert config.out_dir is not None
        self.folder = config.out_dir
        self.enabled = enabled
        self.records: list[Record] = []
        self.tracking = "none"
        self._config = config
        self._facts = facts
        self._first_step = step
        self._trackers: list[Tracker] = []

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
            files.write_text(self.folder / "config.yaml", configuration.to_yaml(config))
            self.records = _read_records(self.folder / "metrics.jsonl", last_step=step)
            lines = "".join(_json(record) + "\n" for record in self.records)
            files.write_text(self.folder / "metrics.jsonl", lines)
        except OSError as error:
            raise UserError(f"the run folder {self.folder} cannot be written: {error}") from None
        described = configuration.to_dict(config) | self._facts
        if "wandb" in config.log.trackers:
            self._start("wandb", lambda: WandbTracker(config.wandb, self.folder, described))
        if "tensorboard" in config.log.trackers:
            self._start("tensorboard", lambda: TensorBoardTracker(self.folder, first_step=step))
        self.tracking = "; ".join(tracker.where for tracker in self._trackers) or "none"
        return self.tracking

    def _start(self, name: str, make: Any) -> None:  # noqa: ANN401 - a constructor of some tracker
        try:
            self._trackers.append(make())
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - no tracker's failure is worth a run
            logger.warning("%s cannot be started and is left out: %s", name, error)

    def log(self, record: Record | None) -> None:
        """Append a record, which has `global_step` and `epoch`, to metrics.jsonl and the trackers; None is nothing."""
        if not self.enabled or record is None:
            return
        self.records.append(record)
        try:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(_json(record) + "\n")
        except OSError as error:
            raise UserError(f"the run folder {self.folder} cannot be written: {error}") from None
        self._each("log", record)

    def pictures(self, record: Record, pictures: Pictures, captions: Mapping[str, str], *, prefix: str) -> None:
        """Write pictures, (H, W, 3) uint8, to figures/ and send them to the trackers at the record's step and epoch."""
        if not self.enabled:
            return
        (self.folder / "figures").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            Image.fromarray(picture).save(self.folder / "figures" / f"{name}.png")
        prefixed = {f"{prefix}{name}": picture for name, picture in pictures.items()}
        self._each("pictures", record, prefixed, {f"{prefix}{name}": text for name, text in captions.items()})

    def write_summary(self, summary: Record) -> None:
        """Write summary.json and the trackers' summaries."""
        if not self.enabled:
            return
        self._note("summary.json", _json(summary, indent=1) + "\n")
        self._each("summary", summary)

    def mark_preempted(self, reason: str) -> None:
        """Leave a file that says that the run was stopped and can be continued; continuing removes it."""
        if self.enabled:
            self._note(PREEMPTED, reason + "\n")

    def _note(self, name: str, text: str) -> None:
        """Write a file at the end of a run, whose own ending a full disk must not hide."""
        try:
            files.write_text(self.folder / name, text)
        except OSError as error:
            logger.error("%s cannot be written: %s", self.folder / name, error)

    def close(self) -> None:
        """End the trackers; waits for uploads, but not for ever."""
        self._each("close")
        self._trackers.clear()

    def _each(self, method: str, *arguments: object) -> None:
        """Call every tracker; one that fails is dropped, and the run goes on."""
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*arguments)
            except Exception as error:  # noqa: BLE001, PERF203 - no tracker's failure is worth a run
                self._trackers.remove(tracker)
                logger.warning("%s failed and is dropped, metrics.jsonl goes on: %s", type(tracker).__name__, error)


def _json(record: Record, *, indent: int | None = None) -> str:
    """Return JSON, which has no NaN and no infinity: they become null."""
    finite = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in record.items()}
    return json.dumps(finite, indent=indent, allow_nan=False)


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


# ---- trackers -------------------------------------------------------------------------------------------------------


class Tracker(Protocol):
    """Where records go besides the run folder."""

    where: str

    def log(self, record: Record) -> None:
        """Take a record of numbers."""

    def pictures(self, record: Record, pictures: Pictures, captions: Mapping[str, str]) -> None:
        """Take pictures that belong to a record."""

    def summary(self, summary: Record) -> None:
        """Take the run's results."""

    def close(self) -> None:
        """Finish what is under way."""


def wandb_mode(config: WandbConfig) -> tuple[WandbMode, str]:
    """Decide between online, offline and disabled, and say why.

    Raises:
        UserError: online was asked for and there is no login; wandb would ask for a key in the middle of a launch.
    """
    from_environment = os.environ.get("WANDB_MODE", "").lower().replace("dryrun", "offline")  # its former name
    login = _wandb_login()
    mode: WandbMode
    if config.mode != "auto":
        mode, reason = config.mode, "asked for"
    elif from_environment in ("online", "offline", "disabled"):
        mode, reason = cast("WandbMode", from_environment), "WANDB_MODE"
    else:
        mode, reason = ("online", login) if login else ("offline", "no login: wandb login")
    if mode == "online" and not login:
        raise UserError(f"W&B online ({reason}) needs a login: run `wandb login`, or give --wandb.mode offline")
    return mode, reason


def _wandb_login() -> str | None:
    """Return where a key would come from; never the key."""
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return variable
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc  # with the port, as wandb has it
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        _, _, key = netrc.netrc(path).authenticators(host) or ("", "", "")
        return str(path) if key else None
    except (OSError, netrc.NetrcParseError):
        return None


class WandbTracker:
    """One W&B run per run folder: its id is kept there, so that a continued run stays one run.

    Args:
        config: project, names, mode.
        folder: the run folder; W&B's own files go to its `wandb/`.
        described: the configuration and facts of the run.
    """

    def __init__(self, config: WandbConfig, folder: Path, described: Record) -> None:
        mode, reason = wandb_mode(config)
        (folder / "wandb").mkdir(exist_ok=True)
        for variable in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            os.environ.setdefault(variable, str((folder / "wandb").resolve()))
        import wandb  # 0.6 s

        self._wandb = wandb
        settings = wandb.Settings(
            silent=True,
            save_code=False,
            disable_git=True,  # a remote's address may hold a token, and a diff anything
            **_known_settings(wandb, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS),
        )
        arguments: Record = {
            "project": config.project,
            "entity": config.entity,
            "name": config.name or folder.resolve().name,
            "tags": list(config.tags),
            "id": _run_id(folder / "wandb" / "run_id"),
            "resume": "allow",
            "dir": str(folder),
            "config": described,
            "settings": settings,
        }
        try:
            self._run = wandb.init(mode=mode, **arguments)
        except Exception as error:
            if mode != "online":
                raise
            logger.warning("W&B is not reachable (%s): this run is recorded offline", error)
            mode, reason = "offline", "not reachable"
            wandb.teardown()  # its service still holds the run's id
            self._run = wandb.init(mode=mode, **arguments)
        sync = f", later: wandb sync {Path(self._run.dir).parent}" if mode == "offline" else ""
        address = f" {self._run.url}" if mode == "online" else ""
        self._online = mode == "online"
        self.where = f"W&B {mode} ({reason}){address}{sync}"
        self._run.define_metric("global_step", hidden=True)
        self._run.define_metric("epoch", hidden=True)
        for pattern in STEP_AXIS:
            self._run.define_metric(pattern, step_metric="global_step")
        for pattern in EPOCH_AXIS:
            self._run.define_metric(pattern, step_metric="epoch")

    def log(self, record: Record) -> None:
        """Take a record of numbers."""
        self._run.log(record)

    def pictures(self, record: Record, pictures: Pictures, captions: Mapping[str, str]) -> None:
        """Send all pictures in one call, with the axes they belong to. wandb 0.31 takes uint8 as it is."""
        images = {name: self._wandb.Image(picture, caption=captions.get(name)) for name, picture in pictures.items()}
        self._run.log({"global_step": record["global_step"], "epoch": record["epoch"], **images})

    def summary(self, summary: Record) -> None:
        """Set the run's summary, with `best/top1` for sweeps."""
        self._run.summary.update(summary | {"best/top1": summary.get("best_top1")})

    def close(self) -> None:
        """Finish the run; what is not uploaded by then waits on the disk for `wandb sync`."""
        began = time.monotonic()
        self._run.finish()
        if self._online and time.monotonic() - began >= FINISH_SECONDS:
            logger.warning("W&B did not take all in time: wandb sync %s", Path(self._run.dir).parent)


def _known_settings(wandb: Any, **settings: object) -> dict[str, Any]:  # noqa: ANN401 - the module
    """Keep the settings that this version of wandb has."""
    return {name: value for name, value in settings.items() if name in wandb.Settings.model_fields}


def _run_id(path: Path) -> str:
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


class TensorBoardTracker:
    """Event files in the run folder's `tensorboard/`.

    Args:
        folder: the run folder.
        first_step: records of later steps, from before a resume, are hidden.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--log.trackers tensorboard needs the package: pip install tensorboard") from None
        self._writer: Any = SummaryWriter(folder / "tensorboard", purge_step=first_step + 1)
        self.where = f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'}"

    def log(self, record: Record) -> None:
        """Take a record of numbers."""
        for key, value in record.items():
            if isinstance(value, int | float) and key != "global_step":
                self._writer.add_scalar(key, value, record["global_step"])

    def pictures(self, record: Record, pictures: Pictures, captions: Mapping[str, str]) -> None:
        """Take pictures; TensorBoard has no captions."""
        del captions
        for name, picture in pictures.items():
            self._writer.add_image(name, picture, record["global_step"], dataformats="HWC")

    def summary(self, summary: Record) -> None:
        """Note the results as text."""
        self._writer.add_text("summary", "```\n" + json.dumps(summary, indent=1) + "\n```")

    def close(self) -> None:
        """Flush the event file."""
        self._writer.close()
