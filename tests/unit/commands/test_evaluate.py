"""The evaluate command: counts are repeated, and a claim that they do not bear out is found."""

import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from image_sets import as_files
from tiny import run, summary, tiny_alexnet

import alexnet_dist
from alexnet_dist.commands import evaluate as evaluate_command
from alexnet_dist.commands import main
from alexnet_dist.config import parse
from alexnet_dist.data import load as load_data
from alexnet_dist.models import weights

DIGITS = ["--data.dataset", "digits", "--data.limit", "200", "--data.image-size", "64", "--epochs", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("trained") / "run", *DIGITS, "--optim.lr", "2e-3", "--model.init", "he")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)


def evaluate(*arguments):
    with pytest.raises(SystemExit) as ended:
        main.main(["evaluate", *map(str, arguments), "--runtime.cpu"])
    return ended.value.code


@pytest.fixture
def edited(folder, tmp_path):
    """Return a function that writes the last network with changed metadata, and weights, and returns its path."""

    def edit(change=lambda _: None, tensors=None):
        path = folder / "checkpoints/step_00000036/model.safetensors"
        file = weights.read(path, named_by="FILE")
        change(file.metadata)
        out = tmp_path / "edited.safetensors"
        weights.write(out, tensors or file.tensors, file.metadata)
        return out

    return edit


def test_a_run_repeats_its_counts_exactly(folder, tmp_path, capsys):
    assert evaluate(folder, "--which", "last", "--out", tmp_path / "found.json") == 0
    assert "repeated exactly" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "found.json").read_text())
    recorded = json.loads((folder / "evaluation.json").read_text())
    assert found["confusion"] == recorded["confusion"]
    assert found["top1"] == summary(folder)["final_top1"]
    assert [mistake["id"] for mistake in found["worst"]] == [mistake["id"] for mistake in recorded["worst"]]
    assert found["per_class"].keys() == set(map(str, range(10)))
    assert (found["correct"], found["total"]) == (round(found["top1"] * 200), 200)


def test_the_file_alone_is_enough(edited, capsys):
    assert evaluate(edited()) == 0
    assert "repeated exactly" in capsys.readouterr().out


def swap_names(metadata):
    names = metadata["class_names"]
    names[0], names[1] = names[1], names[0]


def better(metadata):
    metadata["result"]["correct"] += 1


def larger(metadata):
    metadata["result"]["total"] += 1


@pytest.mark.parametrize(
    ("change", "words"),
    [(swap_names, "CLASS NAMES are not those"), (better, "1 IMAGES DIFFER"), (larger, "THAT IS WRONG")],
)
def test_a_file_that_claims_something_else_is_found(edited, capsys, change, words):
    assert evaluate(edited(change)) == 3
    assert words in capsys.readouterr().out


def test_random_weights_with_an_old_claim_are_found(edited, capsys):
    torch.manual_seed(1)
    assert evaluate(edited(tensors=tiny_alexnet(num_classes=10).state_dict())) == 3
    assert "IMAGES DIFFER" in capsys.readouterr().out


def elsewhere(metadata):
    metadata["hardware"]["processor"] = "another CPU"


def test_on_other_hardware_images_may_differ_by_rounding_and_no_more(edited, capsys):
    assert evaluate(edited(elsewhere)) == 0
    assert "computed with processor another CPU" in capsys.readouterr().out

    def worse(metadata):
        elsewhere(metadata)
        metadata["result"]["correct"] -= 100

    assert evaluate(edited(worse)) == 3
    assert "more than rounding explains" in capsys.readouterr().out


def test_in_another_precision_images_may_differ_by_rounding(folder, capsys):
    assert evaluate(folder, "--runtime.precision", "bf16") == 0
    assert "computed with precision fp32" in capsys.readouterr().out


def nothing(metadata):
    metadata["result"] = None


def others(metadata):
    metadata["data"]["fingerprint"] = "0" * 64


