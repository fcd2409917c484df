"""Classifier, a trained network with what is needed to use it: found by name, read from its file alone."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torchvision.models import AlexNet_Weights

from alexnet_dist.architecture import HEAD, IMAGENET_CLASSES, IMAGENET_MEAN, IMAGENET_STD, LAYERS, Channels
from alexnet_dist.data import Inputs, InputSpec, decode
from alexnet_dist.data.decode import Picture
from alexnet_dist.errors import UserError, first_line
from alexnet_dist.models import alexnet, fast_layers, weights
from alexnet_dist.training import checkpoint

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """A class that an image may be of."""

    name: str
    probability: float
    """Softmax of the logits, in [0, 1]."""


@dataclass(frozen=True)
class ByHand:
    """What a file without metadata does not say, given by hand."""

    mean: Channels | None = None
    """Of the inputs' channels, in [0, 1]."""
    std: Channels | None = None
    classes: tuple[str, ...] | None = None
    """Names in the order of the logits."""
    image_size: int | None = None
    """Side of the input in pixels."""


@dataclass(frozen=True)
class Classifier:
    """A trained network as others use it, and how its inputs are made.

    `classifier.network(classifier.preprocess(pictures))` returns logits (B, C).
    """

    path: Path
    """The file that the weights come from."""
    network: nn.Module
    """torchvision's own AlexNet, float32, in evaluation mode, ReLUs out of place: a hook sees what a layer returned."""
    inputs: Inputs
    """From loaded uint8 images to the network's inputs, float32."""
    class_names: tuple[str, ...]
    """In the order of the logits."""
    metadata: dict[str, Any] | None
    """All that the file says of itself; None for a file of another program, described by hand."""
    device: torch.device

    def load_pictures(self, pictures: Picture | Sequence[Picture]) -> torch.Tensor:
        """Return pictures of any size as the training's loader gave them: (B, 3, S, S) uint8, `InputSpec.fitted`.

        Raises:
            UserError: a file cannot be read, or is no image.
        """
        several = pictures if isinstance(pictures, list | tuple) else cast("list[Picture]", [pictures])
        fitted = [self.inputs.spec.fitted(decode.picture(picture)) for picture in several]
        return torch.stack(fitted).to(self.device)

    def preprocess(self, pictures: Picture | Sequence[Picture]) -> torch.Tensor:
        """Return the network's inputs for pictures of any size: (B, 3, S, S) float32, normalised, on the device."""
        return self.inputs(self.load_pictures(pictures))

    @torch.no_grad()
    def predict(self, pictures: Picture | Sequence[Picture], *, top: int = 5) -> list[list[Prediction]]:
        """Return the most likely classes of each picture, the likeliest first, in float32."""
        return most_likely(self.network(self.preprocess(pictures)), self.class_names, top=top)

    @torch.no_grad()
    def features(
        self, pictures: Picture | Sequence[Picture], layers: Sequence[str] = ("fc7",)
    ) -> dict[str, torch.Tensor]:
        """Return what layers return for pictures, by the layers' names, (B, ...) float32.

        Args:
            pictures: of any size.
            layers: of `architecture.LAYERS`: conv1, relu1, pool1, ..., fc6, fc7, logits.

        Raises:
            UserError: there is no such layer.
        """
        return activations(self.network, self.preprocess(pictures), layers)

    def fast(self, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
        """Return the network as training evaluates it, layers rewritten for speed, with its inputs.

        Its weights are those of `network`, on its device; call it under autocast.

        Args:
            dtype: of the network's arithmetic.
        """
        image_size = self.inputs.spec.image_size
        twin = fast_layers.rewrite(alexnet.plain(self.network.state_dict()), image_size=image_size)
        twin.eval().to(memory_format=torch.channels_last)
        margin = fast_layers.margin(image_size)
        return twin, dataclasses.replace(self.inputs, margin=margin, dtype=dtype)


def most_likely(logits: torch.Tensor, class_names: Sequence[str], *, top: int) -> list[list[Prediction]]:
    """Return each image's likeliest classes, the likeliest first.

    Args:
        logits: (B, C) float32.
        class_names: of the C classes.
        top: how many classes, at most.
    """
    found = logits.softmax(dim=1).topk(min(top, len(class_names)), dim=1)
    rows = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [
        [Prediction(class_names[k], share) for k, share in zip(classes, shares, strict=True)]
        for classes, shares in rows
    ]


def activations(network: nn.Module, inputs: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return what layers of torchvision's AlexNet return, computed in one pass that ends behind the last of them.

    Args:
        network: `Classifier.network`.
        inputs: (B, 3, S, S), normalised.
        layers: of `architecture.LAYERS`, in any order.

    Returns:
        By the layers' names, in their order: (B, channels, H, W), or (B, units) of the classifier's layers.

    Raises:
        UserError: there is no such layer.
    """
    if unknown := [layer for layer in layers if layer not in LAYERS]:
        raise UserError(f"--layers {unknown[0]}: there is no such layer; they are {', '.join(LAYERS)}")
    found: dict[str, torch.Tensor] = {}
    handles = [
        network.get_submodule(LAYERS[layer]).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: found.__setitem__(layer, output)
        )
        for layer in dict.fromkeys(layers)
    ]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: found[layer] for layer in layers}


# ---- loading --------------------------------------------------------------------------------------------------------


def load(
    source: Path | str, which: str = "best", device: torch.device | str = "cpu", *, by_hand: ByHand | None = None
) -> Classifier:
    """Return a trained network, from its file alone: neither its data set nor the run's configuration is read.

    Args:
        source: a run folder, a checkpoint's folder, a `.safetensors` file, or the Hub id of a published network.
        which: of a run folder's checkpoints: `best`, `last`, or the number of a step.
        device: where the network computes.
        by_hand: what a file without metadata does not say; ImageNet's where it has 1,000 classes.

    Raises:
        UserError: there is no such network, or its file does not explain itself.
    """
    path = find(source, which=which)
    file = weights.read(path, named_by="RUN")
    try:
        network = alexnet.plain(file.tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    num_classes = len(file.tensors[f"{HEAD}.bias"])
    spec, names = (
        _described(path, by_hand or ByHand(), num_classes)
        if file.metadata is None
        else _explained(path, file.metadata, num_classes, by_hand or ByHand())
    )
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return Classifier(path, network.to(device), Inputs(spec), names, file.metadata, torch.device(device))


def find(source: Path | str, *, which: str) -> Path:
    """Return the network file that is meant.

    Raises:
        UserError: there is none.
    """
    run = Path(source)
    if run.suffix == ".safetensors":
        return run
    if (run / "model.safetensors").exists():
        return checkpoint.evaluated_weights(run)
    found = checkpoint.checkpoints(run / "checkpoints")
    if not found and not run.exists() and str(source).count("/") == 1:
        return _from_hub(str(source))
    if not found:
        kinds = "a run folder, a checkpoint, a .safetensors file or a Hub id (owner/name[@REVISION])"
        hint = f"; {weights.convert_command(run)} reads pickled weights" if run.is_file() else ""
        raise UserError(f"{run} holds no checkpoint: name {kinds}{hint}")
    by_name = {"best": checkpoint.best_of(found) or found[-1], "last": found[-1]}
    by_step = {str(int(path.name.rpartition("_")[2])): path for path in found}
    chosen = (by_name | by_step).get(which)
    if chosen is None:
        raise UserError(f"{run} has no checkpoint {which}: choose best, last, or {', '.join(by_step)}")
    return checkpoint.evaluated_weights(chosen)


def _from_hub(repository: str) -> Path:
    """Return the network file of a published network, from the Hub's cache if it is there.

    Args:
        repository: owner/name, or owner/name@REVISION for another branch, tag or commit than `main`.

    Raises:
        UserError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    name, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(name, "model.safetensors", revision=revision or None))
    except Exception as error:  # noqa: BLE001 - its client raises errors of several libraries
        fault = f"is neither here nor a network on the Hub that can be had ({first_line(error)})"
        raise UserError(f"{repository} {fault}") from None


def _explained(
    path: Path, metadata: dict[str, Any], num_classes: int, by_hand: ByHand
) -> tuple[InputSpec, tuple[str, ...]]:
    """Return inputs and class names of a file with metadata.

    Raises:
        UserError: the metadata are incomplete or contradict the weights, or options contradict them.
    """
    if given := [name for name, value in dataclasses.asdict(by_hand).items() if value is not None]:
        raise UserError(f"{path} has metadata that say this: leave --{given[0].replace('_', '-')} out")
    try:
        spec, names = InputSpec.from_json(metadata["input"]), tuple(map(str, metadata["class_names"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata are incomplete ({error!r})") from None
    if len(set(names)) != num_classes or len(names) != num_classes:
        raise UserError(f"{path}: its metadata name {len(set(names))} different classes and it has {num_classes}")
    return spec, names


def _described(path: Path, by_hand: ByHand, num_classes: int) -> tuple[InputSpec, tuple[str, ...]]:
    """Return inputs and class names of a file without metadata: given by hand, or ImageNet's.

    Raises:
        UserError: something is not given.
    """
    if num_classes == IMAGENET_CLASSES:
        if by_hand == ByHand():
            logger.warning("%s has no metadata and 1,000 classes: it is taken for a network of ImageNet", path)
        names = tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
        known = ByHand(IMAGENET_MEAN, IMAGENET_STD, names, image_size=224)
        given = {name: value for name, value in vars(by_hand).items() if value is not None}
        by_hand = dataclasses.replace(known, **given)
    missing = [f"--{name.replace('_', '-')}" for name, value in vars(by_hand).items() if value is None]
    if missing:
        told = "it was not written by this package, or by its version 0.1"
        raise UserError(f"{path} has no metadata ({told}): give {', '.join(missing)} by hand")
    assert by_hand.mean
    assert by_hand.std
    assert by_hand.classes
    assert by_hand.image_size
    if len(by_hand.classes) != num_classes:
        raise UserError(f"--classes names {len(by_hand.classes)} classes, and {path} has {num_classes}")
    return InputSpec(by_hand.image_size, None, by_hand.mean, by_hand.std, fit="crop"), by_hand.classes
