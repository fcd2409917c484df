"""What an epoch's evaluation leaves in the log, on the console and as figures, and what a NaN leaves."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from exhibits import NAMES, dataset
from networks import small_network

from alexnet_dist.commands import results
from alexnet_dist.config import Config
from alexnet_dist.data.sampler import GlobalBatches
from alexnet_dist.training.metrics import Evaluation, Mistake, NonFiniteError
from alexnet_dist.training.progress import Plan, Progress

GOOD = np.diag([14, 13, 13])
BLIND = np.array([[14, 0, 0], [13, 0, 0], [13, 0, 0]])
"""One class for all images."""


class Log:
    """Notes which calls come, with what they are given."""

    def __init__(self, folder, *, enabled=True):
        self.folder, self.enabled, self.records, self.calls = folder, enabled, [], []

    def __getattr__(self, name):
        return lambda *given, **how: self.calls.append((name, given, how))

    def names(self):
        return [name for name, _, _ in self.calls]


@pytest.fixture
def run_at(tmp_path, monkeypatch):
    """Make a run of 10 steps of which kernels are drawn every second epoch."""
    monkeypatch.setattr(results.kernel_images, "snapshot", lambda _: {"conv1": torch.zeros(2)})
    monkeypatch.setattr(results.kernel_images, "numbers", lambda *_: {"conv1_cosine": 0.5})
    monkeypatch.setattr(results.kernel_images, "moved", lambda *_: True)

    def make(*, enabled=True, draw_every=2, last_step=10):
        printed = []
        return SimpleNamespace(
            config=Config(epochs=5),
            dataset=dataset(),
            kernels_before={},
            context=SimpleNamespace(
                network=small_network(),
                inputs=SimpleNamespace(spec=SimpleNamespace(image_size=224, loaded_size=32)),
            ),
            plan=Plan(steps_per_epoch=2, last_step=last_step, record_every=1, save_every=None, draw_every=draw_every),
            log=Log(tmp_path, enabled=enabled),
            console=SimpleNamespace(print=printed.append, warn=lambda text: printed.append(f"warning: {text}")),
            printed=printed,
        )

    return make


def report(run, *, epoch, confusion=GOOD, best_epoch=None):
    record = {"epoch": epoch, "global_step": 2 * epoch, "train/epoch_loss": 1.25, "val/loss": 1.5, "val/top1": 1.0}
    worst = (Mistake(7, 0, 2, 0.9, 5.0),)
    found = Evaluation(1.5, confusion, num_top5=None, worst=worst)
    printed = list(run.printed)
    tell = results.report_epoch(run, Progress(best_epoch=best_epoch), record | {"perf/epoch_seconds": 3}, found)
    assert run.printed == printed, "the line comes when the checkpoint is on the disk"
    tell()
    return [given for name, given, _ in run.log.calls if name == "log"][-1][0]


def test_every_epoch_is_recorded_and_printed(run_at):
    run = run_at()
    record = report(run, epoch=1)
    assert record["per_class/cat"] == 1.0
    assert record["kernels/conv1_cosine"] == 0.5, "numbers are always there"
    assert run.log.names() == ["log"], "pictures are not due"
    (line,) = run.printed
    assert line.startswith("epoch 1/5  training loss 1.2500")


@pytest.mark.parametrize(("epoch", "is_last"), [(2, False), (5, True)])
def test_pictures_come_when_they_are_due_and_at_the_end(run_at, epoch, is_last):
    run = run_at()
    report(run, epoch=epoch)
    assert run.log.names() == ["show", "confusion", "write", "show", *["table"] * is_last, "log"]
    _, (name, content), _ = run.log.calls[2]
    assert (name, content["epoch"], content["class_names"]) == ("evaluation.json", epoch, list(NAMES))
    assert run.log.calls[3][2] == {"send": False}, "the sheet of mistakes stays in the run folder"


def shown(run):
    """Return the epochs and steps whose kernels were drawn."""
    given = [given for name, given, how in run.log.calls if name == "show" and not how]
    return [(record["epoch"], record["global_step"]) for record, _ in given]


def test_the_best_epoch_has_pictures_at_the_end(run_at, tmp_path):
    run = run_at(draw_every=None, last_step=80)
    for epoch, best_epoch in ((31, 31), (33, 33), (35, 33), (40, 33)):
        assert (33, 66) not in shown(run), "a better one may come, and nothing that was sent is taken back"
        report(run, epoch=epoch, best_epoch=best_epoch)
    assert shown(run) == [(33, 66), (40, 80)], "the last comes last: it is the newest of the folder"
    assert list((tmp_path / "figures").iterdir()) == []


def test_a_best_epoch_with_pictures_needs_no_others(run_at, tmp_path):
    run = run_at(draw_every=None, last_step=80)
    for epoch, best_epoch in ((33, 33), (34, 34), (40, 34)):
        report(run, epoch=epoch, best_epoch=best_epoch)
    assert shown(run) == [(34, 68), (40, 80)]
    assert list((tmp_path / "figures").iterdir()) == []


def test_kernels_of_a_best_epoch_that_the_run_went_back_before_are_not_drawn(run_at, tmp_path):
    report(run_at(draw_every=None, last_step=80), epoch=33, best_epoch=33)
    again = run_at(draw_every=None, last_step=80)  # from a checkpoint of epoch 32
    report(again, epoch=40, best_epoch=7)
    assert shown(again) == [(40, 80)]
    assert list((tmp_path / "figures").iterdir()) == []


def test_the_option_draws_no_best_epoch(run_at, tmp_path):
    report(run_at(draw_every=2), epoch=1, best_epoch=1)
    assert not (tmp_path / "figures").exists()


def test_a_disk_that_takes_no_best_kernels_costs_nothing_else(run_at, tmp_path, caplog):
    (tmp_path / "figures").write_text("in the way")
    run = run_at(draw_every=None, last_step=80)
    report(run, epoch=33, best_epoch=33)
    report(run, epoch=40, best_epoch=33)
    assert shown(run) == [(40, 80)]
    assert "the best epoch may get no pictures" in caplog.text


def test_ranks_without_a_log_draw_nothing(run_at, tmp_path):
    run = run_at(enabled=False)
    report(run, epoch=5, confusion=BLIND)
    assert run.log.names() == ["log"], "it decides itself that there is nothing to write"
    results.draw(run, Evaluation(1.5, GOOD, num_top5=None, worst=()))
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_has_learned_nothing_is_an_alert_and_a_warning(run_at):
    run = run_at()
    report(run, epoch=1, confusion=BLIND)
    _, (title, words), how = run.log.calls[-1]
    assert (title, how) == ("Nothing learned", {"level": "WARN"})
    assert run.printed[-1] == f"warning: THE NETWORK HAS LEARNED NOTHING: {words}"


def test_curves_and_the_confusion_matrix_are_drawn(run_at, tmp_path):
    run = run_at()
    record = {
        "global_step": 2,
        "epoch": 1,
        "train/loss": 1.0,
        "train/epoch_loss": 1.0,
        "val/loss": 1.5,
        "val/top1": 0.5,
    }
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(record)}\n")
    results.draw(run, Evaluation(1.5, GOOD, num_top5=None, worst=()))
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"loss.png", "accuracy.png", "confusion.png"}
    assert (tmp_path / "figures").stat().st_mode & 0o777 == 0o700


# ---- a step whose loss is not finite --------------------------------------------------------------------------------


IMAGES = [(7, 1.5), (3, float("nan"))]
"""(id, loss) of the step's images."""


