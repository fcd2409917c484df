"""Optimizers and their parameter groups: SGD, Adam, AdamW, Muon; LARS and LAMB, with a trust ratio for each layer."""

import math
from typing import Any

import torch
from torch import nn

from alexnet_dist.config import OptimConfig

MOMENTUM = {"sgd": 0.9, "lars": 0.9, "muon": 0.95}
DECAY = {"adamw": 0.5, "muon": 0.5}  # a step takes lr * 0.5: the reference recipe's 5,850 take half of a weight
LARS_TRUST = 0.001  # the coefficient of the LARS paper
ADAM_RMS = 0.2  # root mean square of AdamW's steps at a rate of 1 (arXiv:2502.16982)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of which five iterations are taken; Muon's author's and torch's


def build(model: nn.Module, config: OptimConfig, *, products: torch.dtype = torch.bfloat16) -> torch.optim.Optimizer:
    """Return a fused optimizer over two groups: weights, which may decay, and biases, which do if asked.

    Source of the default, that biases do not: Jia et al., arXiv:1807.11205.

    Args:
        model: whose parameters to optimize.
        config: the optimizer and its settings.
        products: type of Muon's matrix products. On CPUs without bf16 instructions float32 is faster by far.
    """
    weights = [tensor for name, tensor in model.named_parameters() if not name.endswith(".bias")]
    biases = [tensor for name, tensor in model.named_parameters() if name.endswith(".bias")]
    decay = DECAY.get(config.name, 0.0) if config.weight_decay is None else config.weight_decay
    groups = [
        {"params": weights, "weight_decay": decay, "trusts": True},
        {"params": biases, "weight_decay": decay if config.decay_biases else 0.0, "trusts": False},
    ]
    momentum = MOMENTUM.get(config.name, 0.0) if config.momentum is None else config.momentum
    if config.name in ("sgd", "lars"):
        descent = Lars if config.name == "lars" else torch.optim.SGD
        return descent(groups, lr=config.lr, momentum=momentum, nesterov=config.nesterov, fused=True)
    if config.name == "muon":
        matrices = [weight for weight in weights[1:-1] if weight.ndim > 2 or config.muon_layers == "hidden"]
        groups[0]["params"] = [weight for weight in weights if all(weight is not matrix for matrix in matrices)]
        groups.append({"params": matrices, "weight_decay": decay, "muon_momentum": momentum})
        return Muon(groups, lr=config.lr, betas=(0.9, config.beta2), products=products)
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


class Muon(torch.optim.AdamW):
    """AdamW whose hidden layers move by orthogonal matrices: Muon (Jordan 2024, kellerjordan.github.io/posts/muon).

    A layer's weights, of a convolution as (out, in * height * width), take the step -lr (r O + decay w): O is the
    nearest orthogonal matrix to their Nesterov momentum, and r = 0.2 sqrt(longer side) gives it the size of AdamW's
    steps, so that one rate and one decay serve all layers (arXiv:2502.16982). torch.optim.Muon does the same for
    matrices, but has no fused step, so nothing in it reads `found_inf`. `products` is the type that O is computed in.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], products: torch.dtype
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self._products = products

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step from the gradients that stand; those of hidden layers are gone then."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"] if "muon_momentum" in group else ():
                if weight.grad is not None:
                    self._turn(weight, weight.grad, group)
                    weight.grad = None  # AdamW's step leaves it out
        super().step()

    def _turn(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        """Take Muon's step of one layer; where `found_inf` is 1, weight and momentum stay. Waits for nothing."""
        state, blocked = self.state[weight], getattr(self, "found_inf", weight.new_zeros(()))
        if not state:  # AdamW looks for a step in every state that it loads
            state |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(weight)}
        lr, momentum, free = group["lr"], group["muon_momentum"], 1 - blocked
        gradient = torch.where(blocked > 0, 0.0, gradient)
        average = state["momentum_buffer"].lerp_(gradient, (1 - momentum) * free)
        turned = _orthogonal(gradient.lerp(average, momentum).flatten(1).to(self._products))
        weight.mul_(1 - lr * group["weight_decay"] * free)
        weight.sub_(lr * ADAM_RMS * math.sqrt(max(turned.shape)) * free * turned.view(weight.shape))


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Return about the nearest orthogonal matrix: singular values from 0.7 to 1.2, by Newton-Schulz."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
