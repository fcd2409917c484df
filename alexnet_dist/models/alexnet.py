"""AlexNet with its head swapped for the data set's classes, its starting weights, and what it costs.

The network is `torchvision.models.alexnet` (Krizhevsky, arXiv:1404.5997, one column), some layers of which are computed
in another way (`layers.py`); its key names are torchvision's.
Knows nothing about processes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import nn

from alexnet_dist.errors import UserError
from alexnet_dist.models import fast_layers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alexnet_dist.config import ModelConfig

logger = logging.getLogger(__name__)

Channels = tuple[float, float, float]

HEAD = "classifier.6"
HEAD_STD = 0.01  # small: the first predictions are near chance, with a loss near ln(classes)
IMAGENET_CLASSES = 1000
# AlexNet_Weights.IMAGENET1K_V1.transforms(): what its weights expect of their input
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def build(config: ModelConfig, *, num_classes: int, seed: int) -> nn.Module:
    """Return the network on the CPU, in float32, with the same weights on every rank.

    Its input is (B, 3, P, P): the image within the zeros of `layers.margin`.

    Raises:
        UserError: when the weights named cannot be had or do not fit.
    """
    torch.manual_seed(seed)
    model: nn.Module = torchvision.models.alexnet(dropout=config.dropout)
    if config.init == "he":
        initialise(model)
    if config.pretrained:
        _load(model, _download_imagenet(), origin="torchvision's ImageNet weights")
    classifier = model.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential)
    imagenet_head = classifier[6]
    assert isinstance(imagenet_head, nn.Linear)
    head = classifier[6] = nn.Linear(imagenet_head.in_features, num_classes)
    if config.init == "he":
        nn.init.normal_(head.weight, std=HEAD_STD)
        nn.init.zeros_(head.bias)
    if config.weights is not None:
        _load(model, _read_weights(config.weights), origin=str(config.weights))
    return fast_layers.rewrite(model)


def initialise(model: nn.Module) -> None:
    """Draw weights that keep a signal's size from layer to layer, and set biases to 0: He et al., arXiv:1502.01852.

    Torch's own default has weights 2.4 times smaller, so that after AlexNet's eight layers the image is about a
    thousandth of what reaches the head, and its first hundred steps go into finding it. conv1 keeps that default: a
    single factor of 2.4 costs nothing, and what smooth images hold nothing of stays in its kernels as it was drawn.
    """
    _, *behind_conv1 = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
    for layer in behind_conv1:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def input_statistics(config: ModelConfig) -> tuple[Channels, Channels] | None:
    """Return the mean and standard deviation that the starting weights expect of their input, or None for any.

    Weights are ImageNet's if they are torchvision's, or come from a file whose head has 1000 classes.
    """
    if config.weights is not None:
        head = _read_weights(config.weights).get(f"{HEAD}.bias")
        return (IMAGENET_MEAN, IMAGENET_STD) if head is not None and len(head) == IMAGENET_CLASSES else None
    return (IMAGENET_MEAN, IMAGENET_STD) if config.pretrained else None


def _download_imagenet() -> dict[str, torch.Tensor]:
    weights = torchvision.models.AlexNet_Weights.IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--model.pretrained: {weights.url} cannot be had ({error}). Download it elsewhere, turn it into "
            "safetensors and name it by --model.weights FILE"
        ) from None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"--model.weights {path}: there is no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"--model.weights {path} is not a safetensors file ({error}). Pickled .pt and .pth files can run code when "
            "they are read, so they are not; convert with safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), OUT)"
        ) from None


def _load(model: nn.Module, state: Mapping[str, torch.Tensor], *, origin: str) -> None:
    """Copy weights into the model; a head of another shape, and only that, keeps its fresh initialisation."""
    own = model.state_dict()
    fitting = {
        key: value
        for key, value in state.items()
        if not (key.startswith(HEAD) and key in own and own[key].shape != value.shape)
    }
    wrong = sorted(key for key in own.keys() ^ state.keys())
    wrong += [key for key, value in fitting.items() if key in own and own[key].shape != value.shape]
    if wrong:
        raise UserError(f"--model.weights {origin} does not hold torchvision's AlexNet: see {', '.join(wrong[:3])}")
    if len(fitting) < len(own):
        logger.warning("the head of %s has another number of classes: this one starts fresh", origin)
    model.load_state_dict(fitting, strict=False)


def parameter_table(model: nn.Module) -> str:
    """Return each parameter's name, shape and size, and the total, as the lecture prints them."""
    rows = [(name, " x ".join(map(str, tensor.shape)), tensor.numel()) for name, tensor in model.named_parameters()]
    lines = [f"{name:<22}{shape:>18}{size:>13,}" for name, shape, size in rows]
    return "\n".join([*lines, f"{'total':<22}{'':>18}{num_parameters(model):>13,}"])


def num_parameters(model: nn.Module) -> int:
    """Count the parameters: 57,044,810 with ten classes."""
    return sum(tensor.numel() for tensor in model.parameters())


def training_flops(model: nn.Module, image_size: int) -> int:
    """Count the floating-point operations of one image's forward and backward pass: 4.12e9 at 224.

    A multiplication and an addition count as two; only matrix products and convolutions count.
    """
    from torch.utils.flop_counter import FlopCounterMode

    state = model.state_dict()
    with torch.device("meta"):
        twin: nn.Module = torchvision.models.alexnet(num_classes=len(state[f"{HEAD}.bias"]))
        images = torch.empty(1, 3, image_size, image_size)
        with FlopCounterMode(display=False) as counter:
            twin(images).sum().backward()
    return int(counter.get_total_flops())
