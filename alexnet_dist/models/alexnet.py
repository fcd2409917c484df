"""AlexNet with its head swapped for the data set's classes, its starting weights, and what it costs.

The network is `torchvision.models.alexnet` (Krizhevsky, arXiv:1404.5997, one column), some layers of which are computed
in another way (`fast_layers.py`); its key names are torchvision's. Knows nothing about processes.
"""

import logging

import torch
import torchvision
from torch import nn

from alexnet_dist.architecture import HEAD
from alexnet_dist.config import ModelConfig
from alexnet_dist.errors import UserError
from alexnet_dist.models import fast_layers
from alexnet_dist.models.weights import StartingWeights, Tensors

logger = logging.getLogger(__name__)

HEAD_STD = 0.01
"""Standard deviation of a He-initialised head's weights: predictions begin near chance, the loss near ln(classes)."""


def build(
    config: ModelConfig, *, num_classes: int, seed: int, start: StartingWeights | None = None, image_size: int = 224
) -> nn.Module:
    """Return the network on the CPU, in float32, with the same weights on every rank.

    Its input is (B, 3, P, P): the image within the zeros of `fast_layers.margin(image_size)`, which `Inputs` makes.

    Args:
        config: initialisation and dropout.
        num_classes: outputs of the head.
        seed: of the random weights.
        start: what `weights.starting_weights` returned for the same configuration.
        image_size: side of the images without their margin; the network takes no others.

    Raises:
        UserError: the starting weights do not fit.
    """
    torch.manual_seed(seed)
    model = torchvision.models.alexnet(dropout=config.dropout)
    if config.init == "he":
        initialise(model)
    for parameter in model.features[0].parameters():
        parameter.data.mul_(config.conv1_init_scale)
    head = model.classifier[6] = nn.Linear(model.classifier[6].in_features, num_classes)
    if config.init == "he":
        nn.init.normal_(head.weight, std=HEAD_STD)
        nn.init.zeros_(head.bias)
    if start is not None:
        _load(model, start)
    return fast_layers.rewrite(model, image_size=image_size)


def plain(tensors: Tensors) -> nn.Module:
    """Return torchvision's own AlexNet with these weights, in evaluation mode: what is handed to other programs.

    Raises:
        UserError: they are not those of torchvision's AlexNet.
    """
    model = without_memory(tensors)
    model.load_state_dict(tensors, assign=True)
    return model.float().eval()


def without_memory(tensors: Tensors) -> nn.Module:
    """Return torchvision's AlexNet with the number of classes that tensors have, on torch's meta device.

    Raises:
        UserError: the tensors' names or shapes are others.
    """
    head = tensors.get(f"{HEAD}.bias")
    with torch.device("meta"):
        model: nn.Module = torchvision.models.alexnet(num_classes=1 if head is None else head.numel())
    if faults := _faults(model.state_dict(), tensors):
        raise UserError(f"it does not hold torchvision's AlexNet: {faults}")
    return model


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


def _load(model: nn.Module, start: StartingWeights) -> None:
    """Copy weights into the model; its head keeps its random weights where the file's has another shape.

    Raises:
        UserError: another layer is missing, superfluous or of another shape.
    """
    own, found = model.state_dict(), start.tensors
    heads = {key: own[key] for key in own if key in found and key.startswith(HEAD)}
    if faults := _faults(own, found | heads):
        raise UserError(f"--model.weights {start.origin} does not hold torchvision's AlexNet: {faults}")
    reshaped = any(found[key].shape != value.shape for key, value in heads.items())
    if reshaped and not start.fresh_head:
        logger.warning("the head of %s has another number of classes: this one starts fresh", start.origin)
    fresh = reshaped or start.fresh_head
    model.load_state_dict({key: found[key] for key in found if not (fresh and key.startswith(HEAD))}, strict=False)


def _faults(own: Tensors, found: Tensors) -> str:
    """Return why tensors are not those of a network, as words with the first keys at fault; empty where they are."""
    lists = {
        "it lacks": [key for key in own if key not in found],
        "it also has": [key for key in found if key not in own],
        "other shapes:": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
            for key, value in own.items()
            if key in found and found[key].shape != value.shape
        ],
    }
    return "; ".join(f"{words} {', '.join(keys[:3])}" for words, keys in lists.items() if keys)


def parameter_table(model: nn.Module) -> str:
    """Return each parameter's name, shape and size, and the total, as the lecture prints them."""
    rows = [(name, " x ".join(map(str, tensor.shape)), tensor.numel()) for name, tensor in model.named_parameters()]
    lines = [f"{name:<22}{shape:>18}{size:>13,}" for name, shape, size in rows]
    return "\n".join([*lines, f"{'total':<22}{'':>18}{num_parameters(model):>13,}"])


def num_parameters(model: nn.Module) -> int:
    """Return the number of parameters: 57,044,810 with ten classes."""
    return sum(tensor.numel() for tensor in model.parameters())


def training_flops(model: nn.Module, image_size: int) -> int:
    """Return the floating-point operations of one image's forward and backward pass: 4.12e9 at 224.

    A multiplication and an addition count as two; only matrix products and convolutions count.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        twin = torchvision.models.alexnet(num_classes=len(model.get_parameter(f"{HEAD}.bias")))
        with FlopCounterMode(display=False) as counter:
            twin(torch.empty(1, 3, image_size, image_size)).sum().backward()
    return int(counter.get_total_flops())