@pytest.fixture
def keep(tmp_path):
    """Keep the evidence of step 12 and return the run folder's non_finite/, and the order of images."""

    def kept(*, enabled=True, partners=False, augments=True):
        table = torch.arange(40 * 10.0).reshape(40, 10) if augments else None
        context = SimpleNamespace(
            network=torch.nn.Linear(2, 1),
            inputs=SimpleNamespace(draws=lambda epoch, _: table if epoch == 4 else None),
            accelerator=SimpleNamespace(num_processes=2),
            learning_rate=lambda step: 0.5 if step == 11 else 0.0,
        )
        order = GlobalBatches(40, 8, seed=0, drop_last=True, partners=partners)
        order.set_position(epoch=4)
        run = SimpleNamespace(
            config=Config(),
            dataset=dataset(),
            context=context,
            loaders=SimpleNamespace(order=order),
            log=SimpleNamespace(enabled=enabled, folder=tmp_path),
        )
        error = NonFiniteError("a loss is NaN", step=12, images=IMAGES)
        results.keep_evidence(run, Progress(step=11, epoch=4), error)
        return tmp_path / "non_finite", order

    return kept


def test_a_step_is_kept_with_all_it_was_computed_from(keep):
    kept, _ = keep()
    (folder,) = kept.iterdir()
    assert folder.name == "step_00000012"
    batch = safetensors.torch.load_file(folder / "batch.safetensors")
    split = dataset().train
    assert torch.equal(batch["images"], torch.from_numpy(split.images[[7, 3]]))
    assert torch.equal(batch["labels"], torch.from_numpy(split.labels[[7, 3]]))
    assert batch["losses"].isnan().tolist() == [False, True]
    assert batch["draws"][:, 0].tolist() == [70, 30], "of the images, and of this epoch"
    report = json.loads((folder / "report.json").read_text())
    assert (report["step"], report["epoch"], report["learning_rate"]) == (12, 5, 0.5), "the rate that the step had"
    assert (report["world_size"], report["config"]["seed"], report["error"]) == (2, 0, "a loss is NaN")
    assert safetensors.torch.load_file(folder / "model.safetensors")["weight"].shape == (1, 2)


def test_mixed_images_are_kept_with_their_partners(keep):
    kept, order = keep(partners=True)
    batch = safetensors.torch.load_file(kept / "step_00000012/batch.safetensors")
    assert batch["partner_ids"].tolist() == order.partner_table()[[7, 3]].tolist()
    assert torch.equal(batch["partner_draws"][:, 0], batch["partner_ids"] * 10.0)


def test_images_without_augmentation_have_no_random_numbers(keep):
    kept, _ = keep(augments=False)
    assert "draws" not in safetensors.torch.load_file(kept / "step_00000012/batch.safetensors")


def test_only_rank_0_keeps_anything(keep):
    assert not keep(enabled=False)[0].exists()
