"""The two loops, step by step: golden losses, what a step costs in waiting, and exact evaluation."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tiny import losses, records, run

from alexnet_dist import engine

# Two epochs of tests/tiny.py's run at seed 0, torch 2.14.1 on a CPU. They change with initial weights, order,
# augmentation, dropout, loss, optimizer or schedule. If you meant to change one of these, show a measured curve and put
# the new numbers here; if you did not, this is a bug.
GOLDEN = [2.250724, 2.355137, 2.319526, 2.280682, 2.337755, 2.297638]
GOLDEN_WITHOUT_DROPOUT = [2.25309, 2.353411, 2.302378, 2.260785, 2.289583, 2.261777]


@pytest.mark.parametrize(
    ("flags", "golden"), [([], GOLDEN), (["--model.dropout", "0"], GOLDEN_WITHOUT_DROPOUT)], ids=["dropout", "none"]
)
def test_golden_losses(tmp_path, flags, golden):
    assert losses(run(tmp_path / "run", "--optim.lr", "3e-3", *flags)) == pytest.approx(golden, rel=1e-4)


def test_evaluation_equals_a_plain_count(tmp_path, monkeypatch):
    seen: list[tuple[engine.Job, engine.Evaluation]] = []
    evaluate = engine.evaluate
    monkeypatch.setattr(engine, "evaluate", lambda job, **how: (result := evaluate(job, **how), seen.append((job, result)))[0])
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
    evaluate = engine.evaluate

    def twice(job, **how):
        results.append([evaluate(job).loss, evaluate(job).loss])
        return evaluate(job, **how)

    monkeypatch.setattr(engine, "evaluate", twice)
    run(tmp_path / "run")
    assert results[0][0] == results[0][1]
    assert results[0][0] != results[1][0]


def test_learning_rates_follow_the_schedule(tmp_path):
    folder = run(tmp_path / "run", "--optim.schedule", "cosine", "--optim.warmup-epochs", "1", "--optim.lr", "1e-3")
    found = [record["train/lr"] for record in records(folder) if "train/lr" in record]
    warm = [1e-3 * (step + 1) / 4 for step in range(3)]
    cosine = [1e-3 * (1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert found == pytest.approx(warm + cosine, rel=1e-9)


@pytest.mark.parametrize("every", [2, 4, 100])
def test_records_are_means_over_their_steps(tmp_path, every):
    """Fewer records say the same: the mean of their steps, at multiples of the interval and at the epoch's end."""
    fine = losses(run(tmp_path / "fine"))
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
    step, waits = engine._train_step, []

    def watched(*arguments, **keywords):
        with NoWaiting() as mode:
            result = step(*arguments, **keywords)
        waits.append(mode.waits)
        return result

    monkeypatch.setattr(engine, "_train_step", watched)
    run(tmp_path / "run", *flags)
    assert waits[1:] == [0] * 5  # the first step makes the optimizer's state


def test_the_watch_sees_waiting():
    with NoWaiting() as mode:
        torch.ones(3).sum().item()
    assert mode.waits == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_gpu_is_close_to_the_cpu(tmp_path, precision):
    flags = ["--model.dropout", "0", "--max-steps", "3"]
    cpu = losses(run(tmp_path / "cpu", *flags, "--runtime.cpu"))
    gpu = losses(run(tmp_path / "gpu", *flags, "--runtime.precision", precision))
    assert gpu == pytest.approx(cpu, rel={"fp32": 1e-3, "bf16": 2e-2, "fp16": 1e-2}[precision])


@pytest.mark.gpu
def test_enlargement_on_the_gpu_is_pillows():
    from alexnet_dist.preprocess import enlarge

    for source in (8, 32):
        images = torch.randint(0, 256, (16, 3, source, source), dtype=torch.uint8)
        assert torch.equal(enlarge(images.cuda(), 224).cpu(), enlarge(images, 224))
