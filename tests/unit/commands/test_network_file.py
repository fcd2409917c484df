"""The metadata of a network file, and which networks a run publishes."""

import dataclasses
import json

import checkpoints
import pytest
from exhibits import NAMES, dataset

from alexnet_dist.commands import network_file
from alexnet_dist.config import Config, OptimConfig, WandbConfig
from alexnet_dist.data.inputs import InputSpec
from alexnet_dist.models import weights
from alexnet_dist.training.progress import Progress

SPEC = InputSpec(224, stored_size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1))
HARDWARE = {"device": "CPU", "processor": "a CPU", "cpu_threads": 2, "world_size": 1}
FACTS = {
    **HARDWARE,
    "precision": "bf16",
    "global_batch_size": 8,
    "versions": {"alexnet_dist": "1.2", "torch": "2.14"},
    "git_commit": "c0ffee",
}
EVALUATED = Progress(step=30, epoch=3, top1=0.625, evaluated=30)


def described(progress=EVALUATED, **optim):
    return network_file.metadata(Config(optim=OptimConfig(**optim)), dataset(), SPEC, FACTS, progress)


def test_metadata_say_what_the_file_is_of():
    found = json.loads(json.dumps(described()))
    assert weights.parse_metadata(json.dumps(found)) == found, "a file of this version reads it"
    assert found["class_names"] == list(NAMES)
    assert InputSpec.from_json(found["input"]) == SPEC
    assert (found["data"]["name"], found["data"]["fingerprint"]) == ("some/data", dataset().fingerprint)
    assert (found["data"]["num_train_images"], found["data"]["num_eval_images"]) == (40, 40)
    assert found["training"] == {"epoch": 3, "step": 30, "precision": "bf16", "batch_size": 8}
    assert found["hardware"] == {"device": "CPU", "processor": "a CPU", "threads": 2, "ranks": 1}
    assert found["versions"] == {"alexnet_dist": "1.2", "torch": "2.14", "git_commit": "c0ffee"}


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_result_is_claimed_in_whole_images(ema):
    claim = {"correct": 25, "total": 40, "precision": "bf16", "epoch": 3, "step": 30}
    assert described(ema=ema)["result"] == {**claim, "ema": ema is not None}


@pytest.mark.parametrize("changes", [{"top1": None}, {"step": 31}], ids=["never", "before this step"])
def test_weights_that_were_not_evaluated_claim_nothing(changes):
    assert described(dataclasses.replace(EVALUATED, **changes))["result"] is None


# ---- publication ----------------------------------------------------------------------------------------------------


def checkpoint_of(folder, *, step, top1):
    path = checkpoints.save(folder / "checkpoints", step=step, progress=checkpoints.evaluated(step, top1))
    claim = None if top1 is None else {"correct": round(40 * top1), "total": 40}
    (path / "config.json").write_text(json.dumps({**described(), "result": claim}))
    return path


class Log:
    """Keeps what is published."""

    def __init__(self, folder):
        self.folder, self.facts, self.published = folder, {"dataset": "some/data"}, []

    def publish(self, sent):
        self.published.append(sent)


def sent_as(log):
    return [(sent.path.parent.name[-2:], sent.aliases) for sent in log.published]


def test_a_card_describes_the_network_and_its_inputs(tmp_path):
    log, path = Log(tmp_path), checkpoint_of(tmp_path, step=30, top1=0.625)
    network_file.publish(log, path, aliases=["best"])
    (sent,) = log.published
    assert (sent.data_name, sent.path, sent.aliases) == ("some/data", path / "model.safetensors", ("best",))
    assert sent.facts == {"epoch": 3, "step": 30, "top1": 0.625}
    assert json.loads(sent.texts["class_names.json"]) == list(NAMES)
    card = sent.texts["README.md"]
    for words in ("AlexNet on some/data", "with 3 classes", "3 epochs (30 steps)", "62.50%", "224x224", str(SPEC.mean)):
        assert words in card, words


def test_a_card_of_weights_that_were_not_evaluated_says_so(tmp_path):
    log = Log(tmp_path)
    network_file.publish(log, checkpoint_of(tmp_path, step=31, top1=None), aliases=[])
    (sent,) = log.published
    assert "not measured" in sent.texts["README.md"]
    assert sent.facts["top1"] is None


def test_a_checkpoint_without_metadata_is_not_published(tmp_path, caplog):
    log, path = Log(tmp_path), checkpoint_of(tmp_path, step=30, top1=0.5)
    (path / "config.json").unlink()
    network_file.publish(log, path, aliases=["best"])
    assert log.published == []
    assert "is not published" in caplog.text


@pytest.mark.parametrize(
    ("tops", "expected"),
    [
        ([0.3, 0.5, 0.4], [("20", ("best",)), ("30", ("latest",))]),
        ([0.3, 0.4, 0.5], [("30", ("best", "latest"))]),
    ],
)
def test_the_best_network_and_the_last_are_published_once_each(tmp_path, tops, expected):
    log = Log(tmp_path)
    for number, top1 in enumerate(tops):
        checkpoint_of(tmp_path, step=10 * (number + 1), top1=top1)
    network_file.publish_best_and_last(log)
    assert sent_as(log) == expected


@pytest.mark.parametrize(
    ("wish", "progress", "expected"),
    [
        ("all", {"epoch": 3, "batch": 0, "best_epoch": 3}, [("30", ("latest", "best"))]),
        ("all", {"epoch": 3, "batch": 0, "best_epoch": 2}, [("30", ("latest",))]),
        ("all", {"epoch": 3, "batch": 5, "best_epoch": 3}, []),
        ("final", {"epoch": 3, "batch": 0, "best_epoch": 3}, []),
    ],
)
def test_an_epochs_network_is_published_where_all_are_wanted(tmp_path, wish, progress, expected):
    log, path = Log(tmp_path), checkpoint_of(tmp_path, step=30, top1=0.5)
    network_file.publish_epoch(Config(wandb=WandbConfig(artifacts=wish)), log, path, {"progress": progress})
    assert sent_as(log) == expected
