"""The publish command: the folder that is made, and mistakes; the Hub that gets it is in tests/integration."""

import getpass
import json
import os
import re
import socket
from pathlib import Path

import numpy as np
import published
import pytest
import safetensors.torch
import torchvision
import yaml
from PIL import Image
from published import CLASSES, FILES, NAME, dry_run, names
from tiny import tiny_alexnet

import alexnet_dist
from alexnet_dist import atomic_files
from alexnet_dist.commands import main, publish
from alexnet_dist.data.inputs import InputSpec
from alexnet_dist.models import weights
from alexnet_dist.visualization import kernel_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return published.train(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)


def front_matter(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("narrow")
def test_the_folder_explains_the_network(trained, tmp_path, capsys):
    made = dry_run(trained, tmp_path / "new" / "folder", "--which", "6")
    assert names(made) == FILES
    source = trained / "checkpoints/step_00000006"
    assert atomic_files.sha256(made / "model.safetensors") == atomic_files.sha256(source / "ema.safetensors")
    assert (made / "config.json").read_bytes() == (source / "config.json").read_bytes()
    result = json.loads((made / "config.json").read_text())["result"]
    found = front_matter(made)
    assert (found["pipeline_tag"], found["library_name"]) == ("image-classification", "torchvision")
    assert "alexnet" in found["tags"]
    assert "license" not in found
    ((claim,),) = [model["results"] for model in found["model-index"]]
    assert claim["task"]["type"] == "image-classification"
    assert (claim["dataset"]["name"], claim["dataset"]["split"]) == ("synthetic", "test")
    (metric,) = claim["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", result["correct"] / 52)
    assert f"{result['correct']} right of 52" in (made / "README.md").read_text()
    assert f"{result['correct']} right of 52" in capsys.readouterr().out
    assert {path.stat().st_mode & 0o777 for path in made.glob("*.[jsm]*")} == {0o644}


@pytest.mark.usefixtures("narrow")
def test_kernels_are_those_of_the_network(trained, tmp_path):
    made = dry_run(trained, tmp_path / "made")
    now = kernel_images.snapshot(alexnet_dist.load(trained).network)
    expected = kernel_images.draw(now, now, conv2_kernel=0)["conv1"].now
    with Image.open(made / "kernels.png") as picture:
        assert np.array_equal(np.asarray(picture), expected)


@pytest.mark.usefixtures("narrow")
def test_counts_are_published_of_the_weights_that_they_are_of(trained, tmp_path):
    made = dry_run(trained, tmp_path / "last", "--which", "last")
    written = json.loads((trained / "evaluation.json").read_text())
    assert json.loads((made / "evaluation.json").read_text()) == {key: written[key] for key in publish.COUNTS}
    assert "evaluation.json" in (made / "README.md").read_text()
    other = dry_run(trained, tmp_path / "other", "--which", "3")
    assert names(other) == FILES
    assert "evaluation.json" not in (other / "README.md").read_text()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("source", ["checkpoints/step_00000004", "checkpoints/step_00000009/model.safetensors"])
def test_weights_that_were_not_evaluated_claim_nothing(trained, tmp_path, source):
    """In mid-epoch, and the weights beside the average that was evaluated."""
    made = dry_run(trained / source, tmp_path / "made")
    assert names(made) == FILES
    assert "not measured" in (made / "README.md").read_text()
    assert "model-index" not in front_matter(made)


@pytest.mark.usefixtures("narrow")
def test_a_licence_is_claimed_if_it_is_given(trained, tmp_path):
    assert front_matter(dry_run(trained, tmp_path / "made", "--license", "cc-by-4.0"))["license"] == "cc-by-4.0"
    assert "license" not in front_matter(dry_run(trained, tmp_path / "without"))


@pytest.mark.usefixtures("narrow")
def test_nothing_of_this_machine_is_published(trained, tmp_path):
    made = dry_run(trained, tmp_path / "made", "--which", "last")
    homes = {os.environ["HOME"], str(Path("~" + getpass.getuser()).expanduser())}
    private = {str(trained), str(trained.parent), str(tmp_path), socket.gethostname(), getpass.getuser(), *homes}
    private = re.compile("|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in private))
    assert private.search((trained / "config.yaml").read_text()), "there is something to be kept back"
    with safetensors.safe_open(made / "model.safetensors", framework="pt") as file:
        texts = {"header": json.dumps(file.metadata())}
    texts |= {path.name: path.read_text() for path in made.iterdir() if path.suffix in (".md", ".json")}
    assert len(texts) == 4
    assert {name: private.findall(text) for name, text in texts.items() if private.search(text)} == {}
    assert str(trained).encode() not in (made / "kernels.png").read_bytes()


# ---- mistakes -------------------------------------------------------------------------------------------------------


def old_file(folder):
    safetensors.torch.save_file(tiny_alexnet(num_classes=3).state_dict(), folder / "old.safetensors")
    return [str(folder / "old.safetensors"), NAME]


def incomplete_file(folder):
    spec = InputSpec(64, stored_size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    metadata = {"schema": weights.SCHEMA, "class_names": list(CLASSES), "input": spec.to_json()}
    weights.write(folder / "some.safetensors", tiny_alexnet(num_classes=3).state_dict(), metadata)
    return [str(folder / "some.safetensors"), NAME]


def full_folder(folder):
    (folder / "full").mkdir()
    (folder / "full/file").touch()
    return ["RUN", NAME, "--dry-run", str(folder / "full")]


def a_file(folder):
    (folder / "file").touch()
    return ["RUN", NAME, "--dry-run", str(folder / "file")]


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda _: [], "RUN owner/name"),
        (lambda _: ["RUN"], "RUN owner/name"),
        *(
            (lambda _, name=name: ["RUN", name], "it must be owner/name")
            for name in (
                *("alexnet", "a/b/c", "a b/c", "https://huggingface.co/a/b", "a--b/c", "/b", "a/", "a/.."),
                *("a/b.", "a/b.git", f"a/{'b' * 97}"),
            )
        ),
        (lambda folder: [str(folder), NAME], "holds no checkpoint"),
        (lambda folder: [str(folder / "no.safetensors"), NAME], "there is no such file"),
        (old_file, "has no metadata"),
        (incomplete_file, "its metadata are incomplete"),
        (full_folder, "holds files"),
        (a_file, "cannot be made"),
        (lambda _: ["RUN", NAME, "--token", "hf_secret"], "--token"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, arguments, words):
    flags = arguments(tmp_path)
    flags += [] if "--dry-run" in flags else ["--dry-run", str(tmp_path / "made")]
    with pytest.raises(SystemExit) as ended:
        main.main(["publish", *flags])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err
