"""The convert command: weights of another program's AlexNet, pickled or not, become a network file.

The one place of the package where a pickle is read, by torch's reader that makes tensors and plain values only.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import torch

from alexnet_dist import atomic_files
from alexnet_dist.architecture import HEAD, IMAGENET_CLASSES
from alexnet_dist.config.cli import parse_options
from alexnet_dist.config.commands import ConvertOptions
from alexnet_dist.errors import EXIT_DONE, UserError, first_line
from alexnet_dist.models import alexnet, weights
from alexnet_dist.tracking import Console

ENTRIES = ("state_dict", "model", "model_state_dict", "net", "ema")
"""Names under which training programs keep a network's weights; where a file has several, the first of these counts."""
BY_HAND = "--mean R G B --std R G B --classes NAMES.txt --image-size PIXELS"


def main(argv: Sequence[str], *, prog: str) -> int:
    """Convert the file that the command line names, print what to do with the new one, and return the exit code.

    Raises:
        UserError: the command line is wrong, the file holds no AlexNet, or the new file cannot be written.
    """
    options = parse_options(argv, ConvertOptions(), prog=prog)
    if len(options.paths) != 2:
        raise UserError(f"name two files, FILE and OUT.safetensors ({prog} --help explains them)")
    source, out = map(Path, options.paths)
    if out.suffix != ".safetensors":
        raise UserError(f"{out}: the new file's name has to end in .safetensors")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists and is not overwritten: name another file, or remove this one")
    is_other = not weights.looks_like_safetensors(source)
    content = read(source) if is_other else weights.read_any(source, named_by="FILE")[0]
    state, entry = choose(content, source, entry=options.entry)
    prefix = weights.wrapper_prefix(state)
    tensors = checked({name.removeprefix(prefix): state[name] for name in state if name != weights.COUNTER}, source)
    try:
        with atomic_files.whole(out) as scratch:
            weights.write(scratch, tensors, metadata=None)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {first_line(error)}") from None
    num_classes = len(tensors[f"{HEAD}.bias"])
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values() if tensor.ndim})
    imagenet = "; ImageNet's where left out" * (num_classes == IMAGENET_CLASSES)
    rows = {
        "network": f"{out}: torchvision's AlexNet with {num_classes:,} classes, float32",
        "from": f"{source}, {entry}; {', '.join(dtypes)}" + (f"; {prefix} taken off its keys" if prefix else ""),
        "train": f"alexnet-dist train --config finetune --model.no-pretrained --model.weights {shlex.quote(str(out))}",
        "predict": f"alexnet-dist predict {shlex.quote(str(out))} PICTURES {BY_HAND}{imagenet}",
    }
    Console(enabled=True).card("converted", rows)
    return EXIT_DONE


def read(path: Path) -> object:
    """Return what a pickled file holds: tensors and plain values, or nothing of it.

    Raises:
        UserError: there is no such file, or it holds anything else.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")  # noqa: TID251 - runs no code of the file's
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes torch raise anything
        # torch's own advice, to read the file in the way that runs its code, is left out
        refused = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        why = re.split(r" was not an allowed|\. In PyTorch|\. Please", refused[1] if refused else first_line(error))[0]
        way_out = "where it was written, save the weights alone by torch.save(network.state_dict(), FILE)"
        raise UserError(f"{path} is not a pickle of tensors and plain values ({why}): {way_out}") from None


def choose(content: object, path: Path, *, entry: str | None) -> tuple[Mapping[str, torch.Tensor], str]:
    """Return the weights within a file's content, and in words where they were.

    Args:
        content: of the file.
        path: of the file, for messages.
        entry: name of the entry that is meant; None for the first of `ENTRIES`, or the content itself.

    Raises:
        UserError: there are none.
    """
    if entry is None and is_state(content):
        return content, "the whole file"
    states = {name: held for name, held in (content if isinstance(content, dict) else {}).items() if is_state(held)}
    chosen = entry or next((name for name in ENTRIES if name in states), None)
    if chosen not in states:
        wanted = f"weights in its entry {entry}" if entry else f"weights, nor an entry of them ({', '.join(ENTRIES)})"
        there = f"name one by --entry: {', '.join(map(str, states))}" if states else "no entry holds tensors by name"
        raise UserError(f"{path} holds no {wanted}; {there}")
    others = ", ".join(str(name) for name in states if name != chosen)
    return states[chosen], f"entry {chosen}" + (f" (--entry takes another: {others})" if others else "")


def is_state(value: object) -> TypeGuard[dict[str, torch.Tensor]]:
    """Tell whether a value is a state dict: tensors by name, at least one."""
    items = value.items() if isinstance(value, dict) else ()
    return bool(items) and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in items)


def checked(tensors: weights.Tensors, path: Path) -> weights.Tensors:
    """Return weights in float32, after a check that they are torchvision's AlexNet's and finite.

    Raises:
        UserError: they are not.
    """
    try:
        alexnet.without_memory(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta or tensor.layout is not torch.strided:
            raise UserError(f"{path}: {name} is no array of floating-point numbers but {tensor.layout}, {tensor.dtype}")
        tensors[name] = tensor.detach().float().clone()  # of its own memory: safetensors refuses what is shared
        if not bool(torch.isfinite(tensors[name]).all()):
            raise UserError(f"{path}: {name} holds NaN or infinite values, so the file is of no use")
    return tensors
