"""The predict command: the same logits as evaluation, to the bit, from files; broken ones are named and left out."""

import csv
import io
import json

import numpy as np
import pytest
import torch
import torchvision
from image_sets import as_files
from PIL import Image
from tiny import run, tiny_alexnet
from used import command, logits_of_evaluation

import alexnet_dist
from alexnet_dist.config import parse
from alexnet_dist.data import load as load_data

SETS = {
    "digits": ["--data.dataset", "digits", "--data.limit", "200", "--data.image-size", "64"],
    "bf16": ["--data.dataset", "synthetic", "--data.limit", "100", "--runtime.precision", "bf16"],
}


@pytest.fixture(scope="module", params=SETS)
def trained(request, tmp_path_factory):
    """Return a run folder, the PNG files of its test images, and the data set."""
    place = tmp_path_factory.mktemp("trained")
    flags = SETS[request.param]
    folder = run(place / "run", *flags, "--epochs", "1")
    data = load_data(parse([*flags, "--data.batch-size", "16"]).data)
    pictures = [data.test.picture(k) for k in range(len(data.test))]
    return folder, as_files(place / "files", pictures, ["all"] * len(pictures)), data


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)


def test_logits_from_files_are_those_of_evaluation_to_the_bit(trained, monkeypatch, tmp_path):
    folder, files, data = trained
    expected = logits_of_evaluation(monkeypatch, folder, "--which", "last")
    flags = ["--which", "last", "--batch-size", "16", "--format", "jsonl", "--logits", "--out", tmp_path / "out"]
    assert command("predict", folder, files[0].parent, *flags) == 0
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert [row["logits"] for row in rows] == expected
    claim = alexnet_dist.load(folder, "last").metadata["result"]
    best = [row["classes"][0]["name"] for row in rows]
    assert sum(name == data.class_names[k] for name, k in zip(best, data.test.labels, strict=True)) == claim["correct"]


def test_the_plain_network_agrees(trained, monkeypatch):
    folder, files, _ = trained
    classifier = alexnet_dist.load(folder, "last")
    with torch.no_grad():
        logits = classifier.network(classifier.preprocess(files))
    expected = torch.tensor(logits_of_evaluation(monkeypatch, folder))
    tolerance = 1e-4 if classifier.metadata["training"]["precision"] == "fp32" else 0.05
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance)


def test_pictures_of_any_size_and_kind(trained, tmp_path, capsys):
    folder, _, _ = trained
    drawn = np.random.default_rng(0)
    for name, mode, size in (("a.png", "RGBA", (90, 40)), ("b.jpg", "L", (7, 200)), ("c.webp", "RGB", (33, 33))):
        picture = Image.fromarray(drawn.integers(0, 256, (*size, 3), np.uint8)).convert(mode)
        picture.save(tmp_path / name)
    assert command("predict", folder, tmp_path, "--format", "csv", "--top", "2") == 0
    title, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert title == ["file", "class 1", "probability 1", "class 2", "probability 2"]
    assert [row[0] for row in rows] == [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.webp")]
    classifier = alexnet_dist.load(folder)
    for row in rows:
        ((first, second),) = classifier.predict(row[0], top=2)
        assert (row[1], row[3]) == (first.name, second.name)
        assert float(row[2]) == pytest.approx(first.probability, abs=0.02)


def test_a_broken_file_is_named_and_the_rest_goes_on(trained, tmp_path, capsys):
    folder, files, _ = trained
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:60])
    assert command("predict", folder, files[0], tmp_path / "broken.png", tmp_path / "none.png", files[1]) == 1
    printed = capsys.readouterr()
    assert [line.partition(": ")[0] for line in printed.out.splitlines()] == [str(files[0]), str(files[1])]
    first, second = printed.err.splitlines()
    assert f"{tmp_path}/broken.png" in first
    assert f"{tmp_path}/none.png cannot be read: No such file" in second


def test_paths_come_from_stdin(trained, monkeypatch, capsys):
    folder, files, _ = trained
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{files[3]}\n{files[1]}\n"))
    assert command("predict", folder, "-") == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [str(files[3]), str(files[1])]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN"], "name RUN, then pictures"),
        (["RUN", "FILE", "--logits"], "--logits needs --format csv or jsonl"),
        (["RUN", "EMPTY"], "EMPTY holds no image file"),
        (["RUN", "FILE", "--mean", "0", "0", "0"], "has metadata that say this: leave --mean out"),
        (["EMPTY", "FILE"], "EMPTY holds no checkpoint"),
    ],
)
def test_mistakes_are_one_line(*, trained, tmp_path, monkeypatch, capsys, arguments, words):
    folder, files, _ = trained
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    named = {"RUN": folder, "FILE": files[0]}
    assert command("predict", *(named.get(word, word) for word in arguments)) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_a_file_without_metadata_is_described_by_hand(trained, tmp_path, capsys):
    folder, files, data = trained
    import safetensors.torch

    known = alexnet_dist.load(folder)
    safetensors.torch.save_file(known.network.state_dict(), tmp_path / "old.safetensors")
    (tmp_path / "names.txt").write_text("\n".join(data.class_names))
    assert command("predict", tmp_path / "old.safetensors", files[0]) == 2
    assert "give --mean, --std, --classes, --image-size by hand" in capsys.readouterr().err
    flags = ["--mean", *known.inputs.spec.mean, "--std", *known.inputs.spec.std, "--image-size", "64"]
    assert command("predict", tmp_path / "old.safetensors", files[0], *flags, "--classes", tmp_path / "names.txt") == 0
    assert capsys.readouterr().out.startswith(f"{files[0]}: ")
