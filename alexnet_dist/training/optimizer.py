"""Optimizers and their parameter groups: SGD, Adam, AdamW, and LARS and LAMB with a trust ratio for each layer."""

import torch
from torch import nn

from alexnet_dist.config import OptimConfig

MOMENTUM = 0.9
DECAY = {"adamw": 0.5}  # of which a step takes lr * 0.5: half of a weight in the 5,850 steps of the reference recipe
LARS_TRUST = 0.001  # the coefficient of the LARS paper


def build(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Return a fused optimizer over two groups: weights, which may decay, and biases, which do if asked.

    Source of the default, that biases do not: Jia et al., arXiv:1807.11205.
    """
    weights = [tensor for name, tensor in model.named_parameters() if not name.endswith(".bias")]
    biases = [tensor for name, tensor in model.named_parameters() if name.endswith(".bias")]
    decay = DECAY.get(config.name, 0.0) if config.weight_decay is None else config.weight_decay
    groups = [
        {"params": weights, "weight_decay": decay, "trusts": True},
        {"params": biases, "weight_decay": decay if config.decay_biases else 0.0, "trusts": False},
    ]
    if config.name in ("sgd", "lars"):
        descent = Lars if config.name == "lars" else torch.optim.SGD
        return descent(groups, lr=config.lr, momentum=MOMENTUM, nesterov=config.nesterov, fused=True)
    kinds: dict[str, type[torch.optim.Adam]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "lamb": Lamb}
    return kinds[config.name](groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


class Lars(torch.optim.SGD):
    """SGD whose gradients are scaled to their layer's weights: LARS (You, Gitman & Ginsburg, arXiv:1708.03888).

    With weight decay d, each weight w moves by momentum over 0.001 |w| / (|g| + d |w|) * (g + d w). Biases move as
    under SGD. The gradients are scaled in place before torch's fused step, which then needs to know nothing of it.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step from the gradients that stand, which are changed."""
        assert closure is None
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            if group["trusts"]:
                for weight in group["params"]:
                    _scale_gradient(weight, decay=decay)
                group["weight_decay"] = 0.0  # it is in the gradients now
        try:
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def _scale_gradient(weight: torch.Tensor, *, decay: float) -> None:
    if weight.grad is not None:
        size, steepness = weight.norm(), weight.grad.norm()
        weight.grad.add_(weight, alpha=decay)
        weight.grad.mul_(_ratio(LARS_TRUST * size, steepness + decay * size))


def _ratio(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return by what to stretch a step of length `found` to `wanted`; nothing where either is 0. Waits for nothing."""
    return torch.where((wanted > 0) & (found > 0), wanted / found, 1.0)


class Lamb(torch.optim.AdamW):
    """AdamW whose every layer moves by the learning rate times the size of its weights: LAMB (arXiv:1904.00962).

    AdamW's own step is d = -lr (m / (sqrt(v) + eps) + decay w); it is stretched to the length lr |w|. Biases move as
    under AdamW. Torch's fused kernel takes the step, which is then stretched, at the cost of a copy of the weights.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step from the gradients that stand."""
        assert closure is None
        before = [
            (group["lr"], w, w.clone()) for group in self.param_groups if group["trusts"] for w in group["params"]
        ]
        super().step()
        for lr, weight, old in before:
            move = weight - old
            weight.copy_(old + move.mul_(_ratio(lr * old.norm(), move.norm())))
