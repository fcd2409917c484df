"""AlexNet's shape with narrow layers, and short runs of train.py with it: 0.6 million parameters instead of 57."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from places import ROOT, SUPPORT
from torch import nn

from alexnet_dist.commands import results, train
from alexnet_dist.config import parse
from alexnet_dist.data import built_in
from alexnet_dist.distributed import hardware
from alexnet_dist.report import page
from alexnet_dist.training import train_loop

FLAGS = """--data.dataset synthetic --data.limit 52 --data.batch-size 16 --data.image-size 64 --runtime.precision fp32
    --log.every-steps 1 --log.trackers --log.kernels-every-epochs 1000 --epochs 2 --data.cutout 0 --model.init torch
    --model.conv1-init-scale 1 --model.dropout 0.5 --optim.name adam --optim.lr 5e-4 --optim.schedule one-cycle
    --optim.weight-decay 0 --optim.label-smoothing 0""".split()

DEFAULT_OPTIMIZER = ["--optim.name", "muon", "--model.conv1-init-scale", "0.1"]


def tiny_alexnet(*, num_classes: int = 1000, dropout: float = 0.5) -> nn.Module:
    """Stand in for torchvision.models.alexnet: the same keys and kernels in conv1 and conv2, everything else narrow."""
    with torch.device("meta"):  # drawing the weights of the wide layers would take 0.7 s
        model = torchvision.models.AlexNet(num_classes=2, dropout=dropout)
    model.features[0] = nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2)
    model.features[3] = nn.Conv2d(64, 192, kernel_size=5, padding=2)
    return narrowed(model, num_classes)


def golden_alexnet(*, num_classes: int = 1000, dropout: float = 0.5) -> nn.Module:
    """Return the same network with the weights that the golden losses were measured from: drawn after all wide ones."""
    return narrowed(torchvision.models.AlexNet(num_classes=2, dropout=dropout), num_classes)


def narrowed(model: torchvision.models.AlexNet, num_classes: int) -> nn.Module:
    """Replace the layers behind conv2."""
    for index, (inputs, outputs) in ((6, (192, 16)), (8, (16, 16)), (10, (16, 16))):
        model.features[index] = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    for index, (inputs, outputs) in ((1, (16 * 36, 32)), (4, (32, 32)), (6, (32, num_classes))):
        model.classifier[index] = nn.Linear(inputs, outputs)
    return model


def run(
    folder: Path,
    *flags: str,
    network: Callable[..., nn.Module] = tiny_alexnet,
    drawn: bool = False,
    reported: bool = False,
) -> Path:
    """Train in this process, a network in place of torchvision's AlexNet, and return the run folder.

    Args:
        folder: of the run.
        flags: further ones of the command line.
        network: what makes the network.
        drawn: whether to draw the curves and the confusion matrix, which takes longer than all else in such a run.
        reported: whether to write the page, of drawn curves.
    """
    import synthetic_images  # which draws them: not every test that imports this file trains

    config = parse([*FLAGS, "--out-dir", str(folder), *flags])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "peak_flops", lambda *_: 1e12)  # measuring it takes longer than such a run
        if not reported:
            patch.setattr(page, "write", lambda _: None)  # and so does its page
        if not drawn and not reported:
            patch.setattr(results, "draw", lambda *_: None)
        patch.setattr(built_in, "synthetic", synthetic_images.drawn)
        patch.setattr(torchvision.models, "alexnet", network)
        train.train(config)
    return folder


def program(flags: list[str], *, before: str = "") -> str:
    """Return the code of a process that trains as train.py does, with the tiny network.

    Args:
        flags: of the command line.
        before: code that runs before the training, with `hardware`, `page`, `train_loop` and `sys` at hand.
    """
    return (
        f"import os, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]\n"
        f"sys.argv = ['train.py', *{flags!r}]\n"
        "import synthetic_images, torchvision, tiny\n"
        "from alexnet_dist.commands import results\n"
        "from alexnet_dist.commands.main import main\n"
        "from alexnet_dist.data import built_in\n"
        "from alexnet_dist.distributed import hardware\n"
        "from alexnet_dist.report import page\n"
        "from alexnet_dist.training import train_loop\n"
        "torchvision.models.alexnet = tiny.tiny_alexnet\n"
        "hardware.peak_flops, results.draw = lambda *_: 1e12, lambda *_: None\n"
        "built_in.synthetic = synthetic_images.drawn\n"
        f"{before}\n"
        "main(['train', *sys.argv[1:]], prog='train.py')\n"
    )


def beside_launch_scripts(folder: Path) -> Path:
    """Make a folder like the repository's, whose train.py has the tiny network, and return its launch/."""
    for name in ("launch", "accelerate_config.yaml"):
        (folder / name).symlink_to(ROOT / name)
    start = f"sys.path.insert(0, '{SUPPORT}')\nrunpy.run_path('{SUPPORT}/tiny_train.py', run_name='__main__')"
    (folder / "train.py").write_text(f"import runpy, sys\n{start}\n")
    return folder / "launch"


def run_with_ids(folder: Path, flags: list[str]) -> list[list[int]]:
    """Train in this process and return this rank's image ids of each step."""
    seen: list[list[int]] = []
    step = train_loop.train_step

    def spy(context: train_loop.TrainContext, batch: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append(batch["ids"].tolist())
        return step(context, batch, *arguments, **keywords)

    train_loop.train_step = spy
    try:
        run(folder, *flags)
    finally:
        train_loop.train_step = step
    return seen


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """Return the training losses of metrics.jsonl."""
    return [record["train/loss"] for record in records(folder) if "train/loss" in record]


def weights(folder: Path, *, name: str = "model") -> dict[str, torch.Tensor]:
    """Return the tensors of the run's newest checkpoint."""
    newest = max((folder / "checkpoints").glob("step_*"))
    return safetensors.torch.load_file(newest / f"{name}.safetensors")


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Tell whether two sets of tensors are the same to the bit."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def without_clocks(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out what depends on the machine's mood."""
    return {key: value for key, value in record.items() if not key.startswith("perf/")}


def summary(folder: Path) -> dict[str, Any]:
    """Return summary.json."""
    return dict(json.loads((folder / "summary.json").read_text()))
