"""Train torchvision's AlexNet on many GPUs, exactly and fast; use what was trained.

`train(config)` trains and returns the result, `load(run)` returns a trained network. Both are imported when they are
first used, as they import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alexnet_dist.commands.train import train
    from alexnet_dist.training.classifier import load

__version__ = "0.2.0"
__all__ = ["__version__", "load", "train"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name == "load":
        from alexnet_dist.training.classifier import load

        return load
    if name == "train":
        from alexnet_dist.commands.train import train

        return train
    raise AttributeError(f"module 'alexnet_dist' has no attribute {name!r}")
