"""The evaluation loop: exact counts of stored images, by nothing but a network, a loader, inputs and an accelerator."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tiny import records, summary, tiny_alexnet
from torch import nn

from alexnet_dist.config import DataConfig, parse
from alexnet_dist.data import Inputs, InputSpec, load
from alexnet_dist.data.loader import make_loader
from alexnet_dist.data.sampler import GlobalBatches
from alexnet_dist.distributed.accelerator import make_accelerator
from alexnet_dist.training import eval_loop

INPUTS = Inputs(InputSpec(64, stored_size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))


@pytest.fixture
def split():
    return load(DataConfig(dataset="synthetic", limit=52, batch_size=16)).test


@pytest.fixture
def accelerator():
    return make_accelerator(parse(["--runtime.precision", "fp32", "--runtime.cpu"]))[0]


def shares(split, accelerator):
    order = GlobalBatches(len(split), 16, seed=None, drop_last=False)
    return accelerator.prepare(make_loader(split.images, split.labels, order, pin_memory=False))


def test_evaluation_equals_a_plain_count(split, accelerator):
    torch.manual_seed(0)
    model = tiny_alexnet(num_classes=10)
    result = eval_loop.evaluate(model, shares(split, accelerator), INPUTS, accelerator)
    logits, labels = model(INPUTS(torch.from_numpy(split.images))).detach(), torch.from_numpy(split.labels)
    assert not model.training
    assert result.num_images == 52
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    expected = np.zeros((10, 10), dtype=np.int64)
    for label, predicted in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        expected[label, predicted] += 1
    assert result.confusion.tolist() == expected.tolist()
    assert result.top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert result.top1_flip_tta is None


def test_evaluation_uses_stored_images_and_no_dropout(split, accelerator):
    """Twice, the same to the bit, although the network drops units and its inputs are augmented in training."""
    model = tiny_alexnet(num_classes=10, dropout=0.5).train()
    losses = [eval_loop.evaluate(model, shares(split, accelerator), INPUTS, accelerator).loss for _ in range(2)]
    assert losses[0] == losses[1]


class Lopsided(nn.Module):
    """Random weights on the pixels: its logits of an image and of its mirror image have nothing in common."""

    def forward(self, images):
        pixels = images.float().flatten(1)
        return F.linear(pixels, torch.randn(10, pixels.shape[1], generator=torch.Generator().manual_seed(15)))


def test_flip_tta_averages_both_sides(split, accelerator):
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    sides = [Lopsided()(INPUTS(side)) for side in (images, images.flip(-1))]
    right = [(votes.argmax(1) == labels).double().mean().item() for votes in (sides[0], sum(sides), sides[1])]
    assert len(set(right)) == 3, "three answers that can be told apart"
    found = eval_loop.evaluate(Lopsided(), shares(split, accelerator), INPUTS, accelerator, flip_tta=True)
    assert (found.top1, found.top1_flip_tta) == pytest.approx(tuple(right[:2]))


def test_a_run_uses_flip_tta_at_its_last_evaluation_alone(finished_run):
    ends = [line for line in records(finished_run) if "val/top1" in line]
    assert ["val/top1_flip_tta" in line for line in ends] == [False, True]
    assert summary(finished_run)["final_top1_flip_tta"] == ends[-1]["val/top1_flip_tta"]
    assert summary(finished_run)["final_top1"] == ends[-1]["val/top1"]


def test_evaluated_weights_are_those_of_now(finished_run):
    first, second = [line["val/loss"] for line in records(finished_run) if "val/loss" in line]
    assert first != second
