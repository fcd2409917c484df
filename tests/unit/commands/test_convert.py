"""The convert command: which files it takes, what it makes of them, and what it refuses."""

import argparse
import errno
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torchvision
from tiny import equal, tiny_alexnet
from torch import nn
from torch.optim.swa_utils import AveragedModel

from alexnet_dist.commands import convert
from alexnet_dist.commands.main import main
from alexnet_dist.config import ModelConfig
from alexnet_dist.errors import UserError
from alexnet_dist.models import alexnet, weights
from alexnet_dist.training import classifier

# ruff: noqa: TID251 - pickles are what this command is for


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return tiny_alexnet(num_classes=7).state_dict()


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def converted(folder, content, *flags, name="in.pth", **saving):
    """Save what is given as torch does, convert it, and return the tensors of the new file."""
    torch.save(content, folder / name, **saving)
    assert convert.main([str(folder / name), str(folder / "out.safetensors"), *flags], prog="convert") == 0
    return safetensors.torch.load_file(folder / "out.safetensors")


def optimizer_of(state):
    parameters = [nn.Parameter(tensor.clone()) for tensor in state.values()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


CHECKPOINTS = {
    "torchvision's": lambda state: state,
    "DDP": lambda state: prefixed(state, "module."),
    "DDP around compiled": lambda state: prefixed(state, "module._orig_mod."),
    "compiled, wrapped in a Lightning module": lambda state: prefixed(state, "model._orig_mod.module."),
    "Accelerate example": lambda state: {"epoch": 3, "state_dict": prefixed(state, "module."), "best_acc1": 0.5},
    "Lightning": lambda state: {
        "epoch": 3,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": prefixed(state, "model."),
        "optimizer_states": [optimizer_of(state)],
        "hyper_parameters": {"lr": 1e-3},
    },
    "torchvision's references": lambda state: {"model": state, "optimizer": optimizer_of(state), "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": torch.tensor(1.0)},
    "net": lambda state: {"net": state, "acc": 88.0},
    "ema": lambda state: {"ema": state},
    "parameters": lambda state: {name: nn.Parameter(tensor) for name, tensor in state.items()},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_other_programs_become_network_files(tmp_path, state, kind):
    assert equal(converted(tmp_path, CHECKPOINTS[kind](state)), state)
    with safetensors.safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        assert file.metadata() is None, "nothing is claimed of a file of another program"
    assert (tmp_path / "out.safetensors").stat().st_mode & 0o777 == 0o644
    assert {path.name for path in tmp_path.iterdir()} == {"in.pth", "out.safetensors"}


def test_an_average_of_weights_loses_its_counter(tmp_path):
    network = tiny_alexnet(num_classes=7)
    averaged = AveragedModel(network).state_dict()
    assert "n_averaged" in averaged
    assert equal(converted(tmp_path, {"model_ema": averaged}, "--entry", "model_ema"), network.state_dict())


def test_files_of_old_versions_of_torch(tmp_path, state):
    assert equal(converted(tmp_path, state, name="in.pth.tar", _use_new_zipfile_serialization=False), state)


OTHERS = {  # by file name: what it holds, and what the message has to name
    "my checkpoint.pth.tar": (CHECKPOINTS["Accelerate example"], "Pickled"),
    "DDP, 2 ranks.safetensors": (lambda state: prefixed(state, "module."), "begin with module. as"),
    "it's compiled.safetensors": (lambda state: prefixed(state, "_orig_mod."), "begin with _orig_mod. as"),
    "distilled.safetensors": (lambda state: prefixed(state, "student.net."), "begin with student.net. as"),
    "average.safetensors": (
        lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(3)},
        "begin with module. as",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_where_weights_are_taken_the_command_that_helps_is_named_and_works(tmp_path, monkeypatch, capsys, state, name):
    monkeypatch.chdir(tmp_path)
    make, words = OTHERS[name]
    (safetensors.torch.save_file if name.endswith(".safetensors") else torch.save)(make(state), name)
    said = []
    for command, more in (("evaluate", []), ("predict", ["a.jpg"]), ("features", ["a.jpg", "--out", "a.safetensors"])):
        with pytest.raises(SystemExit) as end:
            main([command, name, *more])
        assert end.value.code == 2
        said.append(capsys.readouterr().err)
    for call in (classifier.load, lambda path: weights.starting_weights(ModelConfig(weights=Path(path)))):
        with pytest.raises(UserError) as refusal:
            call(name)
        said.append(str(refusal.value))
    for message in said:
        assert words.lower() in message.lower()
    (recipe,) = {re.search("`(.*?)`", message)[1] for message in said}
    program, *arguments = shlex.split(recipe)
    assert program == "alexnet-dist"
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert equal(safetensors.torch.load_file("OUT.safetensors"), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, state, capsys, dtype):
    found = converted(tmp_path, {name: tensor.to(dtype) for name, tensor in state.items()})
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], tensor.to(dtype).float()) for name, tensor in state.items())
    assert f"the whole file; {str(dtype).removeprefix('torch.')}" in capsys.readouterr().out


