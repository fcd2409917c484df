"""`alexnet_dist.load`: a trained network with what is needed to use it, from its file alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from alexnet_dist.data import Inputs, InputSpec
from alexnet_dist.errors import UserError
from alexnet_dist.models import alexnet, weights
from alexnet_dist.training import checkpoint


@dataclass(frozen=True)
class TrainedNetwork:
    """A network as others use it, and how its inputs are made.

    `trained.model(trained.inputs(images))` returns logits (B, C) for (B, 3, S, S) uint8 images.
    """

    path: Path
    """The file that the weights come from."""
    model: nn.Module
    """torchvision's own AlexNet, float32, on the CPU, in evaluation mode."""
    inputs: Inputs
    """From stored images to the model's inputs."""
    class_names: tuple[str, ...]
    """In the order of the logits."""
    metadata: dict[str, Any]
    """All that the file says of itself."""


def load(run: Path | str, *, which: str = "best") -> TrainedNetwork:
    """Return a trained network, from its file alone: neither its data set nor the run's configuration is read.

    Args:
        run: a run folder, a checkpoint's folder, or a `.safetensors` file with metadata.
        which: of a run folder's checkpoints: `best`, `last`, or the number of a step.

    Raises:
        UserError: there is no such network, or its file does not explain itself.
    """
    path = find(Path(run), which=which)
    file = weights.read(path, named_by="load")
    if file.metadata is None:
        raise UserError(f"{path} has no metadata: it was not written by this package, or by its version 0.1")
    try:
        model, spec = alexnet.plain(file.tensors), InputSpec.from_json(file.metadata["input"])
        names = tuple(map(str, file.metadata["class_names"]))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: its metadata are incomplete ({error!r})") from None
    return TrainedNetwork(path, model, Inputs(spec), names, file.metadata)


def find(run: Path, *, which: str) -> Path:
    """Return the network file that is meant.

    Raises:
        UserError: there is none.
    """
    if run.suffix == ".safetensors":
        return run
    if (run / "model.safetensors").exists():
        return checkpoint.evaluated_weights(run)
    found = checkpoint.checkpoints(run / "checkpoints")
    if not found:
        raise UserError(f"{run} holds no checkpoint: name a run folder, a checkpoint or a .safetensors file")
    by_name = {"best": checkpoint.best_of(found) or found[-1], "last": found[-1]}
    by_step = {str(int(path.name.rpartition("_")[2])): path for path in found}
    chosen = (by_name | by_step).get(which)
    if chosen is None:
        raise UserError(f"{run} has no checkpoint {which}: choose best, last, or {', '.join(by_step)}")
    return checkpoint.evaluated_weights(chosen)
