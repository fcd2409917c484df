"""`alexnet_dist.load`: a trained network from its file alone."""

import json

import pytest
import safetensors.torch
import torch
import torchvision
from tiny import run, summary, tiny_alexnet

import alexnet_dist
from alexnet_dist.config import DataConfig
from alexnet_dist.data import load as load_data
from alexnet_dist.errors import UserError
from alexnet_dist.models import weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three epochs of which each is kept, with a checkpoint in mid-epoch and an average of the weights."""
    flags = ["--epochs", "3", "--checkpoint.keep", "9", "--checkpoint.every-steps", "4", "--optim.ema", "0.5"]
    return run(tmp_path_factory.mktemp("trained") / "run", *flags, "--optim.lr", "3e-3")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)


def metadata_of(path):
    return weights.read(path, named_by="FILE").metadata


def test_a_run_folder_is_enough_to_repeat_its_accuracy(folder):
    trained = alexnet_dist.load(folder, which="last")
    test = load_data(DataConfig(dataset="synthetic", limit=52, batch_size=16)).test
    with torch.no_grad():
        predicted = trained.network(trained.inputs(torch.from_numpy(test.images))).argmax(1).numpy()
    correct = int((predicted == test.labels).sum())
    assert correct == trained.metadata["result"]["correct"]
    assert correct / 52 == summary(folder)["final_top1"]
    assert trained.class_names[0] == "pattern 0"
    assert trained.path.name == "ema.safetensors", "what evaluation measured"
    assert not trained.network.training


def test_which_checkpoint_is_meant(folder):
    by_step = {step: f"step_{step:08d}" for step in (3, 4, 6, 8, 9)}
    best = summary(folder)["best_epoch"] * 3
    for which, step in (("best", best), ("last", 9), ("6", 6)):
        assert alexnet_dist.load(folder, which=which).path.parent.name == by_step[step]
    checkpoint = folder / "checkpoints" / by_step[3]
    assert alexnet_dist.load(checkpoint).path.parent == checkpoint
    assert alexnet_dist.load(str(checkpoint / "model.safetensors")).path.name == "model.safetensors"


def test_only_what_was_evaluated_claims_a_result(folder):
    for step, epoch in ((3, 1), (6, 2), (9, 3)):
        checkpoint = folder / f"checkpoints/step_{step:08d}"
        found = metadata_of(checkpoint / "ema.safetensors")
        assert found == json.loads((checkpoint / "config.json").read_text())
        assert found["result"] == {
            "correct": found["result"]["correct"],
            "total": 52,
            "precision": "fp32",
            "epoch": epoch,
            "step": step,
            "ema": True,
        }
        assert metadata_of(checkpoint / "model.safetensors") == {**found, "result": None}, "the claim is the average's"
    in_mid_epoch = folder / "checkpoints/step_00000004"
    assert metadata_of(in_mid_epoch / "ema.safetensors")["result"] is None
    assert json.loads((in_mid_epoch / "config.json").read_text())["result"] is None


def test_metadata_say_what_is_needed(folder):
    found = alexnet_dist.load(folder).metadata
    data = load_data(DataConfig(dataset="synthetic", limit=52, batch_size=16))
    assert found["data"] == {
        "name": "synthetic",
        "revision": None,
        "fingerprint": data.fingerprint,
        "split": "test",
        "num_train_images": 52,
        "num_eval_images": 52,
        "options": {"limit": 52},
    }
    assert (found["input"]["image_size"], found["input"]["stored_size"]) == (64, 32)
    assert found["input"]["mean"] == pytest.approx(data.mean)
    assert found["versions"].keys() >= {"alexnet_dist", "torch", "git_commit"}


def test_weights_of_a_run_bring_their_statistics_to_the_next(folder, tmp_path):
    """Other images have other statistics; a network that was trained keeps those that it was trained on."""
    file = folder / "checkpoints/step_00000009/model.safetensors"
    flags = ["--data.dataset", "digits", "--model.weights", str(file), "--max-steps", "1"]
    again = alexnet_dist.load(run(tmp_path / "run", *flags), which="last")
    assert again.inputs.spec.mean == alexnet_dist.load(folder).inputs.spec.mean


def modes(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mode & 0o777 for path in folder.rglob("*")}


def test_the_network_is_for_others_and_the_rest_is_private(folder):
    found = modes(folder / "checkpoints")
    for name, mode in found.items():
        private = name.endswith(("state.json", "optimizer.safetensors"))
        assert mode == (0o600 if private else 0o755 if name.count("/") == 0 else 0o644), name
    assert (folder / "checkpoints").stat().st_mode & 0o777 == 0o755


def older(path):
    safetensors.torch.save_file(tiny_alexnet(num_classes=3).state_dict(), path / "old.safetensors")
    return path / "old.safetensors"


def incomplete(path):
    weights.write(path / "new.safetensors", tiny_alexnet(num_classes=3).state_dict(), {"schema": 1})
    return path / "new.safetensors"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path, "holds no checkpoint: name a run folder"),
        (lambda path: path / "none.safetensors", "there is no such file"),
        (older, "has no metadata"),
        (incomplete, "its metadata are incomplete"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, make, words):
    with pytest.raises(UserError, match=words) as refusal:
        alexnet_dist.load(make(tmp_path))
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match="no checkpoint 5: choose best, last, or 3, 4, 6, 8, 9"):
        alexnet_dist.load(folder, which="5")