def test_the_order_of_entries_and_the_choice(tmp_path, state, capsys):
    other = {name: tensor + 1 for name, tensor in state.items()}
    for index, entry in enumerate(convert.ENTRIES):
        content = {"teacher": other} | dict.fromkeys(reversed(convert.ENTRIES[index + 1 :]), other) | {entry: state}
        (tmp_path / entry).mkdir()
        assert equal(converted(tmp_path / entry, content), state)
        assert f"entry {entry} (--entry takes another: teacher" in capsys.readouterr().out
    (tmp_path / "by name").mkdir()
    found = converted(tmp_path / "by name", {"state_dict": state, "teacher": other}, "--entry", "teacher")
    assert equal(found, other)


def test_weights_that_share_memory(tmp_path, state):
    tied = state | {"features.10.bias": state["features.8.bias"]}
    assert equal(converted(tmp_path, tied), tied)


@pytest.mark.parametrize(
    ("num_classes", "words"),
    [(1000, "--image-size PIXELS; ImageNet's where left out"), (7, "--classes NAMES.txt --image-size PIXELS\n")],
)
def test_it_says_what_to_do_next_and_that_works(tmp_path, capsys, num_classes, words):
    network = tiny_alexnet(num_classes=num_classes).eval()
    converted(tmp_path, prefixed(network.state_dict(), "module."))
    out, said = tmp_path / "out.safetensors", capsys.readouterr().out
    assert f"with {num_classes:,} classes" in said
    assert "module. taken off its keys" in said
    assert f"alexnet-dist train --config finetune --model.no-pretrained --model.weights {out}\n" in said
    assert f"alexnet-dist predict {out} PICTURES --mean R G B --std R G B" in said
    assert words in said
    start = weights.starting_weights(ModelConfig(weights=out))
    assert (start.statistics is not None) == (num_classes == 1000)
    alexnet.build(ModelConfig(weights=out), num_classes=num_classes, seed=0, start=start)
    names = tuple(map(str, range(num_classes)))
    by_hand = classifier.ByHand((0.5,) * 3, (0.5,) * 3, names, 224)
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(classifier.load(out, by_hand=by_hand).network(images), network(images))


# ---- what is refused -------------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def cut(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-500])


def spoilt(name, make):
    return lambda path, state: torch.save(state | {name: make(state[name])}, path)


def with_nan(tensor):
    return torch.where(torch.arange(tensor.numel()).view_as(tensor) == 3, float("nan"), tensor)


