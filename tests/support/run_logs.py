"""Run logs that are started on a folder."""

import json

import numpy as np

from alexnet_dist.config import Config, LogConfig, WandbConfig
from alexnet_dist.tracking import run_logger
from alexnet_dist.tracking.tracker import Media

BLACK = np.zeros((2, 2, 3), np.uint8)
KEY = "0123456789abcdef0123456789abcdef01234567"  # of the length of a real one


def config_for(folder, **changes):
    return Config(**{"out_dir": folder, "log": LogConfig(trackers=()), **changes})


def record(step, **numbers):
    return {"global_step": step, "epoch": 1, **numbers}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start(folder, *, step=0, enabled=True, tags=(), stop=None, **changes):
    log = run_logger.RunLogger(config_for(folder, **changes), {"num_classes": 10}, enabled=enabled)
    log.open(step=step, tags=tags, stop=stop)
    return log


def offline(folder, **changes):
    return start(folder, **{"log": LogConfig(), "wandb": WandbConfig(mode="offline"), **changes})


def show(log, at, pictures, captions=None, **histograms):
    log.show(at, lambda: Media(pictures, captions or {}, histograms))
