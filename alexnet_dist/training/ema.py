"""EMA: an exponential moving average of the weights, which evaluation measures."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
