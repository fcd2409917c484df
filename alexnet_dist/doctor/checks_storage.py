"""What the preflight asks about what a run needs besides a machine: its folder, room, images, W&B.

Nothing is left behind, and servers are asked whether they answer and nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from alexnet_dist.data import cache, sources
from alexnet_dist.doctor.checks_hardware import Finding, within
from alexnet_dist.errors import UserError, first_line
from alexnet_dist.tracking import run_dir, wandb_tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alexnet_dist.config import Config, DataConfig

NUM_PARAMETERS = 57_044_810  # with ten classes; a thousand have 7 % more


# ---- the run folder -------------------------------------------------------------------------------------------------


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there: making the rest is left to the run."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _write_fault(path: Path) -> str | None:
    """Say why nothing can be written at or below a path; the file that is tried has no name that could stay."""
    place = existing(path)
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return first_line(error)
    return None


def run_folder(config: Config) -> Finding:
    """Look whether the run can be written where it is to go, and whether what is there may be continued."""
    folder = config.out_dir or Path("runs")
    if fault := _write_fault(folder):
        return Finding("error", "run folder", f"{folder} cannot be written ({fault}): choose another by --out-dir")
    try:
        run_dir.check(replace(config, log=replace(config.log, trackers=())))
    except UserError as error:
        return Finding("error", "run folder", str(error))
    begins = "continues the run there" if (folder / "config.yaml").exists() else "begins"
    return Finding("ok", "run folder", f"{folder} can be written; the run {begins}")


def checkpoint_bytes(config: Config) -> int:
    """Return a checkpoint's size: weights, one or two numbers of the optimizer for each, and the average's; float32."""
    copies = 1 + (1 if config.optim.name in ("sgd", "lars") else 2) + (config.optim.ema is not None)
    return 4 * NUM_PARAMETERS * copies


def disk(config: Config) -> Finding:
    """Compare the room for checkpoints with what the run will hold: the newest, the best, and the one being written."""
    folder = config.out_dir or Path("runs")
    held = sum(file.stat().st_size for file in (folder / "checkpoints").glob("step_*/*"))
    free = shutil.disk_usage(existing(folder)).free
    size, keep = checkpoint_bytes(config), config.checkpoint.keep
    most = (keep + 2) * size
    plan = f"{free / 1e9:,.1f} GB free at {folder}; a checkpoint has {size / 1e6:,.0f} MB"
    way_out = "make room, choose another --out-dir, or lower --checkpoint.keep"
    if free < size:
        return Finding("error", "disk", f"{plan} and would not fit: make room, or choose another --out-dir")
    if free + held < most:
        return Finding("warning", "disk", f"{plan}, and the run holds up to {keep + 2}, {most / 1e9:.1f} GB: {way_out}")
    return Finding("ok", "disk", f"{plan}, and the run holds up to {keep + 2}")


def answers(url: str) -> bool:
    """Tell whether a server answers at all, in a time that includes looking up its name, which has no limit."""
    try:
        return within(sources.ANSWER_SECONDS + 1, partial(sources.answers, url))
    except TimeoutError:
        return False


# ---- images and W&B --------------------------------------------------------------------------------------------------


def data_set(config: DataConfig, environment: Mapping[str, str]) -> Finding:
    """Look whether this node has the images, or can get them."""
    name = config.dataset
    if name == "digits" and importlib.util.find_spec("sklearn") is None:
        return Finding("error", "data", "digits needs scikit-learn: pip install 'alexnet_dist[demo]'")
    if name in ("digits", "synthetic"):
        return Finding("ok", "data", f"{name}: needs no files")
    place = sources.cache_place(config, environment)
    found = _local_data(Path(name)) if Path(name).is_dir() else _named_data(config, place, environment)
    fault = None if found.level == "error" else _write_fault(place)
    if fault:
        return Finding("error", "data", f"the data cache {place} cannot be written ({fault}): give --data.cache-dir")
    return found


def _named_data(config: DataConfig, place: Path, environment: Mapping[str, str]) -> Finding:
    name = config.dataset
    if name.startswith((".", "/", "~")) or (name != "cifar10" and name.count("/") != 1):
        return Finding("error", "data", f"--data.dataset {name}: no such folder here, and no data set of that name")
    hub_name = sources.CIFAR10_ON_HUB if name == "cifar10" else name
    if (cache.folder_of(place, sources.hub_key(hub_name, config.revision), hub_name) / "meta.json").exists():
        return Finding("ok", "data", f"{name}: decoded already")
    return _hub_data(name, hub_name, config, environment)


def _local_data(folder: Path) -> Finding:
    layouts = folder.rglob("*.parquet"), (folder / "train").glob("*/*")
    if not any(next(files, None) for files in layouts):
        message = f"{folder} holds neither parquet files nor train/CLASS/ and test/CLASS/ with images"
        return Finding("error", "data", message)
    return Finding("ok", "data", f"{folder}: found; decoded at the start unless the cache holds it")


def _hub_data(name: str, hub_name: str, config: DataConfig, environment: Mapping[str, str]) -> Finding:
    """Look into the Hub's own cache, and then for the Hub. The names are those of `datasets` and its documentation."""
    home = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    downloads = Path(environment.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    if (downloads / hub_name.replace("/", "___")).is_dir():
        return Finding("ok", "data", f"{name}: downloaded already, decoded at the start")
    url = sources.hub(environment)
    if url and answers(url):
        return Finding("ok", "data", f"{name}: the Hub answers; downloaded and decoded at the start, once on each node")
    why = f"{urlsplit(url).hostname} does not answer" if url else "HF_HUB_OFFLINE is set"
    if config.fallback != "none":
        message = f"{name} is not here and {why}: THE RUN TRAINS ON {config.fallback} INSTEAD, by --data.fallback"
        return Finding("warning", "data", message)
    return Finding(
        "error",
        "data",
        f"{name} is not here and {why}: connect once, name a local copy by --data.dataset FOLDER, or give "
        "--data.fallback digits",
    )


def wandb(config: Config, environment: Mapping[str, str], *, records: bool) -> Finding:
    """Say where W&B's records will go.

    Args:
        config: of the run.
        environment: with the server's address, if it is not W&B's own.
        records: whether this node has rank 0, which records for all.
    """
    if "wandb" not in config.log.trackers:
        return Finding("ok", "W&B", "not used: --log.trackers")
    try:
        mode, reason = wandb_tracker.wandb_mode(config.wandb)  # asked on every rank when the run begins
    except UserError as error:
        return Finding("error", "W&B", str(error))
    if mode == "offline" and reason.startswith("no login"):
        return Finding("warning", "W&B", "offline, no login: run `wandb login`, or give --wandb.mode offline")
    if mode == "online" and (records or config.wandb.shared):
        host = urlsplit(url := environment.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
        if not answers(url):
            return Finding("warning", "W&B", f"{host} does not answer: the run is recorded offline, for `wandb sync`")
    return Finding("ok", "W&B", f"{mode} ({reason})")