@pytest.mark.parametrize(("change", "words"), [(nothing, "claims no result"), (others, "NOT COMPARED")])
def test_where_nothing_can_be_compared_that_is_said(edited, capsys, change, words):
    assert evaluate(edited(change)) == 0
    assert words in capsys.readouterr().out


def broken(metadata):
    metadata["result"] = {"correct": "many"}


def elsewhere_data(metadata):
    metadata["data"]["name"] = "photos"


def unknown_class(metadata):
    metadata["class_names"][3] = "three"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (broken, "no pair of numbers"),
        (elsewhere_data, "was trained on photos: say where that is by --data.dataset"),
        (unknown_class, "has the class 3, which the network does not know"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(edited, capsys, change, words):
    assert evaluate(edited(change)) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


def test_a_command_line_without_a_run_is_one_line(capsys):
    assert evaluate() == 2
    assert "name RUN" in capsys.readouterr().err


def test_another_set_of_the_same_classes_is_evaluated_as_a_whole(folder, tmp_path, capsys):
    """Class folders of some digits without splits: all images count, labels by name."""
    data = load_data(parse([*DIGITS, "--data.batch-size", "16"]).data)
    images = [data.test.picture(k) for k in range(40)]
    labels = [data.class_names[k] for k in data.test.labels[:40]]
    as_files(tmp_path / "shifted", images, labels)
    flags = [
        "--data.dataset",
        tmp_path / "shifted",
        "--data.cache-dir",
        tmp_path / "cache",
        "--out",
        tmp_path / "o.json",
    ]
    assert evaluate(folder, *flags) == 0
    (ours,) = json.loads((tmp_path / "o.json").read_text())
    assert ours["total"] == 40
    assert "NOT COMPARED" in capsys.readouterr().out
    classifier = alexnet_dist.load(folder)
    predicted = [best[0].name for best in classifier.predict(images, top=1)]
    assert ours["correct"] == sum(name == label for name, label in zip(predicted, labels, strict=True))


def test_a_network_of_small_images_meets_photographs_as_predict_does(folder, tmp_path):
    """Of any size, so that the data set is one of photographs: reduced to the stored size, then enlarged."""
    drawn = np.random.default_rng(0)
    images = [drawn.integers(0, 256, (*drawn.integers(20, 90, 2), 3), np.uint8) for _ in range(12)]
    labels = [str(k % 4) for k in range(12)]
    files = as_files(tmp_path / "photos/test", images, labels)
    as_files(tmp_path / "photos/train", images, labels)
    flags = ["--data.dataset", tmp_path / "photos", "--data.cache-dir", tmp_path / "cache"]
    assert evaluate(folder, *flags, "--out", tmp_path / "o.json") == 0
    (found,) = json.loads((tmp_path / "o.json").read_text())
    best = [first[0].name for first in alexnet_dist.load(folder).predict(files, top=1)]
    assert found["correct"] == sum(name == label for name, label in zip(best, labels, strict=True))
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (np.array(labels, int), np.array(best, int)), 1)
    assert found["confusion"] == counts.tolist()


def test_several_runs_are_a_table(folder, tmp_path, capsys):
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    assert evaluate(folder, again) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("mean")
    assert "± 0.000 %" in last


@pytest.mark.parametrize(
    ("precision", "device", "bound"),
    [("fp32", "CPU", 2**-16), ("fp32", "NVIDIA H100", 2**-9), ("bf16", "CPU", 2**-6), ("fp16", "NVIDIA H100", 2**-9)],
)
def test_rounding_depends_on_the_arithmetic(precision, device, bound):
    assert evaluate_command.rounding(precision, device) == bound


def test_close_calls_are_counted_by_the_two_best_logits():
    count = evaluate_command.CloseCalls(2**-6)
    count(None, None, torch.tensor([[4.0, 3.9, 0.0], [4.0, 3.95, 0.0], [-9.0, 0.1, 0.0]]))
    assert count.count == 2, "the second and the third, whose largest logit is -9"
