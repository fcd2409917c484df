"""Parameter groups, optimizers, and the learning rate as a pure function of the optimizer step.

There is no scheduler object: nothing to prepare, to save or to step once per process. Knows nothing about processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alexnet_dist.config import OptimConfig


RISE = {"one-cycle": 0.3, "cosine": 1 / 15, "constant": 0.0}  # share of the run with rising rate: one-cycle's, and
ONE_CYCLE_START = 1 / 25  # the rate it begins at: the defaults of torch's OneCycleLR (Smith & Topin, arXiv:1708.07120)
BASE_BATCH = 256  # the batch that `lr` is meant for where it is scaled


def peak(config: OptimConfig, *, batch_size: int) -> float:
    """Return the peak learning rate of a global batch.

    Linear: Goyal et al., arXiv:1706.02677, for SGD. Square root: the noise of Adam's steps stays what it was.
    """
    power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[config.scale_lr]
    return float(config.lr * (batch_size / BASE_BATCH) ** power)


def learning_rate(step: int, config: OptimConfig, *, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate of an optimizer step.

    Args:
        step: from 0 to total_steps - 1.
        config: peak, schedule and warm-up.
        steps_per_epoch: optimizer steps of an epoch.
        total_steps: optimizer steps of the run.
    """
    one_cycle = config.schedule == "one-cycle"
    warmup = config.warmup_epochs
    rise = RISE[config.schedule] * total_steps if warmup is None else warmup * steps_per_epoch
    if step < rise:
        if one_cycle:
            return config.lr * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * _half_cosine(step / rise))
        return config.lr * (step + 1) / (rise + 1)  # linear, and above 0 at the first step
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 - _half_cosine((step - rise) / max(1.0, total_steps - rise)))


def _half_cosine(progress: float) -> float:
    """Rise smoothly from 0 at 0 to 1 at 1."""
    return (1 - math.cos(math.pi * min(1.0, progress))) / 2
