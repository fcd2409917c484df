"""Parameter groups, optimizers, and the learning rate as a pure function of the optimizer step.

There is no scheduler object: nothing to prepare, to save or to step once per process. Knows nothing about processes.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn

    from alexnet_dist.config import OptimConfig

ONE_CYCLE_RISE = 0.3  # share of the run with rising rate, and
ONE_CYCLE_START = 1 / 25  # the rate it begins at: the defaults of torch's OneCycleLR (Smith & Topin, arXiv:1708.07120)
MOMENTUM = 0.9


def build(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return a fused optimizer over two groups: weights, which may decay, and biases, which never do.

    Source of the rule for biases: Jia et al., arXiv:1807.11205.
    """
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if not name.endswith(".bias")], "weight_decay": config.weight_decay},
        {"params": [p for name, p in named if name.endswith(".bias")], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, nesterov=True, fused=True)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, fused=True)


def learning_rate(step: int, config: OptimConfig, *, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate of an optimizer step.

    Args:
        step: from 0 to total_steps - 1.
        config: peak, schedule and warm-up.
        steps_per_epoch: optimizer steps of an epoch.
        total_steps: optimizer steps of the run.
    """
    one_cycle = config.schedule == "one-cycle"
    if config.warmup_epochs is None:
        rise = ONE_CYCLE_RISE * total_steps if one_cycle else 0.0
    else:
        rise = config.warmup_epochs * steps_per_epoch
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


class Ema:
    """An exponential moving average of a model's weights, for evaluation.

    Args:
        model: its weights of now are where the average starts; call before Accelerate patches the model's forward.
        decay: weight of the past in each update.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights; waits for nothing."""
        self._average(list(self.model.parameters()), list(model.parameters()), None)
