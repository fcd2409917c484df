"""A small network that was trained for some steps, and its checkpoints."""

from pathlib import Path

import torch
from torch import nn

from alexnet_dist.config import OptimConfig
from alexnet_dist.training import checkpoint
from alexnet_dist.training import optimizer as optimizer_module


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    return model.to(memory_format=torch.channels_last)


def trained(name: str = "adam", steps: int = 3, model: nn.Module | None = None, optimizer=None):
    model = model or network()
    optimizer = optimizer or optimizer_module.build(model, OptimConfig(name=name, lr=0.01))
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, *, step: int = 7, ema: nn.Module | None = None, model=None, optimizer=None, **state) -> Path:
    if model is None:
        model, optimizer = trained()
    tensors = checkpoint.tensors_of(model, optimizer, ema)
    return checkpoint.save(folder, step=step, tensors=tensors, state=state, metadata={})


def evaluated(step: int, top1: float | None) -> dict:
    """Return a checkpoint's progress after an evaluation; for None that in mid-epoch, after an evaluation of 0.95."""
    stale = {"top1": 0.95, "evaluated": step - 1}
    return {"step": step, **(stale if top1 is None else {"top1": top1, "evaluated": step})}
