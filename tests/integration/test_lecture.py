"""The lecture's notebook, written out with Pillow and plain torch, against this package."""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from PIL import Image
from places import ROOT
from tiny import records, run
from torch import nn
from torchvision import transforms

from alexnet_dist.config import DataConfig
from alexnet_dist.data import load, sampler
from alexnet_dist.models import fast_layers
from alexnet_dist.training import eval_loop, train_loop
from alexnet_dist.training.metrics import Evaluation

RECIPE = ROOT / "recipes/lecture.yaml"
DATASET = os.environ.get("ALEXNET_DIST_TEST_CIFAR10", "synthetic")
BATCH = 64  # the lecture's real batch: see the recipe's header


def lecture_losses(order: list[list[int]]) -> tuple[list[torch.Tensor], list[float]]:
    """Train as the notebook does, with its dropout switched off; return the inputs and the losses of each step."""
    split = load(DataConfig(dataset=DATASET)).train
    transform = transforms.Compose([transforms.Resize(224), transforms.ToTensor()])
    torch.manual_seed(0)
    model = torchvision.models.alexnet(dropout=0.0)
    model.classifier[6] = nn.Linear(4096, 10)
    criterion = nn.NLLLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    all_inputs, losses = [], []
    for ids in order:
        images = [Image.fromarray(split.images[i].transpose(1, 2, 0)) for i in ids]
        inputs = torch.stack([transform(image) for image in images])
        labels = torch.tensor([int(split.labels[i]) for i in ids])
        optimizer.zero_grad()
        loss = criterion(F.log_softmax(model(inputs), dim=1), labels)
        loss.backward()
        optimizer.step()
        all_inputs.append(inputs)
        losses.append(loss.item())
    return all_inputs, losses


@pytest.mark.parametrize("steps", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_inputs_are_the_same_bits_and_losses_the_same_numbers(tmp_path, monkeypatch, steps):
    seen: list[torch.Tensor] = []
    step = train_loop.train_step

    def spy(context, batch, draws, **keywords):
        seen.append(context.inputs.augmented(batch, draws))
        assert draws is None
        return step(context, batch, draws, **keywords)

    monkeypatch.setattr(train_loop, "train_step", spy)
    flags = ["--config", str(RECIPE), "--data.dataset", DATASET, "--data.batch-size", str(BATCH)]
    flags += ["--model.dropout", "0", "--runtime.precision", "fp32", "--max-steps", str(steps)]
    # In place of what tiny.run gives its small runs: the recipe's own sizes.
    monkeypatch.setattr("tiny.FLAGS", ["--log.every-steps", "1", "--log.trackers"])
    monkeypatch.setattr(eval_loop, "evaluate", _no_evaluation)
    folder = run(tmp_path / "run", *flags, network=torchvision.models.alexnet)
    ours = [record["train/loss"] for record in records(folder) if "train/loss" in record]
    order = sampler.GlobalBatches(len(load(DataConfig(dataset=DATASET)).train), BATCH, seed=0, drop_last=True)
    inputs, losses = lecture_losses([ids for ids, _ in zip(order, range(steps), strict=False)])
    assert len(seen) == len(inputs) == steps
    margin = fast_layers.margin(224) * 2
    assert all(torch.equal(ours_, F.pad(theirs, margin)) for ours_, theirs in zip(seen, inputs, strict=True))
    # Adam's first steps divide each gradient by its own size: where it is nearly 0, rounding (channels_last memory is
    # summed in another order) becomes a step of full length. Measured on CIFAR-10: 5e-8 at the first step, then 2e-7,
    # 5e-7, 2e-6 and 1.2e-5.
    assert ours[0] == pytest.approx(losses[0], rel=1e-6)
    assert ours == pytest.approx(losses, rel=1e-4)
    assert losses[0] == pytest.approx(2.3026, abs=0.02)


def _no_evaluation(_model, _loader, _inputs, _accelerator, *, flip_tta):  # noqa: ARG001
    """Stand in for the evaluation, which this test does not look at."""
    num_images = len(load(DataConfig(dataset=DATASET)).test)
    confusion = np.zeros((10, 10), dtype=np.int64)
    confusion[0, 0] = num_images
    return Evaluation(loss_sum=0.0, confusion=confusion, num_top5=0, worst=())
