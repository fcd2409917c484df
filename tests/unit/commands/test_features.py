"""The features command: the numbers that it writes, of pictures and of data sets, and each of its endings."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import torchvision
from deadlines import deadline
from network_files import PHOTOS, network_file
from photos import encoded, picture
from places import ROOT, SUPPORT
from tiny import tiny_alexnet

import alexnet_dist
from alexnet_dist.architecture import LAYERS
from alexnet_dist.commands import features
from alexnet_dist.commands.main import main
from alexnet_dist.config import DataConfig
from alexnet_dist.data import load
from alexnet_dist.training import classifier


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)


@pytest.fixture
def network(tmp_path):
    return network_file(tmp_path / "network.safetensors", PHOTOS)


@pytest.fixture
def photos(tmp_path):
    """Seven pictures of several sizes and kinds in nested folders; return their paths in sorted order."""
    kinds = ("JPEG", "PNG", "JPEG", "PNG", "JPEG", "JPEG", "PNG")
    paths = [tmp_path / "photos" / f"{'ab'[k % 2]}/{k}.{kind.lower()}" for k, kind in enumerate(kinds)]
    for k, (path, kind) in enumerate(zip(paths, kinds, strict=True)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(70 + 5 * k, 120 - 7 * k, kind, seed=k))
    return sorted(paths)


def write(*arguments):
    return features.main([*map(str, arguments)], prog="alexnet-dist features")


def ending(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["features", *map(str, arguments)])
    return ended.value.code


def metadata_of(path):
    with safetensors.safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["alexnet_dist"])


def reference(network, inputs):
    """Return what each layer returns, layer after layer, by functions that change nothing in place."""
    found, x = {}, inputs
    with torch.no_grad():
        for name, key in LAYERS.items():
            module = network.get_submodule(key)
            x = x.flatten(1) if name == "fc6" else x
            x = torch.relu(x) if isinstance(module, torch.nn.ReLU) else module(x)
            found[name] = x.numpy()
    return found


def test_all_layers_together_and_each_alone_are_those_of_a_reference(network, photos, tmp_path):
    trained = alexnet_dist.load(network)
    expected = reference(trained.network, trained.preprocess(photos))
    assert expected["conv1"].min() < 0, "a ReLU in place would have changed it"
    assert (
        write(network, photos[0].parents[1], "--layers", ",".join(LAYERS), "--out", tmp_path / "all.safetensors") == 0
    )
    together = safetensors.numpy.load_file(tmp_path / "all.safetensors")
    assert together.pop("ids").tolist() == list(range(7))
    assert together.keys() == expected.keys() == LAYERS.keys()
    for name, found in together.items():
        assert found.dtype == np.float32
        assert np.array_equal(found, expected[name]), name
        assert write(network, *photos, "--layers", name, "--out", tmp_path / f"{name}.safetensors") == 0
        alone = safetensors.numpy.load_file(tmp_path / f"{name}.safetensors")
        assert alone.keys() == {"ids", name}
        assert np.array_equal(alone[name], found), name


def test_of_files_the_header_holds_names(network, photos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.safetensors"
    listed = tmp_path / "list"
    listed.write_text(f"{photos[3]}\n")
    monkeypatch.setattr("sys.stdin", listed.open())
    assert write(network, photos[1], "-", photos[1].parent, "--out", out) == 0
    found = metadata_of(out)
    assert found["names"] == [*map(str, (photos[1], photos[3], *photos[:4]))]
    assert (found["layers"], found["precision"], found["data"]) == (["fc7"], "fp32", None)
    assert len(found["network_sha256"]) == 64
    content = safetensors.numpy.load_file(out)
    assert content["fc7"].shape == (6, 32)
    assert np.array_equal(content["fc7"][0], content["fc7"][3])
    assert "fc7 of 6 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_data_set_comes_with_labels(tmp_path, split):
    network = network_file(tmp_path / "network.safetensors")
    flags = ["--data.dataset", "synthetic", "--data.limit", "40", "--layers", "conv1,logits", "--split", split]
    assert write(network, *flags, "--out", tmp_path / "x.safetensors") == 0
    found = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    data = load(DataConfig(dataset="synthetic", limit=40, batch_size=1))
    images = getattr(data, split)
    assert np.array_equal(found["labels"], images.labels)
    assert found["labels"].dtype == found["ids"].dtype == np.int64
    trained = alexnet_dist.load(network)
    expected = reference(trained.network, trained.inputs(torch.from_numpy(images.images)))
    assert np.array_equal(found["logits"], expected["logits"]), "as the loader of training gives the images"
    assert np.array_equal(found["conv1"], expected["conv1"])
    facts = metadata_of(tmp_path / "x.safetensors")["data"]
    assert facts == {
        "name": "synthetic", "split": split, "fingerprint": data.fingerprint, "class_names": [*data.class_names],
    }  # fmt: skip


def test_photographs_of_a_data_set_are_cropped_as_files_are(network, image_folder, tmp_path):
    folder = image_folder(size=90, per_class=2)
    flags = ["--data.dataset", folder, "--data.cache-dir", tmp_path / "cache"]
    assert write(network, *flags, "--out", tmp_path / "set.safetensors") == 0
    assert write(network, folder / "test", "--out", tmp_path / "files.safetensors") == 0
    of_set, of_files = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors") for name in ("set", "files"))
    assert np.array_equal(of_set["fc7"], of_files["fc7"])
    assert of_set["labels"].tolist() == [0, 0, 1, 1]


def test_fp16_takes_half_the_space(network, photos, tmp_path):
    for dtype in ("fp32", "fp16"):
        write(network, *photos, "--layers", "conv1,fc6", "--dtype", dtype, "--out", tmp_path / f"{dtype}.safetensors")
    full, half = (safetensors.numpy.load_file(tmp_path / f"{dtype}.safetensors") for dtype in ("fp32", "fp16"))
    for layer in ("conv1", "fc6"):
        assert half[layer].dtype == np.float16
        assert np.array_equal(half[layer], full[layer].astype(np.float16))


def test_batches_and_files_change_nothing_but_the_shape_of_products(network, photos, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    write(network, *photos, "--layers", "conv1,fc7", "--out", whole)
    write(network, *photos, "--layers", "conv1,fc7", "--shard-images", 3, "--batch-size", 2, "--out", parts)
    names = [f"parts-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
    index = json.loads((tmp_path / "parts.safetensors.index.json").read_text())
    assert index["weight_map"] == {"ids": names, "conv1": names, "fc7": names}
    assert index["rows"] == dict(zip(names, (3, 3, 1), strict=True))
    assert not parts.exists()
    files = [safetensors.numpy.load_file(tmp_path / name) for name in names]
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for file in files for tensor in file.values())
    expected = safetensors.numpy.load_file(whole)
    for name in ("ids", "conv1", "fc7"):
        joined = np.concatenate([file[name] for file in files])
        assert np.allclose(joined, expected[name], rtol=1e-5, atol=1e-6), name
    assert [name for file in names for name in metadata_of(tmp_path / file)["names"]] == [*map(str, photos)]


@pytest.mark.parametrize("flags", [[], ["--shard-images", 3]], ids=["one file", "several"])
def test_what_cannot_be_read_is_left_out(network, photos, caplog, capsys, flags):
    tmp_path = network.parent
    photos[2].write_bytes(photos[2].read_bytes()[:100])
    photos[6].write_bytes(b"text")
    arguments = [network, *photos, tmp_path / "none.png", "--layers", "conv1,fc7", *flags]
    assert write(*arguments, "--out", tmp_path / "x.safetensors") == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
    assert all(name in caplog.text for name in (str(photos[2]), str(photos[6]), "none.png cannot be read"))
    assert "5 pictures, 3 left out" in capsys.readouterr().out
    paths = sorted(tmp_path.glob("x*.safetensors"))
    files = [safetensors.numpy.load_file(path) for path in paths]
    assert [index for file in files for index in file["ids"].tolist()] == [0, 1, 3, 4, 5]
    good = [photos[index] for index in (0, 1, 3, 4, 5)]
    assert [name for path in paths for name in metadata_of(path)["names"]] == [*map(str, good)]
    trained = alexnet_dist.load(network)
    expected = trained.features(good, ("conv1", "fc7"))
    for layer in ("conv1", "fc7"):
        found = np.concatenate([file[layer] for file in files])
        assert np.allclose(found, expected[layer].numpy(), rtol=1e-5, atol=1e-6)


def test_the_name_appears_when_all_is_written(network, photos, tmp_path, monkeypatch):
    out, seen = tmp_path / "out" / "x.safetensors", []
    out.parent.mkdir()

    def stop(*arguments):
        seen.append(sorted(path.name for path in out.parent.iterdir()))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return classifier.activations(*arguments)

    monkeypatch.setattr(features, "activations", stop)
    assert ending(network, *photos, "--batch-size", 2, "--out", out) == 130
    assert seen == [[], [".x.safetensors.writing"], [".x.safetensors.writing"]]
    assert [*out.parent.iterdir()] == []


def test_a_killed_command_leaves_nothing_under_the_name(network, photos, tmp_path):
    out = tmp_path / "out" / "x.safetensors"
    out.parent.mkdir()
    code = (
        f"import os, sys; sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]\n"
        "import torchvision, tiny\n"
        "torchvision.models.alexnet = tiny.tiny_alexnet\n"
        "from alexnet_dist.commands import feature_files, main\n"
        "feature_files.Shard.complete = lambda *_: os.kill(os.getpid(), 9)\n"
        "main.main(['features', *sys.argv[1:]])\n"
    )
    start = [sys.executable, "-c", code, network, *photos, "--out", out]
    ended = subprocess.run([*map(str, start)], capture_output=True, timeout=deadline(60), check=False)
    assert ended.returncode == -9
    assert [path.name for path in out.parent.iterdir()] == [".x.safetensors.writing"]
    assert write(network, *photos, "--out", out) == 0, "the same command begins again"
    assert [path.name for path in out.parent.iterdir()] == ["x.safetensors"]


def test_an_empty_list_is_a_mistake(network, tmp_path, capsys, monkeypatch):
    (tmp_path / "list").touch()
    monkeypatch.setattr("sys.stdin", (tmp_path / "list").open())
    assert ending(network, "-", "--out", tmp_path / "x.safetensors") == 2
    assert capsys.readouterr().err == "error: no picture is named: stdin is empty\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["NETWORK", "PHOTO", "--layers", "fc7,fc9", "--out", "OUT"], "--layers fc9: there is no such layer; they are"),
        (["NETWORK", "PHOTO", "--layers", "", "--out", "OUT"], "there is no such layer"),
        (["NETWORK", "PHOTO"], "--out FILE.safetensors"),
        (["NETWORK", "PHOTO", "--out", "x.npz"], "--out FILE.safetensors"),
        (["NETWORK", "--out", "OUT"], "name either pictures"),
        (["NETWORK", "PHOTO", "--data.dataset", "digits", "--out", "OUT"], "name either pictures"),
        ([], "name a network"),
        (["NETWORK", "PHOTO", "--out", "FOLDER/none/x.safetensors"], "cannot be written: No such file"),
        (["NETWORK", "PHOTO", "--out", "NETWORK"], "exists: name another file"),
        (["NETWORK", "FOLDER/empty", "--out", "OUT"], "empty holds no image file"),
        (["NETWORK", "--data.dataset", "FOLDER/none", "--out", "OUT"], "--data.dataset"),
        (["FOLDER/none.safetensors", "PHOTO", "--out", "OUT"], "there is no such file"),
        (["NETWORK", "PHOTO", "--batch-size", "0", "--out", "OUT"], "--batch-size must be at least 1"),
        (["NETWORK", "PHOTO", "--layer", "fc7", "--out", "OUT"], "did you mean --layers?"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(network, photos, capsys, arguments, words):
    tmp_path = network.parent
    (tmp_path / "empty").mkdir()
    places = {"NETWORK": network, "PHOTO": photos[0], "OUT": tmp_path / "x.safetensors", "FOLDER": tmp_path}
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert ending(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not [*tmp_path.glob("*x.safetensors*")]


def test_bf16_is_used_where_it_is_asked_for(network, photos, tmp_path):
    for precision in ("fp32", "bf16"):
        flags = ["--runtime.precision", precision, "--out", tmp_path / f"{precision}.safetensors"]
        assert write(network, *photos, *flags) == 0
    exact, rough = (safetensors.numpy.load_file(tmp_path / f"{name}.safetensors")["fc7"] for name in ("fp32", "bf16"))
    assert metadata_of(tmp_path / "bf16.safetensors")["precision"] == "bf16"
    assert not np.array_equal(exact, rough)
    assert np.allclose(exact, rough, atol=0.02)


def test_a_picture_of_any_size_is_prepared_as_the_classifier_does(network, tmp_path):
    from PIL import Image

    paths = [tmp_path / f"{k}.png" for k in range(3)]
    sizes = ((9, 300), (64, 64), (500, 31))
    for path, size in zip(paths, sizes, strict=True):
        Image.fromarray(picture(*size)).save(path)
    assert write(network, *paths, "--layers", "logits", "--out", tmp_path / "x.safetensors") == 0
    trained = alexnet_dist.load(network)
    with torch.no_grad():
        expected = trained.network(trained.preprocess(paths)).numpy()
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "x.safetensors")["logits"], expected)
