"""Whole runs of train.py in one process: what they leave behind, how they resume, how they fail."""

import copy
import dataclasses
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
import warm
import yaml
from deadlines import deadline
from PIL import Image
from places import ROOT
from tiny import (
    DEFAULT_OPTIMIZER,
    FLAGS,
    equal,
    golden_alexnet,
    losses,
    records,
    run,
    run_with_ids,
    summary,
    tiny_alexnet,
    weights,
    without_clocks,
)

import alexnet_dist
from alexnet_dist.commands import train
from alexnet_dist.config import parse
from alexnet_dist.data import load
from alexnet_dist.errors import UserError
from alexnet_dist.models import alexnet as model
from alexnet_dist.tracking import Console
from alexnet_dist.training import eval_loop, metrics, optimizer, train_loop

FIGURES = {"loss", "accuracy", "confusion", "summary", "errors", "right", "first_batch"} | {
    f"{c}_{w}" for c in ("conv1", "conv2", "conv2_overview") for w in ("before", "now", "diff")
}
SUMMARY = """best_top1 final_top1 final_train_loss epochs global_step num_parameters num_train_images num_eval_images
    dataset world_size global_batch_size precision device images_per_second wall_seconds status""".split()


@pytest.fixture
def copy_of_finished(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "finished")


def test_run_folder_is_complete(finished_run):
    assert {path.name for path in finished_run.iterdir()} == {
        ".lock", "config.yaml", "metrics.jsonl", "summary.json", "evaluation.json", "figures", "checkpoints",
    }  # fmt: skip
    pictures = list((finished_run / "figures").glob("*.png"))
    assert {path.stem for path in pictures} == FIGURES
    sheets_of_few = {"right"}  # one thumbnail for each class that is recognised
    assert all(min(Image.open(path).size) > 200 for path in pictures if path.stem not in sheets_of_few)
    checkpoints = sorted(path.name for path in (finished_run / "checkpoints").iterdir())
    assert checkpoints == ["step_00000003", "step_00000006"]
    for name in checkpoints:
        files = {path.name for path in (finished_run / "checkpoints" / name).iterdir()}
        assert files == {"model.safetensors", "config.json", "optimizer.safetensors", "state.json", "MANIFEST.json"}


def test_summary_keeps_the_contract(finished_run):
    found = summary(finished_run)
    assert set(SUMMARY) <= found.keys()
    expected = {"epochs": 2, "global_step": 6, "num_train_images": 52, "num_eval_images": 52, "status": "finished"}
    expected |= {"dataset": "synthetic", "world_size": 1, "global_batch_size": 16, "precision": "fp32", "device": "CPU"}
    assert {key: found[key] for key in expected} == expected
    assert found["images_per_second"] > 0


