"""Launch checks: launches that cannot do what was asked are refused before a process group exists."""

import atexit
import os
import signal
import time
from collections.abc import Mapping

import torch

from alexnet_dist.config import Config
from alexnet_dist.errors import UserError

WAIT_FOR_FIRST = 30.0
"""Seconds that the other processes of a node wait for its first one to print the error."""
WAIT_FOR_HOSTS = 5.0
"""Seconds until the launcher is ended, for the other machines to print their errors: they end with it."""


def check_launch(config: Config) -> None:
    """Refuse a launch that cannot do what was asked, without starting anything.

    A launcher that would start this process again, with the same answer, is ended too.

    Raises:
        UserError: fewer processes than asked for, processes without devices of their own, restarts that would not find
            the run again, or a global batch that the processes cannot share equally.
    """
    try:
        check_processes(config, os.environ)
    except UserError:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            if os.environ["LOCAL_RANK"] != "0":
                time.sleep(WAIT_FOR_FIRST)  # it ends the launcher, and the launcher this one
            atexit.register(os.kill, os.getppid(), signal.SIGTERM)  # once the error is printed
            if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
                atexit.register(time.sleep, WAIT_FOR_HOSTS)  # called before the one above
        raise


def check_processes(config: Config, environment: Mapping[str, str]) -> None:
    """Compare what a launcher set, or will set, with what the run needs.

    Raises:
        UserError: as `check_launch` does.
    """
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= environment.keys() and "WORLD_SIZE" not in environment:
        raise UserError(
            "`accelerate launch` was asked for several processes and started this one alone, as it does with --cpu or "
            "without --multi_gpu. Start CPU processes by `CPU_RANKS=N launch/node.sh`; if one is meant, give "
            "--num_processes 1 and unset MASTER_PORT"
        )
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if world_size > 1 and not config.runtime.cpu and not torch.cuda.is_available():
        raise UserError(
            f"the launcher started {world_size} processes and there is no GPU: they would train independently. "
            "Give --runtime.cpu for CPU processes that train together, or start one process"
        )
    if config.out_dir is None and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UserError("--max_restarts needs --out-dir: without it each restart would begin a new run")
    batch_size, share = config.data.batch_size, world_size * config.optim.accumulate
    if batch_size % share:
        lower, upper = batch_size // share * share, -(-batch_size // share) * share
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        parts = f" times --optim.accumulate {config.optim.accumulate}" if config.optim.accumulate > 1 else ""
        raise UserError(
            f"--data.batch-size {batch_size} is the global batch and does not divide by {world_size} processes{parts}: "
            f"the nearest values that do are {nearest}"
        )
