"""Network files: safetensors with torchvision's key names and, in their header, metadata that explains them.

The metadata is one JSON object under the key `alexnet_dist`: schema version, class names, how inputs are made, the
data, the result and the versions. torchvision's own loading ignores it.
"""

import json
import logging
import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision

from alexnet_dist import atomic_files
from alexnet_dist.architecture import HEAD, IMAGENET_CLASSES, IMAGENET_MEAN, IMAGENET_STD, SHOWN_LAYERS, Channels
from alexnet_dist.config import ModelConfig
from alexnet_dist.errors import UserError

logger = logging.getLogger(__name__)

METADATA_KEY = "alexnet_dist"
SCHEMA = 1
"""Version of the metadata; raised when an entry changes its meaning."""
FOR_ALL = 0o644
"""Mode of files that colleagues may read, whatever the umask."""

COUNTER = "n_averaged"
"""What torch.optim.swa_utils.AveragedModel keeps beside the weights."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class NetworkFile:
    """The content of a network file."""

    tensors: Tensors
    """Floating point and finite, by torchvision's key names."""
    metadata: dict[str, Any] | None
    """None in files of other programs, and of version 0.1."""


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None) -> None:
    """Write a network file that others may read.

    Args:
        path: a new file.
        tensors: by torchvision's key names.
        metadata: what JSON can hold; None where nothing is known of the network.

    Raises:
        OSError: the file cannot be written.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    # One entry alone: several are written in no fixed order.
    header = None if metadata is None else {METADATA_KEY: json.dumps(metadata)}
    try:
        safetensors.torch.save_file(contiguous, path, metadata=header)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from None
    atomic_files.set_mode(path, FOR_ALL)


def read(path: Path, *, named_by: str) -> NetworkFile:
    """Read a network file, its weights and its metadata, in one go.

    Args:
        path: a safetensors file.
        named_by: the option that named it, for messages.

    Raises:
        UserError: there is no such file, or it holds no weights that a network could have.
    """
    tensors, header = read_any(path, named_by=named_by)
    if prefix := wrapper_prefix(tensors):
        wrapped = f"all its keys begin with {prefix} as a wrapper's do, and {convert_command(path)} takes that off"
        raise UserError(f"{named_by} {path}: {wrapped}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(f"{named_by} {path}: {name} is {tensor.dtype}, and weights are floating-point numbers")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{named_by} {path}: {name} holds NaN or infinite values, so the file is of no use")
    return NetworkFile(tensors, parse_metadata(header.get(METADATA_KEY)))


def read_any(path: Path, *, named_by: str) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors and the header's texts of any safetensors file. Arguments and errors as those of `read`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{named_by} {path}: there is no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        pickles = ". Pickled .pt and .pth files can run code when they are read, so they are not: "
        is_other = path.is_file() and not looks_like_safetensors(path)
        way_out = f"{pickles}{convert_command(path)} takes their tensors" if is_other else ""
        raise UserError(f"{named_by} {path} is not a safetensors file ({error}){way_out}") from None


def convert_command(path: Path | str) -> str:
    """Return the command that makes a network file of another program's file, for a shell."""
    return f"`alexnet-dist convert {shlex.quote(str(path))} OUT.safetensors`"


def looks_like_safetensors(path: Path) -> bool:
    """Tell whether a file begins as safetensors files do: the length of a JSON object in 8 bytes, then the object."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def wrapper_prefix(names: Iterable[str]) -> str:
    """Return what stands before all names of an AlexNet's tensors, such as `module._orig_mod.`; empty without.

    DDP, torch.compile, Lightning and networks that hold a network put it there.
    """
    found = [name for name in names if name != COUNTER]
    first = SHOWN_LAYERS["conv1"]
    prefix = next((name.removesuffix(first) for name in found if name.endswith(f".{first}")), "")
    return prefix if all(name.startswith(prefix) for name in found) else ""


def parse_metadata(text: str | None) -> dict[str, Any] | None:
    """Return the metadata of a header or a config.json; None where there is none that this version understands."""
    try:
        found = json.loads(text or "")
        schema = found["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if schema != SCHEMA:
        logger.warning("the file's metadata have version %s and are left aside: this version reads %s", schema, SCHEMA)
        return None
    return dict(found)


# ---- starting weights ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartingWeights:
    """Weights that a run begins from, and what they expect of their input."""

    tensors: Tensors
    origin: str
    statistics: tuple[Channels, Channels] | None
    """Mean and standard deviation of the inputs they were trained on; None where nothing tells."""
    fresh_head: bool = False
    """Whether the head starts from random weights although the file has one."""


def starting_weights(config: ModelConfig) -> StartingWeights | None:
    """Read the weights that the configuration names, once; None for random ones.

    Raises:
        UserError: they cannot be had.
    """
    if config.pretrained:
        origin = "torchvision's ImageNet weights"
        return StartingWeights(_download_imagenet(), origin, (IMAGENET_MEAN, IMAGENET_STD), fresh_head=True)
    if config.weights is None:
        return None
    file = read(config.weights, named_by="--model.weights")
    statistics = None
    if file.metadata is not None:
        statistics = _recorded_statistics(file.metadata, config.weights)
    elif len(file.tensors.get(f"{HEAD}.bias", ())) == IMAGENET_CLASSES:
        statistics = IMAGENET_MEAN, IMAGENET_STD
    else:
        logger.warning(
            "--model.weights %s does not say which mean and standard deviation its inputs had: those of the data set "
            "are used",
            config.weights,
        )
    return StartingWeights(file.tensors, str(config.weights), statistics)


def _recorded_statistics(metadata: Mapping[str, Any], path: Path) -> tuple[Channels, Channels]:
    try:
        mean, std = (tuple(map(float, metadata["input"][name])) for name in ("mean", "std"))
        (red, green, blue), (red_std, green_std, blue_std) = mean, std
    except (KeyError, TypeError, ValueError):
        raise UserError(f"--model.weights {path}: its metadata have no mean and std of three channels") from None
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UserError(f"--model.weights {path}: its metadata's mean {mean} and std {std} cannot be right")
    return (red, green, blue), (red_std, green_std, blue_std)


def _download_imagenet() -> Tensors:
    weights = torchvision.models.AlexNet_Weights.IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"--model.pretrained: {weights.url} cannot be had ({error}). Download it elsewhere, turn it into "
            f"safetensors by {convert_command(Path(weights.url).name)} and name it by --model.weights OUT.safetensors"
        ) from None
