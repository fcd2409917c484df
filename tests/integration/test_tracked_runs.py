"""What trackers get from a run: its weights with a card that works, alerts, endings."""

import json
import re
import signal

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tiny import records, run, tiny_alexnet, weights

import alexnet_dist
from alexnet_dist.config import DataConfig
from alexnet_dist.data import load
from alexnet_dist.data.inputs import Inputs
from alexnet_dist.distributed.signals import StoppedError
from alexnet_dist.report import page as report
from alexnet_dist.tracking import wandb_tracker
from alexnet_dist.tracking.tracker import Tracker
from alexnet_dist.training import eval_loop, metrics, train_loop

# ---- weights --------------------------------------------------------------------------------------------------------


class Collector(Tracker):
    """Keeps what it is given, and a copy of the files, which may be gone later."""

    def __init__(self, calls):
        self.calls, self.alerts, self.endings = calls, [], []

    def publish(self, weights):
        self.calls.append((weights, weights.path.read_bytes()))

    def alert(self, title, text, level):
        self.alerts.append((title, text, level))

    def preempted(self):
        self.endings.append("preempted")

    def close(self, exit_code):
        self.endings.append(exit_code)


@pytest.fixture
def collector(monkeypatch):
    """What a run in this process sends instead of to W&B."""
    collector = Collector([])
    monkeypatch.setattr(wandb_tracker, "WandbTracker", lambda *_, **__: collector)
    return collector


@pytest.fixture
def published(collector):
    """The weights among it."""
    return collector.calls


WANDB = ["--log.trackers", "wandb", "--wandb.mode", "offline"]


@pytest.mark.parametrize("wish", ["none", "final"])
def test_best_and_last_weights_are_published_at_the_end(tmp_path, published, monkeypatch, wish):
    tops = iter([0.3, 0.5, 0.4])
    evaluate = eval_loop.evaluate

    def graded(*arguments, **how):
        evaluate(*arguments, **how)
        correct = round(next(tops) * 50)
        confusion = np.zeros((10, 10), dtype=np.int64)
        confusion[0, 0], confusion[1, 2] = correct, 50 - correct
        return metrics.Evaluation(1.0, confusion, num_top5=0, worst=())

    monkeypatch.setattr(eval_loop, "evaluate", graded)
    run(
        tmp_path / "run",
        *WANDB,
        "--wandb.artifacts",
        wish,
        "--epochs",
        "3",
        "--checkpoint.keep",
        "1",
        "--data.limit",
        "50",
    )
    found = [(sent.aliases, sent.facts["epoch"], sent.facts["top1"]) for sent, _ in published]
    assert found == ([] if wish == "none" else [(("best",), 2, 0.5), (("latest",), 3, 0.4)])
    assert [content for _, content in published] == [sent.path.read_bytes() for sent, _ in published]


def test_weights_of_every_epoch_are_published_as_they_are_saved(tmp_path, published):
    run(tmp_path / "run", *WANDB, "--wandb.artifacts", "all", "--checkpoint.every-steps", "2", "--optim.ema", "0.9")
    assert [weights.facts["epoch"] for weights, _ in published] == [1, 2], "not those in mid-epoch"
    assert all(weights.path.name == "ema.safetensors" for weights, _ in published), "what the accuracy is of"
    assert published[0][0].aliases == ("latest", "best")


def test_the_card_tells_how_to_load_the_weights(tmp_path, published, monkeypatch):
    run(tmp_path / "run", *WANDB, "--wandb.artifacts", "final", "--max-steps", "2")
    ((sent, content),) = published
    assert sent.aliases == ("best", "latest")
    card = sent.texts["README.md"]
    images = load(DataConfig(dataset="synthetic", limit=52, batch_size=16))
    assert str(images.mean) in card
    assert "64x64" in card
    assert "52 images" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    (tmp_path / "model.safetensors").write_bytes(content)
    Image.new("RGB", (70, 50), (90, 120, 30)).save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)
    scope = {}
    exec(compile(code, "card", "exec"), scope)
    assert scope["class_names"] == list(images.class_names) == json.loads(sent.texts["class_names.json"])
    (expected,) = alexnet_dist.load(tmp_path / "model.safetensors").predict("picture.jpg", top=1)
    assert scope["class_names"][scope["probabilities"].argmax()] == expected[0].name
    saved = weights(tmp_path / "run")
    assert all(torch.equal(value, saved[key]) for key, value in scope["network"].state_dict().items())