def test_metrics_keep_the_contract(finished_run):
    lines = records(finished_run)
    assert all({"global_step", "epoch"} <= line.keys() for line in lines)
    steps = [line for line in lines if "train/loss" in line]
    assert [line["global_step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in steps] == [1, 1, 1, 2, 2, 2]
    for key in (
        "train/lr",
        "train/grad_norm",
        "perf/images_per_second",
        "optim/weight_norm",
        "perf/step_ms",
        "perf/step_ms_p50",
        "perf/step_ms_p95",
        "perf/memory_gib",
        "perf/data_wait_pct",
        "perf/mfu",
    ):
        assert all(math.isfinite(line[key]) for line in steps), key
    ends = [line for line in lines if "val/top1" in line]
    assert [(line["global_step"], line["epoch"]) for line in ends] == [(3, 1), (6, 2)]
    assert all(0 <= line["val/top1"] <= 1 and line["val/num_images"] == 52 for line in ends)
    assert all(line["kernels/conv1_rel_change"] > 0 and line["kernels/conv2_rel_change"] > 0 for line in ends)
    epoch_mean = np.mean([line["train/loss"] for line in steps[3:]])
    assert ends[1]["train/epoch_loss"] == pytest.approx(epoch_mean, rel=1e-12)


def test_recorded_configuration_repeats_the_run(finished_run, tmp_path):
    config = parse(["--config", str(finished_run / "config.yaml")])
    assert config.out_dir == finished_run
    again = run(tmp_path / "again", "--config", str(finished_run / "config.yaml"), "--out-dir", str(tmp_path / "again"))
    assert equal(weights(again), weights(finished_run))
    assert losses(again) == losses(finished_run)


def test_another_seed_is_another_run(finished_run, tmp_path):
    assert losses(run(tmp_path / "run", "--seed", "1", "--epochs", "1")) != losses(finished_run)[:3]


def test_network_learns_synthetic_patterns(tmp_path):
    flags = [
        "--data.limit",
        "512",
        "--epochs",
        "3",
        "--optim.lr",
        "2e-3",
        "--data.batch-size",
        "32",
        "--data.no-augment",
    ]
    flags += ["--model.dropout", "0", "--log.every-steps", "100"]
    assert summary(run(tmp_path / "run", *flags, network=golden_alexnet))["final_top1"] > 0.5


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_stopped_and_resumed_run_equals_an_uninterrupted_one(finished_run, tmp_path, stop):
    """Stopped in the middle of an epoch, at its end, and after it: the same weights, optimizer state and numbers."""
    folder = run(tmp_path / "run", "--max-steps", str(stop))
    assert summary(folder)["status"] == "max_steps"
    run(folder, "--resume", "must")
    for name in ("model", "optimizer"):
        assert equal(weights(folder, name=name), weights(finished_run, name=name))
    whole = [without_clocks(line) for line in records(finished_run)]
    ours = [without_clocks(line) for line in records(folder)]
    assert [line for line in ours if "train/loss" in line] == [line for line in whole if "train/loss" in line]
    assert ours[-1] == whole[-1]
    assert summary(folder)["status"] == "finished"


def test_a_stopped_run_of_the_default_optimizer_goes_on_to_the_bit(tmp_path):
    whole = run(tmp_path / "whole", *DEFAULT_OPTIMIZER)
    cut = run(tmp_path / "cut", *DEFAULT_OPTIMIZER, "--max-steps", "2")
    assert summary(cut)["status"] == "max_steps"
    run(cut, *DEFAULT_OPTIMIZER, "--resume", "must")
    for name in ("model", "optimizer"):
        assert equal(weights(cut, name=name), weights(whole, name=name))


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_muon_multiplies_in_the_precision_of_the_run(tmp_path, precision, kind, monkeypatch):
    """Without bf16 instructions a CPU takes fp32, and would take seconds for Muon's products in bf16."""
    build, kinds = optimizer.build, []
    monkeypatch.setattr(optimizer, "build", lambda *a, products: kinds.append(products) or build(*a, products=products))
    run(tmp_path / "run", *DEFAULT_OPTIMIZER, "--max-steps", "1", "--runtime.precision", precision)
    assert kinds == [kind]


def test_a_resumed_run_sees_each_image_as_the_uninterrupted_one_does(tmp_path):
    whole = run_with_ids(tmp_path / "whole", [])
    parts = run_with_ids(tmp_path / "parts", ["--max-steps", "2"]) + run_with_ids(tmp_path / "parts", [])
    assert parts == whole
    for epoch in (whole[:3], whole[3:]):
        ids = [i for batch in epoch for i in batch]
        assert len(ids) == len(set(ids)) == 48


def test_resume_from_a_checkpoint_in_mid_epoch_with_ema(tmp_path):
    """`every-steps` saves where no epoch ends; the run is then cut as if it had been killed after that save."""
    flags = ["--checkpoint.every-steps", "2", "--optim.ema", "0.9", "--checkpoint.keep", "9", "--optim.name", "sgd"]
    whole = run(tmp_path / "whole", *flags)
    cut = run(tmp_path / "cut", *flags)
    for path in sorted((cut / "checkpoints").iterdir())[1:]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    assert [path.name for path in (cut / "checkpoints").iterdir()] == ["step_00000002"]
    run(cut, *flags)
    for name in ("model", "optimizer", "ema"):
        assert equal(weights(cut, name=name), weights(whole, name=name))
    assert not equal(weights(whole, name="ema"), weights(whole))
    assert [without_clocks(line) for line in records(cut)] == [without_clocks(line) for line in records(whole)]


def test_finished_run_trains_nothing_more(copy_of_finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy_of_finished.rglob("*")}
    run(copy_of_finished)
    assert "nothing to train" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in copy_of_finished.rglob("*")} == before


def test_existing_run_is_never_overwritten(copy_of_finished):
    with pytest.raises(UserError, match="--resume auto"):
        run(copy_of_finished, "--resume", "never")
    with pytest.raises(UserError, match=r"optim.lr: 0.0005 -> 0.01"):
        run(copy_of_finished, "--optim.lr", "0.01")


def test_more_epochs_continue_a_finished_run(tmp_path):
    folder = run(tmp_path / "run", "--epochs", "1", "--optim.schedule", "constant")
    run(folder, "--epochs", "2", "--optim.schedule", "constant")
    assert equal(weights(folder), weights(run(tmp_path / "whole", "--optim.schedule", "constant")))


def test_other_images_are_not_resumed_on(tmp_path, image_folder):
    images = image_folder(size=8, per_class=10)
    flags = ["--data.dataset", str(images), "--data.batch-size", "4", "--max-steps", "1", "--data.limit", "20"]
    folder = run(tmp_path / "run", *flags)
    Image.new("RGB", (8, 8)).save(images / "train" / "cat" / "0.png")
    with pytest.raises(UserError, match="other images"):
        run(folder, *flags[:-4], "--max-steps", "2", "--data.limit", "20")


def test_damaged_newest_checkpoint_falls_back_loudly(finished_run, tmp_path, caplog):
    folder = run(tmp_path / "run", "--max-steps", "4", "--checkpoint.every-steps", "2")
    newest = max((folder / "checkpoints").iterdir())
    with (newest / "model.safetensors").open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    run(folder, "--checkpoint.every-steps", "2")
    assert "IS DAMAGED" in caplog.text
    assert equal(weights(folder), weights(finished_run))


def test_a_run_killed_before_its_first_checkpoint_starts_again(finished_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text((finished_run / "config.yaml").read_text())
    (folder / "metrics.jsonl").write_text('{"global_step": 1, "epoch": 1, "train/loss": 9}\n{"global_st')
    run(folder)
    assert losses(folder) == losses(finished_run)


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_non_finite_step_is_never_taken(tmp_path, monkeypatch, place):
    """From step 2 on nothing moves; the message names the step and, for a loss, the image."""
    good = run(tmp_path / "good", "--max-steps", "1", "--model.dropout", "0")
    step_function, calls, poisoned = train_loop.train_step, [], []

    def poison(context, batch, draws, *, step: int, lr: float):
        calls.append(step)
        if step == 1:
            poisoned.append(int(batch["ids"][3]))
            prepared = context.inputs.augmented(batch, draws)
            prepared[3] = float("nan") if place == "loss" else 1e30
            replacement = dataclasses.replace(context, inputs=SimpleNamespace(augmented=lambda *_: prepared))
            return step_function(replacement, batch, None, step=step, lr=lr)
        return step_function(context, batch, draws, step=step, lr=lr)

    monkeypatch.setattr(train_loop, "train_step", poison)
    kept = {}
    monkeypatch.setattr(eval_loop, "evaluate", lambda *_, **__: pytest.fail("went on"))
    report = train_loop._report

    def look(context, *arguments):
        kept.update({name: value.clone() for name, value in context.model.state_dict().items()})
        return report(context, *arguments)

    monkeypatch.setattr(train_loop, "_report", look)
    with pytest.raises(metrics.NonFiniteError) as caught:
        run(tmp_path / "bad", "--log.every-steps", "3", "--model.dropout", "0")
    assert calls == [0, 1, 2]  # the device was not waited for in between, and
    assert equal(kept, weights(good))  # still step 2 and step 3 changed nothing
    assert "step 2" in str(caught.value)
    assert str(poisoned[0]) in str(caught.value)
    assert summary(tmp_path / "bad")["status"] == "non-finite"
    evidence = tmp_path / "bad" / "non_finite" / "step_00000002"
    assert evidence.parent.stat().st_mode & 0o777 == 0o700, "images of the data"
    assert equal(safetensors.torch.load_file(evidence / "model.safetensors"), weights(good))
    batch = safetensors.torch.load_file(evidence / "batch.safetensors")
    split = load(parse(FLAGS).data).train
    assert torch.equal(batch["images"], torch.from_numpy(split.images[batch["ids"].numpy()]))
    assert torch.equal(batch["labels"], torch.from_numpy(split.labels[batch["ids"].numpy()]))
    assert batch["draws"].shape == (16, 10)
    bad = batch["ids"][~batch["losses"].isfinite()].tolist()
    assert bad == (poisoned if place == "loss" else [])
    report = json.loads((evidence / "report.json").read_text())
    assert (report["step"], report["epoch"], report["config"]["seed"]) == (2, 1, 0)
    assert not list((tmp_path / "bad" / "checkpoints").glob("*")), "evidence is nothing to continue from"


def test_the_line_of_an_epoch_comes_when_its_records_and_checkpoint_are_on_the_disk(tmp_path, monkeypatch):
    told = []

    def look(_console, text):
        if text.startswith("epoch "):
            found = records(tmp_path / "run")
            saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
            told.append((text.split()[1], max(r["epoch"] for r in found if "val/top1" in r), saved))

    monkeypatch.setattr(Console, "print", look)
    run(tmp_path / "run", "--epochs", "3", "--checkpoint.every-epochs", "2")
    assert told == [("1/3", 1, []), ("2/3", 2, ["step_00000006"]), ("3/3", 3, ["step_00000006", "step_00000009"])]


def test_collapse_is_reported(tmp_path, capsys):
    run(tmp_path / "run", "--epochs", "1", "--optim.lr", "1e-30")
    assert "THE NETWORK HAS LEARNED NOTHING" in capsys.readouterr().err


def test_an_optimizer_of_other_parameters_is_diagnosed(tmp_path, capsys, monkeypatch):
    """The lecture's regime: the head was swapped behind the optimizer's back, so its steps went nowhere."""
    build = optimizer.build
    monkeypatch.setattr(
        optimizer, "build", lambda network, config, **kinds: build(copy.deepcopy(network), config, **kinds)
    )
    folder = run(tmp_path / "run", "--optim.lr", "3e-3")
    printed = " ".join(capsys.readouterr().err.split())
    assert equal(weights(folder), run_start(tmp_path)), "nothing moved"
    assert printed.count("THE NETWORK HAS LEARNED NOTHING") == 2, "after each epoch"
    assert "the optimizer does not hold this network's parameters" in printed


def run_start(tmp_path):
    """The weights that a run of FLAGS begins with."""
    return weights(run(tmp_path / "start", "--optim.lr", "1e-30", "--max-steps", "1"))


def test_a_network_without_the_flatten_stops_at_once(tmp_path, monkeypatch):
    """The lecture's other slip, as printed: children in a row, without what AlexNet.forward does between them."""
    build = model.build

    def without_flatten(*arguments, **keywords):
        network = build(*arguments, **keywords)
        network.forward = lambda images: network.classifier(network.avgpool(network.features(images)))
        return network

    monkeypatch.setattr(model, "build", without_flatten)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(tmp_path / "run")


def test_a_network_that_learns_is_not_called_collapsed(tmp_path, capsys):
    flags = ["--data.limit", "600", "--epochs", "6", "--optim.lr", "3e-3", "--data.no-augment", "--model.dropout", "0"]
    folder = run(tmp_path / "run", *flags)
    reached = [record["val/top1"] for record in records(folder) if "val/top1" in record]
    assert reached[-1] > 0.9
    silent = sum(top1 > 0.2 for top1 in reached)  # with 600 images, up to 14 % is chance
    assert silent >= 3
    assert capsys.readouterr().err.count("LEARNED NOTHING") <= len(reached) - silent


def test_fallback_is_announced_everywhere(tmp_path, capsys):
    flags = ["--data.dataset", "cifar10", "--data.fallback", "digits", "--max-steps", "1"]
    folder = run(tmp_path / "run", *flags)
    printed = capsys.readouterr()
    assert "CANNOT BE HAD: THIS RUN TRAINS ON digits" in printed.err
    assert "FALLBACK for cifar10" in printed.out
    assert (summary(folder)["dataset"], summary(folder)["fallback_for"]) == ("digits", "cifar10")


def test_accumulation_leaves_the_step_unchanged(tmp_path):
    whole = run(tmp_path / "whole", "--model.dropout", "0", "--epochs", "1")
    parts = run(tmp_path / "parts", "--model.dropout", "0", "--epochs", "1", "--optim.accumulate", "4")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert len(losses(parts)) == 3
    norms = [[record["train/grad_norm"] for record in records(folder)[:3]] for folder in (whole, parts)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)  # Adam's losses would not show a gradient of another scale


def test_options_change_what_they_say(finished_run, tmp_path):
    smooth = run(tmp_path / "smooth", "--optim.label-smoothing", "0.5", "--max-steps", "1")
    clipped = run(tmp_path / "clipped", "--optim.clip-norm", "1e-9", "--max-steps", "3")
    assert losses(smooth)[0] != losses(finished_run)[0]
    assert losses(clipped)[0] == losses(finished_run)[0]
    initial = run(tmp_path / "initial", "--optim.lr", "1e-30", "--max-steps", "1")
    moved = [key for key, value in weights(clipped).items() if not torch.equal(value, weights(initial)[key])]
    assert moved  # Adam's steps do not depend on the gradient's scale, so clipping alone does not stop them
    assert records(clipped)[0]["train/grad_norm"] == records(finished_run)[0]["train/grad_norm"]


def test_weights_of_a_run_start_another(finished_run, tmp_path):
    file = finished_run / "checkpoints" / "step_00000006" / "model.safetensors"
    folder = run(tmp_path / "run", "--model.weights", str(file), "--optim.lr", "1e-30", "--max-steps", "1")
    torch.testing.assert_close(weights(folder), weights(finished_run), atol=1e-20, rtol=0)


def test_bf16_is_close_to_fp32(tmp_path):
    folder = run(tmp_path / "run", "--runtime.precision", "bf16", "--model.dropout", "0", "--max-steps", "2")
    exact = run(tmp_path / "exact", "--model.dropout", "0", "--max-steps", "2")
    assert losses(folder) == pytest.approx(losses(exact), rel=2e-2)
    assert losses(folder) != losses(exact)
    assert all(value.dtype == torch.float32 for value in weights(folder).values())


def test_real_network_by_the_command_line(tmp_path):
    """The real AlexNet, started as a user starts it; its weights load into torchvision's."""
    flags = ["--data.dataset", "digits", "--data.limit", "64", "--data.batch-size", "32", "--data.image-size", "64"]
    command = [sys.executable, "train.py", *flags, "--max-steps", "1", "--out-dir", str(tmp_path / "run")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=deadline(300))
    assert ended.returncode == 0, ended.stderr
    assert "57,044,810" in ended.stdout
    assert "features.0.weight" in ended.stdout
    assert summary(tmp_path / "run")["num_parameters"] == 57_044_810
    state = safetensors.torch.load_file(tmp_path / "run/checkpoints/step_00000001/model.safetensors")
    torchvision.models.alexnet(num_classes=10).load_state_dict(state)


MISTAKES = {
    "./nowhere": ["--data.dataset", "./nowhere"],
    "--data.batch-size": ["--data.dataset", "digits", "--data.batch-size", "9999"],
    "none.safetensors": ["--data.dataset", "digits", "--model.weights", "none.safetensors"],
    "/dev/null/x": ["--data.dataset", "digits", "--out-dir", "/dev/null/x"],
}


def test_user_mistakes_end_with_code_2_and_no_traceback():
    """The first as a user types it; the others in processes that begin with torch imported."""
    for number, (words, flags) in enumerate(MISTAKES.items()):
        arguments = ["train.py", *flags, "--data.image-size", "64", "--log.trackers"]
        if number == 0:
            command = [sys.executable, *arguments]
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=deadline(300)
            )
        else:
            code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')"
            ended = warm.execute(code, *arguments, timeout=deadline(300))
        assert ended.returncode == 2, ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.stderr.startswith("error: ")
        assert words in ended.stderr


def test_default_run_folder_is_new_and_under_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = "--data.dataset synthetic --data.limit 32 --data.batch-size 16 --data.image-size 64 --max-steps 1".split()
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)
    train.train(parse([*flags, "--log.trackers"]))
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("synthetic-")
    assert yaml.safe_load((folder / "config.yaml").read_text())["out_dir"] == f"runs/{folder.name}"
    assert json.loads((folder / "summary.json").read_text())["status"] == "max_steps"


def test_training_from_python_returns_a_result_and_works_again(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)
    config = parse([*FLAGS, "--out-dir", str(tmp_path / "run"), "--runtime.precision", "fp32"])
    result = alexnet_dist.train(config)
    assert (result.folder, result.status) == (tmp_path / "run", "finished")
    assert result.top1 == summary(result.folder)["final_top1"]
    assert (result.best_top1, result.best_epoch) == (summary(result.folder)["best_top1"], result.best_epoch)
    again = alexnet_dist.train(config)
    assert (again.status, again.top1) == ("nothing to train", result.top1)
    other = alexnet_dist.train(parse([*FLAGS, "--out-dir", str(tmp_path / "other"), "--runtime.precision", "bf16"]))
    assert other.status == "finished", "in another precision, in the same process"
