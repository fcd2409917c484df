"""A trained network of full size in use: predict's logits are those of evaluation, to the bit, on every test image."""

import json
import os

import pytest
import torch
from image_sets import as_files
from used import command, logits_of_evaluation

import alexnet_dist
from alexnet_dist.config import parse
from alexnet_dist.data import load as load_data

CIFAR = os.environ.get("ALEXNET_DIST_TEST_CIFAR10")
SETS = {
    "digits": ["--data.dataset", "digits"],
    "cifar10": ["--data.dataset", str(CIFAR), "--data.limit", "1000"],
}
FLAGS = ["--max-steps", "8", "--data.batch-size", "128", "--log.trackers", "--log.kernels-every-epochs", "1000"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["auto", "fp32"])
@pytest.mark.parametrize("name", SETS)
def test_logits_from_files_are_those_of_evaluation_to_the_bit(tmp_path, monkeypatch, name, precision):
    if name == "cifar10" and not CIFAR:
        pytest.skip("ALEXNET_DIST_TEST_CIFAR10 names no folder")
    config = parse([*SETS[name], *FLAGS, "--runtime.precision", precision, "--out-dir", str(tmp_path / "run")])
    folder = alexnet_dist.train(config).folder
    data = load_data(config.data)
    files = as_files(
        tmp_path / "files", [data.test.picture(k) for k in range(len(data.test))], ["all"] * len(data.test)
    )
    expected = logits_of_evaluation(monkeypatch, folder)
    flags = ["--batch-size", "128", "--format", "jsonl", "--logits", "--out", tmp_path / "out"]
    assert command("predict", folder, files[0].parent, *flags) == 0
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["logits"] for row in rows] == expected
    classifier = alexnet_dist.load(folder)
    best = [row["classes"][0]["name"] for row in rows]
    correct = sum(name == data.class_names[k] for name, k in zip(best, data.test.labels, strict=True))
    assert correct == classifier.metadata["result"]["correct"]
    with torch.no_grad():
        plain = torch.cat(
            [classifier.network(classifier.preprocess(files[k : k + 100])) for k in range(0, len(files), 100)]
        )
    difference = float((plain - torch.tensor([row["logits"] for row in rows])).abs().max())
    used = classifier.metadata["training"]["precision"]
    print(f"{name}, {used}: {correct} of {len(files)}, the plain network differs by {difference:.1e}")
    if used == "fp32":
        assert difference < 1e-4
