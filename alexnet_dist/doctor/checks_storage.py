"""Checks of the run folder, the free disk space, the data set and W&B; each returns a `CheckResult`.

No file is left behind. A server gets one request without a key, to see whether it answers.
"""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from alexnet_dist.architecture import NUM_PARAMETERS
from alexnet_dist.config import Config, DataConfig
from alexnet_dist.doctor.check_result import CheckResult, error, ok, warning, within
from alexnet_dist.errors import UserError, first_line
from alexnet_dist.sources import SourceOptions, find, hub
from alexnet_dist.tracking import run_dir, wandb_tracker

LISTING_SECONDS = 30.0  # until a data set must have been listed: some two million files, or 700,000 members of tars

# ---- the run folder -------------------------------------------------------------------------------------------------


def existing(path: Path) -> Path:
    """Return the path or, if it does not exist, its nearest parent that does."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _write_fault(path: Path) -> str | None:
    """Return why no file can be written at or below a path; None if a nameless temporary file can."""
    place = existing(path)
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            file.write(bytes(4096))
            os.fsync(file.fileno())
    except OSError as fault:
        return first_line(fault)
    return None


def run_folder(config: Config) -> CheckResult:
    """Check that the run folder can be written, and that the configuration continues the run in it, if any."""
    folder = config.out_dir or Path("runs")
    if fault := _write_fault(folder):
        return error("run folder", f"{folder} cannot be written ({fault}): choose another by --out-dir")
    try:
        run_dir.check_run_dir(config)
    except UserError as refusal:
        return error("run folder", str(refusal))
    begins = "continues the run there" if (folder / "config.yaml").exists() else "begins"
    return ok("run folder", f"{folder} can be written; the run {begins}")


def checkpoint_bytes(config: Config) -> int:
    """Return a checkpoint's size in bytes: weights, one or two optimizer states per weight, and EMA, in float32.

    For Muon it is an upper bound: two states, though a weight that Muon itself moves has one.
    """
    copies = 1 + (1 if config.optim.name in ("sgd", "lars") else 2) + (config.optim.ema is not None)
    return 4 * NUM_PARAMETERS * copies


def disk(config: Config) -> CheckResult:
    """Check the free space for all checkpoints: the newest ones, the best, and the one that is being written."""
    folder = config.out_dir or Path("runs")
    held = sum(file.stat().st_size for file in (folder / "checkpoints").glob("step_*/*"))
    free = shutil.disk_usage(existing(folder)).free
    size, most = checkpoint_bytes(config), config.checkpoint.keep + 2
    plan = f"{free / 1e9:,.1f} GB free at {folder}; a checkpoint has about {size / 1e6:,.0f} MB"
    remedy = "make room, choose another --out-dir, or lower --checkpoint.keep"
    if free < size:
        return error("disk", f"{plan} and would not fit: make room, or choose another --out-dir")
    if free + held < most * size:
        return warning("disk", f"{plan}, and the run holds up to {most}, {most * size / 1e9:.1f} GB: {remedy}")
    return ok("disk", f"{plan}, and the run holds up to {most}")


def answers(url: str) -> bool:
    """Return whether a server answers in time; the deadline covers the look-up of its name, which has none itself."""
    try:
        return within(hub.ANSWER_SECONDS + 1, lambda: hub.answers(url))
    except TimeoutError:
        return False


# ---- images and W&B --------------------------------------------------------------------------------------------------


def data_set(config: DataConfig, environment: Mapping[str, str]) -> CheckResult:
    """Check that this node has the data set, or can download it, and that its cache can be written."""
    name = config.dataset
    if name == "digits" and importlib.util.find_spec("sklearn") is None:
        return error("data", "digits needs scikit-learn: pip install 'alexnet_dist[demo]'")
    if name in find.WITHOUT_FILES:
        return ok("data", f"{name}: needs no files")
    options = find.options_of(config, environment)
    if fault := _write_fault(options.cache):
        return error("data", f"the data cache {options.cache} cannot be written ({fault}): give --data.cache-dir")
    if find.is_local(name):
        return _local_data(name, options, environment)
    return _hub_data(config, options, environment)


def _local_data(name: str, options: SourceOptions, environment: Mapping[str, str]) -> CheckResult:
    """Check that a folder or an archive is prepared, or can be listed by the code of the run."""

    def look() -> CheckResult:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # for copies of parquet files
            source = find.locate(name, replace(options, cache=Path(scratch)), environment)
            if find.is_prepared(find.folder_of(options.cache, source.key, source.name)):
                return ok("data", f"{name}: prepared already")
            listing = source.listing()
        evaluated = f"{len(listing.test)} {listing.evaluated_on}" if listing.test else "held-out"
        return ok("data", f"{name}: {len(listing.train)} training and {evaluated} images, prepared at the start")

    try:
        return within(LISTING_SECONDS, look)
    except TimeoutError:
        return ok("data", f"{name}: not listed within {LISTING_SECONDS:.0f} s; the run does it at its start")
    except UserError as refusal:
        return error("data", str(refusal))


def _hub_data(config: DataConfig, options: SourceOptions, environment: Mapping[str, str]) -> CheckResult:
    """Check the data cache, then the cache of `datasets`, whose documentation names the variables, then the Hub."""
    name = config.dataset
    if (hub_name := find.hub_id(name)) is None:
        return error("data", f"--data.dataset {name}: no such folder here, and no data set of that name")
    if find.is_prepared(find.folder_of(options.cache, hub.hub_key(hub_name, options), hub_name)):
        return ok("data", f"{name}: prepared already")
    home = Path(environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    downloads = Path(environment.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    if (downloads / hub_name.replace("/", "___")).is_dir():
        return ok("data", f"{name}: downloaded already, prepared at the start")
    url = hub.hub(environment)
    if url and answers(url):
        return ok("data", f"{name}: the Hub answers; downloaded and prepared at the start, once on each node")
    why = f"{urlsplit(url).hostname} does not answer" if url else "HF_HUB_OFFLINE is set"
    if config.fallback != "none":
        remedy = f"THE RUN TRAINS ON {config.fallback} INSTEAD, by --data.fallback"
        return warning("data", f"{name} is not here and {why}: {remedy}")
    remedy = "connect once, name a local copy by --data.dataset FOLDER, or give --data.fallback digits"
    return error("data", f"{name} is not here and {why}: {remedy}")


def wandb(config: Config, environment: Mapping[str, str], *, records: bool) -> CheckResult:
    """Check W&B's mode, login and server.

    Args:
        config: of the run.
        environment: with WANDB_BASE_URL, if the server is not W&B's own.
        records: whether rank 0, whose process alone sends records, is on this node.
    """
    if "wandb" not in config.log.trackers:
        return ok("W&B", "not used: --log.trackers")
    try:
        wandb_tracker.check(config)  # called on every rank when a run begins
        mode, reason = wandb_tracker.wandb_mode(config.wandb)
    except UserError as fault:
        return error("W&B", str(fault))
    if mode == "offline" and reason.startswith("no login"):
        return warning("W&B", "offline, no login: run `wandb login`, or give --wandb.mode offline")
    if mode == "online" and (records or config.wandb.shared):
        host = urlsplit(url := environment.get("WANDB_BASE_URL") or wandb_tracker.server()).hostname
        if not answers(url):
            return warning("W&B", f"{host} does not answer: the run is recorded offline, for `wandb sync`")
    return ok("W&B", f"{mode} ({reason})")
