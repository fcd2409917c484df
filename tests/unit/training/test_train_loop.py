"""The training loop, step by step: golden losses, what a step costs in waiting, and the average of the weights."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from networks import small_network
from tiny import golden_alexnet, losses, records, run

from alexnet_dist.config import OptimConfig
from alexnet_dist.data import augment
from alexnet_dist.training import train_loop

# Two epochs of tests/support/tiny.py's run at seed 0, torch 2.14.1 on a CPU. They change with initial weights, order,
# augmentation, dropout, loss, optimizer or schedule. If you meant to change one of these, show a measured curve and put
# the new numbers here; if you did not, this is a bug.
GOLDEN = [2.250692, 2.354954, 2.316864, 2.275249, 2.33115, 2.303158]
GOLDEN_WITHOUT_DROPOUT = [2.253221, 2.353596, 2.304852, 2.259704, 2.275433, 2.254153]


@pytest.mark.parametrize(
    ("flags", "golden"), [([], GOLDEN), (["--model.dropout", "0"], GOLDEN_WITHOUT_DROPOUT)], ids=["dropout", "none"]
)
def test_golden_losses(tmp_path, flags, golden):
    found = losses(run(tmp_path / "run", "--optim.lr", "3e-3", *flags, network=golden_alexnet))
    assert found == pytest.approx(golden, rel=1e-4)


def test_mixed_images_count_for_both_labels(tmp_path, monkeypatch):
    """The loss of a mixture is its labels' losses by their shares, and its input the two images by theirs."""
    seen = []
    step, loss = train_loop.train_step, train_loop._losses

    def look(logits, batch, draws, smoothing):
        found = loss(logits, batch, draws, smoothing)
        seen.append((logits.detach(), found.detach()))
        return found

    def look_at_step(context, batch, draws, **keywords):
        seen.append((context.inputs, batch, draws))
        return step(context, batch, draws, **keywords)

    monkeypatch.setattr(train_loop, "_losses", look)
    monkeypatch.setattr(train_loop, "train_step", look_at_step)
    run(tmp_path / "run", "--max-steps", "1", "--data.mixup", "1")
    (inputs, batch, draws), (logits, found) = seen
    own = augment.shares(draws[batch["ids"]])
    both = [F.cross_entropy(logits, batch[key], reduction="none") for key in ("labels", "partner_labels")]
    torch.testing.assert_close(found, own * both[0] + (1 - own) * both[1])
    parts = [inputs.augment(batch[f"{p}images"], draws[batch[f"{p}ids"]]) for p in ("", "partner_")]
    torch.testing.assert_close(inputs.augmented(batch, draws), inputs(augment.mix(*parts, draws[batch["ids"]])))
    assert not torch.equal(batch["ids"], batch["partner_ids"])


def test_learning_rates_follow_the_schedule(tmp_path):
    folder = run(tmp_path / "run", "--optim.schedule", "cosine", "--optim.warmup-epochs", "1", "--optim.lr", "1e-3")
    found = [record["train/lr"] for record in records(folder) if "train/lr" in record]
    warm = [1e-3 * (step + 1) / 4 for step in range(3)]
    cosine = [1e-3 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert found == pytest.approx(warm + cosine, rel=1e-9)


@pytest.mark.parametrize("every", [2, 4, 100])
def test_records_are_means_over_their_steps(finished_run, tmp_path, every):
    """Fewer records say the same: the mean of their steps, at multiples of the interval and at the epoch's end."""
    fine = losses(finished_run)
    coarse = [r for r in records(run(tmp_path / "coarse", "--log.every-steps", str(every))) if "train/loss" in r]
    ends = sorted({step for step in range(1, 7) if step % every == 0} | {3, 6})
    assert [record["global_step"] for record in coarse] == ends
    starts = [0, *ends[:-1]]
    means = [sum(fine[start:end]) / (end - start) for start, end in zip(starts, ends, strict=True)]
    assert [record["train/loss"] for record in coarse] == pytest.approx(means, rel=1e-12)


class NoWaiting(torch.utils._python_dispatch.TorchDispatchMode):
    """Count the operations that would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        self.waits += name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::bincount", "aten::item")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("flags", [[], ["--optim.clip-norm", "1", "--optim.ema", "0.9", "--optim.accumulate", "2"]])
def test_steps_between_records_wait_for_nothing(tmp_path, monkeypatch, flags):
    step, waits = train_loop.train_step, []

    def watched(*arguments, **keywords):
        with NoWaiting() as mode:
            result = step(*arguments, **keywords)
        waits.append(mode.waits)
        return result

    monkeypatch.setattr(train_loop, "train_step", watched)
    run(tmp_path / "run", *flags)
    assert waits[1:] == [0] * 5  # the first step makes the optimizer's state


def test_the_watch_sees_waiting():
    with NoWaiting() as mode:
        torch.ones(3).sum().item()
    assert mode.waits == 1


# ---- the average of the weights -------------------------------------------------------------------------------------


def averaging(decay):
    network = small_network()
    average = copy.deepcopy(network).requires_grad_(requires_grad=False)
    return SimpleNamespace(network=network, ema=average, config=OptimConfig(ema=decay))


def test_average_follows_the_formula():
    context = averaging(0.9)
    expected = [parameter.detach().clone() for parameter in context.network.parameters()]
    for step in range(3):
        with torch.no_grad():
            for parameter in context.network.parameters():
                parameter.add_(step + 1.0)
        train_loop._average(context)
        now = [parameter.detach() for parameter in context.network.parameters()]
        expected = [0.9 * past + 0.1 * value for past, value in zip(expected, now, strict=True)]
    for found, value, last in zip(context.ema.parameters(), expected, now, strict=True):
        torch.testing.assert_close(found, value)
        assert not torch.allclose(found, last)


def test_average_leaves_the_network_alone():
    context = averaging(0.5)
    with torch.no_grad():
        for parameter in context.ema.parameters():
            parameter.zero_()
    before = copy.deepcopy(context.network.state_dict())
    train_loop._average(context)
    assert all(torch.equal(value, before[key]) for key, value in context.network.state_dict().items())
    torch.testing.assert_close(context.ema[0].weight, context.network[0].weight / 2)


def test_average_takes_no_gradient_and_the_network_still_does():
    context = averaging(0.5)
    context.network(torch.ones(1, 2, 4, 4)).sum().backward()
    train_loop._average(context)
    assert all(parameter.grad is None for parameter in context.ema.parameters())
    assert all(parameter.grad is not None for parameter in context.network.parameters())


def test_without_an_average_nothing_is_averaged():
    train_loop._average(SimpleNamespace(ema=None))
