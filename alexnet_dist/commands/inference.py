"""What the commands that use a trained network share: its file, the processes, and the precision of the run."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn

from alexnet_dist import atomic_files
from alexnet_dist.config import Config, DataConfig, RuntimeConfig
from alexnet_dist.config.commands import InferenceConfig, NetworkOptions
from alexnet_dist.data import Inputs
from alexnet_dist.distributed import Hardware
from alexnet_dist.distributed import accelerator as processes
from alexnet_dist.distributed import hardware as hardware_module
from alexnet_dist.distributed.precision import Precision
from alexnet_dist.errors import UserError
from alexnet_dist.sources import folders
from alexnet_dist.training.classifier import ByHand, Classifier, load

logger = logging.getLogger(__name__)


def open_network(source: str, options: NetworkOptions) -> Classifier:
    """Return the network that a command line names, on the CPU.

    Raises:
        UserError: it cannot be had.
    """
    names = None
    if options.classes is not None:
        try:
            lines = options.classes.read_text(encoding="utf-8-sig").split("\n")  # with a BOM, if Windows wrote it
            names = tuple(line for line in lines if line)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--classes {options.classes} cannot be read: {error}") from None
    by_hand = ByHand(options.mean, options.std, names, options.image_size)
    return load(source, options.which, by_hand=by_hand)


def start(
    classifier: Classifier, runtime: InferenceConfig, data: DataConfig | None = None
) -> tuple[Accelerator, Precision]:
    """Form the process group, in the precision that is asked for. Every rank must call it.

    Args:
        classifier: whose file says what the run's precision was.
        runtime: device and precision.
        data: whose global batch the processes share.
    """
    precision = recorded_precision(classifier) if runtime.precision == "run" else runtime.precision
    if precision == "fp16" and (runtime.cpu or not torch.cuda.is_available()):
        logger.warning("%s was computed in fp16, which needs a GPU: fp32 is used", classifier.path)
        precision = "fp32"
    chosen = RuntimeConfig(cpu=runtime.cpu, precision=precision)
    accelerator, found = processes.make_accelerator(Config(runtime=chosen, data=data or DataConfig()))
    is_the_runs = runtime.precision == "run" and precision == recorded_precision(classifier)
    return accelerator, Precision(found.name, "the run's") if is_the_runs else found


def recorded_precision(classifier: Classifier) -> Literal["fp32", "bf16", "fp16"]:
    """Return the precision of the run that a network comes from; fp32 where its file does not say."""
    metadata = classifier.metadata or {}
    found = [metadata[key].get("precision") for key in ("training", "result") if metadata.get(key)]
    return next((name for name in ("bf16", "fp16") if name in found), "fp32")


def as_evaluated(classifier: Classifier, accelerator: Accelerator, precision: Precision) -> tuple[nn.Module, Inputs]:
    """Return the network as training evaluates it, on the accelerator's device, with its inputs."""
    network, inputs = classifier.fast(precision.dtype)
    return network.to(accelerator.device), inputs


def hardware(accelerator: Accelerator, precision: Precision) -> Hardware:
    """Return the devices of the command; their peak is not measured."""
    name, ranks = hardware_module.device_name(accelerator.device), accelerator.num_processes
    return Hardware(name, ranks, torch.get_num_threads(), precision, peak_flops=0.0)


def arithmetic(found: Hardware) -> dict[str, Any]:
    """Return what decides how results are rounded, by the names in a network file's metadata."""
    return {
        "device": found.device,
        "processor": hardware_module.processor(),
        "threads": found.threads,
        "ranks": found.world_size,
        "precision": found.precision.name,
        "torch": torch.__version__,
    }


def write(path: Path, text: str) -> None:
    """Write a command's output, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        atomic_files.write_text(path, text, mode=0o644)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error}") from None


def picture_files(words: Sequence[str]) -> list[str]:
    """Return the picture files that a command line names.

    Args:
        words: files, which are taken as they are; folders, whose image files at any depth are taken, sorted by path,
            without hidden ones; `-`, for a path a line from stdin.

    Raises:
        UserError: a folder holds no image file.
    """
    found: list[str] = []
    for word in words:
        if word == "-":
            found += [line for line in sys.stdin.read().split("\n") if line]
        elif Path(word).is_dir():
            tree = folders.scan(os.path.realpath(word))
            files = sorted(str(Path(word, each.path, name)) for each in tree.walk() for name in each.names)
            if not files:
                raise UserError(f"{word} holds no image file")
            found += files
        else:
            found.append(word)
    return found


def words(options: Sequence[str], *, least: int, meaning: str) -> Sequence[str]:
    """Return a command's words after a check that there are enough.

    Raises:
        UserError: there are too few.
    """
    if len(options) < least:
        raise UserError(f"name {meaning}")
    return options