FAULTS = {
    "missing": (lambda *_: None, "in.pth: there is no such file"),
    "folder": (lambda path, _: path.mkdir(), "is not a pickle of tensors and plain values ([Errno 21] Is a directory"),
    "empty": (lambda path, _: path.write_bytes(b""), "(EOFError)"),
    "text": (lambda path, _: path.write_text("two\nlines\n"), "is not a pickle of tensors"),
    "garbage": (lambda path, _: path.write_bytes(bytes(range(256)) * 64), "(Unsupported operand 0)"),
    "cut short": (cut, "is not a pickle of tensors"),
    "safetensors cut short": (
        lambda path, state: path.write_bytes(safetensors.torch.save(state)[:-9]),
        "FILE {path} is not a safetensors file (",
    ),
    "code": (
        lambda path, _: torch.save({"a": Bomb(path.with_name("ran"))}, path),
        "(Unsupported global: GLOBAL io.open)",
    ),
    "code, old format": (
        lambda path, _: torch.save(Bomb(path.with_name("ran")), path, _use_new_zipfile_serialization=False),
        "(Unsupported global: GLOBAL io.open)",
    ),
    "arguments": (
        lambda path, state: torch.save({"model": state, "args": argparse.Namespace(lr=1)}, path),
        "(Unsupported global: GLOBAL argparse.Namespace): where it was written, save the weights alone",
    ),
    "whole network": (
        lambda path, _: torch.save(tiny_alexnet(), path),
        "(Unsupported global: GLOBAL torchvision.models.alexnet.AlexNet)",
    ),
    "numpy": (
        lambda path, _: torch.save({"a": np.float64(1)}, path),
        "(Unsupported global: GLOBAL numpy._core.multiarray.scalar)",
    ),
    "a list": (lambda path, state: torch.save(list(state.values()), path), "holds no weights, nor an entry of them"),
    "nothing": (lambda path, _: torch.save({}, path), "no entry holds tensors by name"),
    "other entries": (
        lambda path, state: torch.save({"generator": state, "epoch": 1, "model": "alexnet"}, path),
        "nor an entry of them (state_dict, model, model_state_dict, net, ema); name one by --entry: generator",
    ),
    "another network": (
        lambda path, _: torch.save({"state_dict": torchvision.models.resnet18().state_dict()}, path),
        "AlexNet: it lacks features.0.weight, features.0.bias, features.3.weight; it also has conv1.weight, bn1.weight",
    ),
    "a part has a prefix": (
        lambda path, state: torch.save(prefixed(state, "model.") | {"loss.weight": torch.ones(1)}, path),
        "it also has model.features.0.weight",
    ),
    "another width": (
        spoilt("features.3.weight", lambda _: torch.ones(256, 96, 5, 5)),
        "other shapes: features.3.weight (256, 96, 5, 5) instead of (192, 64, 5, 5)",
    ),
    "half a head": (
        spoilt("classifier.6.weight", lambda tensor: tensor[:3].clone()),
        "other shapes: classifier.6.weight (3, 32) instead of (7, 32)",
    ),
    "NaN": (spoilt("classifier.1.weight", with_nan), "classifier.1.weight holds NaN or infinite values"),
    "too large for float32": (
        spoilt("features.0.bias", lambda tensor: tensor.double() + 1e300),
        "features.0.bias holds NaN or infinite values",
    ),
    "int8": (spoilt("features.0.bias", lambda tensor: tensor.char()), "features.0.bias is no array of floating-point"),
    "sparse": (spoilt("classifier.1.weight", lambda tensor: tensor.to_sparse()), "torch.sparse_coo, torch.float32"),
    "no memory": (spoilt("features.0.bias", lambda tensor: tensor.to("meta")), "features.0.bias is no array"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_alexnet_is_refused_in_one_line(tmp_path, state, capsys, fault):
    make, words = FAULTS[fault]
    path, out = tmp_path / "in.pth", tmp_path / "out.safetensors"
    make(path, state)
    with pytest.raises(SystemExit) as end:
        main(["convert", str(path), str(out)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert str(path) in said
    assert words.format(path=path) in said
    assert "weights_only" not in said, "torch's advice is to read it nevertheless"
    assert {path.name for path in tmp_path.iterdir()} <= {"in.pth"}, "no code was run and nothing was written"


def test_an_entry_that_is_not_there(tmp_path, state):
    with pytest.raises(UserError, match="holds no weights in its entry emma; name one by --entry: ema"):
        converted(tmp_path, {"ema": state}, "--entry", "emma")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name two files, FILE and OUT.safetensors (alexnet-dist convert --help"),
        (["a.pth"], "name two files"),
        (["a.pth", "b.safetensors", "c.safetensors"], "name two files"),
        (["a.pth", "b.pth"], "b.pth: the new file's name has to end in .safetensors"),
        (["a.pth", "b.safetensors", "--entri", "ema"], "did you mean --entry?"),
    ],
)
def test_a_command_line_that_is_wrong(capsys, words, message):
    with pytest.raises(SystemExit) as end:
        main(["convert", *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_what_exists_is_not_overwritten(tmp_path, state, kind):
    out = tmp_path / "out.safetensors"
    out.write_text("precious") if kind == "file" else out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        converted(tmp_path, state)
    assert out.is_symlink() or out.read_text() == "precious"


def test_a_full_disk_leaves_nothing_behind(tmp_path, state, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"out.safetensors cannot be written: .*No space left on device"):
        converted(tmp_path, state)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_a_folder_that_is_not_there(tmp_path, state):
    torch.save(state, tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"none/out.safetensors cannot be written: .*No such file"):
        convert.main([str(tmp_path / "in.pth"), str(tmp_path / "none" / "out.safetensors")], prog="convert")
