"""The learning rate as a pure function of the optimizer step: no scheduler object to prepare, step or save."""

import math
from dataclasses import dataclass

from alexnet_dist.config import OptimConfig

RISE = {"one-cycle": 0.3, "cosine": 1 / 15, "constant": 0.0, "step": 0.0}
"""Share of the run with a rising rate, by schedule; one-cycle's is the default of torch's OneCycleLR, as is"""
ONE_CYCLE_START = 1 / 25
"""the share of the peak at which one-cycle begins (Smith & Topin, arXiv:1708.07120)."""
BASE_BATCH = 256
"""Global batch that `--optim.lr` is meant for where `--optim.scale-lr` scales it."""


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each optimizer step of a run.

    Args:
        config: rate, scaling, schedule and warm-up.
        batch_size: global batch.
        steps_per_epoch: optimizer steps of an epoch.
        total_steps: optimizer steps of the run.
    """

    config: OptimConfig
    batch_size: int
    steps_per_epoch: int
    total_steps: int

    @property
    def peak_lr(self) -> float:
        """The highest rate of the run.

        Linear scaling: Goyal et al., arXiv:1706.02677, for SGD. Square root: the noise of Adam's steps stays the same.
        """
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.config.scale_lr]
        return float(self.config.lr * (self.batch_size / BASE_BATCH) ** power)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, from 0 to total_steps - 1."""
        schedule, warmup = self.config.schedule, self.config.warmup_epochs
        rise = RISE[schedule] * self.total_steps if warmup is None else warmup * self.steps_per_epoch
        if step < rise:
            if schedule == "one-cycle":
                return self.peak_lr * (ONE_CYCLE_START + (1 - ONE_CYCLE_START) * _half_cosine(step / rise))
            return self.peak_lr * (step + 1) / (rise + 1)  # linear, and above 0 at the first step
        if schedule == "constant":
            return self.peak_lr
        if schedule == "step":
            return self.peak_lr * 0.1 ** (step // (self.config.step_epochs * self.steps_per_epoch))
        return self.peak_lr * (1 - _half_cosine((step - rise) / max(1.0, self.total_steps - rise)))


def _half_cosine(progress: float) -> float:
    """Rise smoothly from 0 at 0 to 1 at 1."""
    return (1 - math.cos(math.pi * min(1.0, progress))) / 2