# ---- alerts and endings ---------------------------------------------------------------------------------------------


def test_a_collapse_and_the_end_are_alerts(tmp_path, collector):
    run(tmp_path / "run", *WANDB, "--optim.lr", "1e-30")
    (collapse, _, warn), (end, text, info) = collector.alerts
    assert (collapse, warn, end, info) == ("Nothing learned", "WARN", "Finished", "INFO"), "once each, in two epochs"
    assert "6 steps" in text
    assert collector.endings == [0]


def test_a_nan_is_an_alert_and_no_success(tmp_path, collector, monkeypatch):
    make = Inputs.augmented
    monkeypatch.setattr(Inputs, "augmented", lambda *arguments: make(*arguments) * torch.nan)
    with pytest.raises(metrics.NonFiniteError):
        run(tmp_path / "run", *WANDB)
    ((title, text, level),) = collector.alerts
    assert (title, level) == ("Not a number", "ERROR")
    assert "step 1" in text
    assert collector.endings == [1]


@pytest.mark.parametrize(("number", "expected"), [("SIGTERM", ["preempted", 143]), ("SIGINT", [130])])
def test_only_a_machines_signal_is_a_preemption(tmp_path, collector, monkeypatch, number, expected):
    """A sweep takes up again what was preempted, not what somebody has stopped."""
    step = train_loop.train_step
    monkeypatch.setattr(
        train_loop, "train_step", lambda *a, **k: (signal.raise_signal(signal.Signals[number]), step(*a, **k))[1]
    )
    with pytest.raises(StoppedError):
        run(tmp_path / "run", *WANDB)
    assert collector.endings == expected
    assert "Finished" not in [title for title, *_ in collector.alerts]


def test_the_stop_button_ends_the_run_as_a_person_does(tmp_path, collector, monkeypatch):
    pressed = {}
    monkeypatch.setattr(wandb_tracker, "WandbTracker", lambda *_, stop, **__: (pressed.update(stop=stop), collector)[1])
    step = train_loop.train_step
    monkeypatch.setattr(train_loop, "train_step", lambda *a, **k: (pressed["stop"](), step(*a, **k))[1])
    with pytest.raises(StoppedError) as stop:
        run(tmp_path / "run", *WANDB)
    assert stop.value.exit_code == 130
    assert weights(tmp_path / "run"), "and saves its state first"
    assert collector.endings == [130]


# ---- all of it in a run ---------------------------------------------------------------------------------------------


def test_a_run_folder_shows_all_of_it(tmp_path):
    folder = run(tmp_path / "run", "--log.kernels-every-epochs", "1", reported=True)
    layers = [f"{c}_{w}" for c in ("conv1", "conv2", "conv2_overview") for w in ("before", "now", "diff")]
    for epoch in (1, 2):
        shown = {path.stem for path in (folder / f"figures/epoch_{epoch:04d}").iterdir()}
        assert shown == {*layers, "summary", "errors", "right"}
    assert {path.stem for path in (folder / "figures/epoch_0000").iterdir()} == {"first_batch"}
    for name in (*layers, "summary", "errors", "right"):
        newest = (folder / "figures" / f"{name}.png").read_bytes()
        assert newest == (folder / "figures/epoch_0002" / f"{name}.png").read_bytes()
    content = json.loads((folder / "evaluation.json").read_text())
    assert (content["epoch"], content["global_step"]) == (2, 6)
    assert sum(map(sum, content["confusion"])) == 52
    wrong = 52 - sum(content["confusion"][i][i] for i in range(10))
    assert len(content["worst"]) == min(64, wrong)
    ends = [record for record in records(folder) if "val/top1" in record]
    assert sum(key.startswith("per_class/") for key in ends[-1]) == 10
    for key in ("kernels/conv1_cosine", "kernels/conv2_dead", "kernels/conv1_norm_median", "best/top1", "val/top5"):
        assert key in ends[-1], key
    page = (folder / report.REPORT).read_text(encoding="utf-8")
    assert "conv1" in page
    assert f"{100 * ends[-1]['val/top1']:.2f}" in page
