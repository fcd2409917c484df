"""The evaluation loop: exact counts of stored images."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tiny import records, run, summary
from torch import nn

from alexnet_dist.training import eval_loop, train_loop


def test_evaluation_equals_a_plain_count(tmp_path, monkeypatch):
    seen: list[tuple[train_loop.Job, train_loop.Evaluation]] = []
    evaluate = eval_loop.evaluate
    monkeypatch.setattr(
        eval_loop, "evaluate", lambda job, **how: (result := evaluate(job, **how), seen.append((job, result)))[0]
    )
    run(tmp_path / "run", "--epochs", "1", "--optim.lr", "5e-3")
    ((job, result),) = seen
    module = job.accelerator.unwrap_model(job.model).eval()
    split = job.eval_loader.dataset
    logits = module(job.preprocess(torch.from_numpy(split.images))).detach()
    labels = torch.from_numpy(split.labels)
    assert result.num_images == 52
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    expected = torch.zeros(10, 10, dtype=torch.int64)
    for label, predicted in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
        expected[label, predicted] += 1
    assert result.confusion.tolist() == expected.tolist()
    assert result.top1 == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_evaluation_uses_stored_images_and_no_dropout(tmp_path, monkeypatch):
    """Evaluated twice, the same to the bit; trained on between, not."""
    results = []
    evaluate = eval_loop.evaluate

    def twice(job, **how):
        results.append([evaluate(job).loss, evaluate(job).loss])
        return evaluate(job, **how)

    monkeypatch.setattr(eval_loop, "evaluate", twice)
    run(tmp_path / "run")
    assert results[0][0] == results[0][1]
    assert results[0][0] != results[1][0]


class Lopsided(nn.Module):
    """Random weights on the pixels: what it says of an image and of its mirror image has nothing in common."""

    def forward(self, images):
        pixels = images.float().flatten(1)
        return F.linear(pixels, torch.randn(10, pixels.shape[1], generator=torch.Generator().manual_seed(3)))


def test_mirrored_evaluation_averages_both_sides(tmp_path, monkeypatch):
    """At the last evaluation alone, and the plain figure stays what it was."""
    seen, lopsided = [], []
    evaluate = eval_loop.evaluate

    def look(job, **how):
        seen.append(job)
        lopsided.append(evaluate(dataclasses.replace(job, model=Lopsided()), **how))
        return lopsided[-1]

    monkeypatch.setattr(eval_loop, "evaluate", look)
    folder = run(tmp_path / "run")
    assert ["val/top1_flip_tta" in line for line in records(folder) if "val/top1" in line] == [False, True]
    images = torch.from_numpy(seen[-1].eval_loader.dataset.images)
    labels = torch.from_numpy(seen[-1].eval_loader.dataset.labels)
    sides = [Lopsided()(seen[-1].preprocess(side)) for side in (images, images.flip(-1))]
    right = [(votes.argmax(1) == labels).double().mean().item() for votes in (sides[0], sum(sides), sides[1])]
    assert len(set(right)) == 3, "three answers that can be told apart"
    assert (lopsided[0].top1, lopsided[0].top1_flip_tta) == (pytest.approx(right[0]), None)
    assert (lopsided[1].top1, lopsided[1].top1_flip_tta) == pytest.approx(tuple(right[:2]))
    assert (summary(folder)["final_top1"], summary(folder)["final_top1_flip_tta"]) == pytest.approx(tuple(right[:2]))
