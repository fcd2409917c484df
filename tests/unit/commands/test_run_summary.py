"""The cards of a run, its epoch lines and its summary."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alexnet_dist.commands import run_summary
from alexnet_dist.config import Config, DataConfig, ModelConfig, OptimConfig
from alexnet_dist.data import Augment
from alexnet_dist.distributed.hardware import Hardware
from alexnet_dist.distributed.precision import Precision
from alexnet_dist.training.lr_schedule import LearningRate
from alexnet_dist.training.progress import Plan, Progress


@pytest.fixture
def network():
    return torch.nn.Linear(999, 1)  # 1000 parameters


@pytest.fixture
def dataset():
    return SimpleNamespace(
        train=torch.zeros(50_010),
        test=torch.zeros(10_000),
        class_names=("cat", "dog", "owl"),
        name="digits",
        fallback_for=None,
        fingerprint="f00d",
        evaluated_on="test",
        notes=(),
        flips=True,
    )


def parts_on(config, network, *, world_size=1, device="CPU", threads=4, last_step=1560, does=None, fit="enlarge"):
    """Return what the cards are made from, as keywords."""
    hardware = Hardware(
        device=device,
        world_size=world_size,
        threads=threads,
        precision=Precision("bf16", "this CPU has AMX"),
        peak_flops=1.5e12,
    )
    context = SimpleNamespace(
        network=network,
        inputs=SimpleNamespace(spec=SimpleNamespace(stored_size=32, fit=fit), augment=does),
        learning_rate=LearningRate(config.optim, config.data.batch_size, 156, 1560),
        flops_per_image=4_000_000_000,
    )
    plan = Plan(steps_per_epoch=156, last_step=last_step, record_every=20, save_every=None)
    return {"context": context, "plan": plan, "hardware": hardware}


CONFIG = Config(
    epochs=10,
    out_dir=Path("runs/a"),
    data=DataConfig(batch_size=320, cutout=0.0),
    model=ModelConfig(conv1_init_scale=1),
    optim=OptimConfig(name="adam", lr=5e-4, schedule="one-cycle"),
)


def run_card(dataset, network, *, config=CONFIG, progress=None, tracking="none", size=32, fit="enlarge", **where):
    of_run = {"flips": dataset.flips, "cutout": config.data.cutout, "crops": 1.0 if fit == "enlarge" else None}
    does = Augment(size, 9, 0, mix=None, mix_alpha=1.0, fill=(0, 0, 0), **of_run) if config.data.augment else None
    parts = parts_on(config, network, does=does, fit=fit, **where)
    places = {"hosts": {"a": 1, "b": 1}, "backend": "gloo", "interconnect": "eth0"}
    log = SimpleNamespace(facts=run_summary.facts(config, dataset, **parts) | places, tracking=tracking)
    run = SimpleNamespace(config=config, dataset=dataset, plan=parts["plan"], context=parts["context"], log=log)
    return run_summary.run_card(run, progress or Progress(), parts["hardware"])


def test_facts(dataset, network):
    facts = run_summary.facts(CONFIG, dataset, **parts_on(CONFIG, network, world_size=2))
    assert json.loads(json.dumps(facts)) == facts, "ready for JSON"
    expected = {
        "num_parameters": 1000,
        "num_train_images": 50_010,
        "num_eval_images": 10_000,
        "num_classes": 3,
        "dataset": "digits",
        "fallback_for": None,
        "fingerprint": "f00d",
        "evaluated_on": "test",
        "world_size": 2,
        "global_batch_size": 320,
        "steps_per_epoch": 156,
        "precision": "bf16",
        "device": "CPU",
        "cpu_threads": 4,
        "peak_tflops": 1.5,
        "flops_per_image": 4_000_000_000,
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["versions"]["torch"] == torch.__version__


def test_run_card(dataset, network):
    card = run_card(dataset, network, tracking="W&B offline")
    assert card == {
        "data": "digits: 50,010 training and 10,000 test images, 3 classes",
        "input": "32x32 -> 224x224, normalised, cropped and mirrored",
        "network": "AlexNet, 1,000 parameters",
        "hardware": "1 process on CPU, 4 threads each, products and convolutions at up to 1.50 TFLOP/s in all",
        "precision": "bf16 (this CPU has AMX)",
        "batch": "320 in all, 320 per process",
        "steps": "156 an epoch, 10 epochs; 90 images of each epoch's order do not fill a batch",
        "optimizer": "adam, lr 0.0005 one-cycle",
        "tracking": "W&B offline",
        "run folder": "runs/a (begins)",
    }


def test_run_card_tells_the_size_of_conv1s_draw_where_it_was_drawn_so():
    scaled = ModelConfig(conv1_init_scale=0.1)
    loaded = dataclasses.replace(scaled, weights=Path("w.safetensors"))
    words = [run_summary._conv1(model) for model in (ModelConfig(conv1_init_scale=1), scaled, loaded)]
    assert words == ["", ", conv1's initial weights times 0.1", ""]


def test_run_card_tells_which_layers_muon_takes():
    words = [run_summary._optimizer(OptimConfig(name=name)) for name in ("muon", "adamw")]
    assert words == ["muon (convolutions)", "adamw"]


def test_run_card_of_another_run(dataset, network):
    dataset.fallback_for = "cifar10"
    config = Config(
        epochs=10,
        out_dir=Path("runs/b"),
        max_steps=7,
        data=DataConfig(batch_size=30, augment=False, normalize=False),
        optim=OptimConfig(name="sgd", lr=0.1, schedule="cosine", ema=0.999, accumulate=3),
    )
    where = {"world_size": 2, "device": "NVIDIA H200", "last_step": 7}
    card = run_card(dataset, network, config=config, progress=Progress(step=5), **where)
    assert card["data"].startswith("digits (FALLBACK for cifar10): ")
    assert card["input"] == "32x32 -> 224x224, in [0, 1], as stored"
    assert card["hardware"].startswith("2 processes (DDP) on NVIDIA H200, products")
    assert card["hosts"] == "2 hosts: a (1), b (1); gloo over eth0"
    assert card["batch"] == "30 in all, 15 per process in 3 parts"
    assert card["steps"] == "156 an epoch, 10 epochs, stopping after step 7"
    assert card["optimizer"] == "sgd, lr 0.1 cosine, evaluates an average of weights (0.999)"
    assert card["run folder"] == "runs/b (continues after step 5)"


def test_run_card_of_held_out_images_mixed_and_scaled(dataset, network):
    dataset.evaluated_on = "held-out"
    data = DataConfig(batch_size=1024, cutout=0.25, mixup=0.2)
    config = Config(data=data, optim=OptimConfig(name="lamb", lr=0.01, scale_lr="sqrt", schedule="cosine"))
    card = run_card(dataset, network, config=config)
    assert card["data"] == "digits: 50,010 training and 10,000 held-out images, 3 classes"
    assert card["input"] == "32x32 -> 224x224, normalised, cropped and mirrored, cutout 0.25, mixup 0.2"
    assert card["optimizer"] == "lamb, lr 0.02 cosine"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ((False, "enlarge", 8, {}), "cropped, cutout 0.25"),
        ((True, "enlarge", 8, {}), "cropped and mirrored, cutout 0.25"),
        ((True, "enlarge", 7, {"cutout": 0.05}), "mirrored"),
        ((False, "enlarge", 7, {"cutout": 0.0}), "as stored"),
        ((False, "enlarge", 8, {"augment": False}), "as stored"),
        (
            (True, "crop", 224, {"crop_scale": 0.3}),
            "random resized crops from 0.3 of the area and mirrored, cutout 0.25",
        ),
        (
            (True, "enlarge", 32, {"resized_crop": 0.6, "cutout": 0.0}),
            "random resized crops from 0.6 of the area and mirrored",
        ),
        ((False, "crop", 224, {"cutout": 0.0}), "random resized crops from 0.08 of the area"),
        ((True, "crop", 224, {"augment": False}), "centre crops"),
    ],
)
def test_the_run_card_says_what_happens_to_images(dataset, network, case, words):
    """Digits are never mirrored, and a small image may be shifted or blotted out by less than a pixel."""
    dataset.flips, fit, size, data = case
    card = run_card(dataset, network, config=Config(data=DataConfig(**data)), size=size, fit=fit)
    assert card["input"].endswith(f"-> 224x224, normalised, {words}")


def test_a_limit_beyond_the_last_step_stops_nothing(dataset, network):
    config = Config(epochs=10, max_steps=9999, data=DataConfig(batch_size=320))
    assert run_card(dataset, network, config=config, last_step=1560)["steps"].startswith("156 an epoch, 10 epochs; ")


def test_epoch_line():
    record = {
        "epoch": 2,
        "train/epoch_loss": 1.23456,
        "val/loss": 0.98765,
        "val/top1": 0.456789,
        "perf/epoch_seconds": 80.2,
    }
    line = run_summary.epoch_line(record, epochs=10, split="test")
    assert line == "epoch 2/10  training loss 1.2346  test loss 0.9877  test accuracy 45.679%  1 m 20 s"
    assert "held-out loss 0.9877  held-out accuracy 45.679%" in run_summary.epoch_line(
        record, epochs=10, split="held-out"
    )


def finished():
    return Progress(
        step=312,
        epoch=2,
        samples_seen=100_000,
        epoch_loss=1.5,
        top1=0.41,
        top1_flip_tta=0.43,
        best_top1=0.42,
        best_epoch=1,
        train_seconds=50.0,
        wall_seconds=65.0,
    )


def test_summary_and_result_card(dataset, network):
    facts = run_summary.facts(CONFIG, dataset, **parts_on(CONFIG, network))
    summary = run_summary.summary(facts, finished(), status="finished")
    expected = {
        "status": "finished",
        "best_top1": 0.42,
        "best_epoch": 1,
        "final_top1": 0.41,
        "final_top1_flip_tta": 0.43,
        "final_train_loss": 1.5,
        "epochs": 2,
        "global_step": 312,
        "images_per_second": 2000.0,
        "wall_seconds": 65.0,
        "num_parameters": 1000,
        "num_train_images": 50_010,
        "num_eval_images": 10_000,
        "dataset": "digits",
        "world_size": 1,
        "global_batch_size": 320,
        "precision": "bf16",
        "device": "CPU",
    }
    assert {key: summary[key] for key in expected} == expected
    assert json.loads(json.dumps(summary)) == summary
    assert run_summary.result_card(summary, finished(), CONFIG, "W&B offline") == {
        "status": "finished",
        "top-1": "41.000% at the end, 42.000% at best (epoch 1); 43.000% with flip TTA",
        "time": "1 m 05 s for 312 steps",
        # 2000/s of 4 GFLOP at 1.5 TFLOP/s
        "speed": "2,000 images/s while training, MFU 5.33: above 1, as the peak measured at the start is too low",
        "tracking": "W&B offline",
        "files": "runs/a: report.html, metrics.jsonl, summary.json, figures/, checkpoints/",
    }
    possible = {**summary, "peak_tflops": 10.0}
    speed = run_summary.result_card(possible, finished(), CONFIG, "")["speed"]
    assert speed == "2,000 images/s while training, MFU 0.80"


def test_summary_of_a_run_that_failed_at_once(dataset, network):
    facts = run_summary.facts(CONFIG, dataset, **parts_on(CONFIG, network))
    summary = run_summary.summary(facts, Progress(), status="failed")
    assert summary["status"] == "failed"
    assert summary["images_per_second"] is None
    assert summary["final_top1"] is None
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    ("loss", "moved", "words"),
    [
        (2.304, True, ["the training loss, 2.3040, is that of guessing, ln 10", "--optim.lr"]),
        (2.2, True, ["chance. So ended"]),
        (2.304, False, ["the optimizer does not hold this network's parameters"]),
    ],
    ids=["the lecture's loss", "another loss", "nothing moved"],
)
def test_words_of_a_collapse(loss, moved, words):
    said = run_summary.collapse_words("chance", {"train/epoch_loss": loss}, num_classes=10, moved=moved)
    assert said.startswith("chance")
    assert all(word in said for word in words), said


def test_collapse_advice_names_real_options():
    from alexnet_dist.config import parse

    for words in ("--optim.lr", "--optim.warmup-epochs"):
        assert words in run_summary.COLLAPSE_ADVICE
        parse([words, "0.5"])


def test_what_a_run_is_filed_under_and_what_is_said_of_its_end(dataset, network):
    facts = run_summary.facts(CONFIG, dataset, **parts_on(CONFIG, network))
    assert run_summary.tags(facts) == [facts["dataset"], facts["precision"], "1 process"]
    assert run_summary.tags({**facts, "world_size": 8})[-1] == "8 processes"
    finding = run_summary.summary_sentence(run_summary.summary(facts, finished(), status="finished"))
    assert finding == f"{facts['dataset']}: top-1 41.00% after 312 steps, 42.00% at best (epoch 1), 1 m 05 s"
