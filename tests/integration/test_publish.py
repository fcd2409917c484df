"""Publishing: the code in the card answers as the package does, and a Hub gets the folder and gives it back."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fake_hub
import numpy as np
import published
import pytest
import torch
import torchvision
from PIL import Image
from places import ROOT, SUPPORT
from published import CLASSES, FILES, NAME, dry_run, names

import alexnet_dist
from alexnet_dist.data.inputs import InputSpec
from alexnet_dist.models import weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return published.train(tmp_path_factory.mktemp("trained") / "run")


# ---- the code in the card -------------------------------------------------------------------------------------------

BLOCKED = """\
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "alexnet_dist":
            raise ImportError("alexnet_dist is not here")

sys.meta_path.insert(0, Block())
"""
TOLD = "\nprint(json.dumps([class_names, probabilities.tolist()]))\n"
SPECS = {
    "enlarge": InputSpec(65, stored_size=32, mean=(0.49, 0.48, 0.45), std=(0.2, 0.22, 0.25)),
    "as stored": InputSpec(64, stored_size=64, mean=(0.49, 0.48, 0.45), std=(0.2, 0.22, 0.25)),
    "crop": InputSpec(63, stored_size=None, mean=(0.49, 0.48, 0.45), std=(0.2, 0.22, 0.25), fit="crop"),
    "crop of stored": InputSpec(63, stored_size=97, mean=(0.49, 0.48, 0.45), std=(0.2, 0.22, 0.25), fit="crop"),
}


@pytest.fixture(scope="module")
def tensors():
    """Weights of torchvision's own network, whose answers depend on every pixel."""
    torch.manual_seed(0)
    state = torchvision.models.alexnet(num_classes=len(CLASSES)).state_dict()
    return {**state, "classifier.6.weight": 300 * state["classifier.6.weight"]}


def write_network(path, tensors, spec):
    data = {"name": "some/data", "revision": None, "split": "test", "num_train_images": 40, "num_eval_images": 40}
    weights.write(
        path,
        tensors,
        {
            "schema": weights.SCHEMA,
            "class_names": list(CLASSES),
            "input": spec.to_json(),
            "data": data,
            "training": {"epoch": 3, "step": 30},
            "result": None,
            "versions": {"alexnet_dist": "1.2"},
        },
    )
    return path


def draw_picture(path, *, height, width):
    """Save a picture without loss, of smooth shades and noise, with an EXIF orientation."""
    drawn = np.random.default_rng(height)
    coarse = Image.fromarray(drawn.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize((width, height))
    noisy = np.asarray(coarse, dtype=int) + drawn.integers(-40, 40, (height, width, 3))
    picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, "PNG", exif=exif)


@pytest.mark.parametrize("kind", SPECS)
def test_the_code_in_the_card_answers_as_the_package(tmp_path, tensors, kind):
    """In a process that cannot import the package, from the files alone, which the Hub's client fetches."""
    spec = SPECS[kind]
    source = write_network(tmp_path / "network.safetensors", tensors, spec)
    made = dry_run(source, tmp_path / "made")
    (code,) = re.findall(r"```python\n(.*?)```", (made / "README.md").read_text(), re.DOTALL)
    draw_picture(tmp_path / "picture.jpg", height=180, width=223)  # 21.5 pixels too wide on each side
    trained = alexnet_dist.load(source)
    (expected,) = trained.predict(tmp_path / "picture.jpg")
    with fake_hub.serve() as hub:
        hub.add(NAME, {path.name: path.read_bytes() for path in made.iterdir()})
        environment = {**without_hub(), **hub.environment(tmp_path / "home")}
        printed = python(BLOCKED + code + TOLD, environment, folder=tmp_path)
    class_names, probabilities = json.loads(printed.splitlines()[-1])
    assert class_names == list(CLASSES)
    found = dict(zip(class_names, probabilities, strict=True))
    assert max(found, key=found.get) == expected[0].name
    assert found == pytest.approx({one.name: one.probability for one in expected}, abs=1e-4)
    assert [line.split()[1] for line in printed.splitlines()[:-1]] == [one.name for one in expected]


# ---- the Hub --------------------------------------------------------------------------------------------------------

COMMANDS = f"""\
import contextlib, io, json, os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
import torchvision, tiny
from alexnet_dist.commands.main import main
torchvision.models.alexnet = tiny.tiny_alexnet
for arguments, changes in json.loads(os.environ["COMMANDS"]):
    before = dict(os.environ)
    os.environ.update(changes)
    out, err, code = io.StringIO(), io.StringIO(), None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(["publish", *arguments])
    except SystemExit as end:
        code = end.code
    os.environ.clear()
    os.environ.update(before)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@dataclass
class Ended:
    code: int
    out: str
    err: str


def without_hub():
    """Return this process's variables without those that the Hub's client reads."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")}


def python(code, environment, *, folder):
    start = [sys.executable, "-c", code]
    ended = subprocess.run(start, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def publish_all(hub, folder, *commands, **changes):
    """Run publish in one process, once for each command: its arguments, or those and variables that it gets."""
    each = [command if isinstance(command, tuple) else (command, {}) for command in commands]
    environment = {**without_hub(), **hub.environment(folder / "home"), **changes, "COMMANDS": json.dumps(each)}
    return [Ended(*json.loads(line)) for line in python(COMMANDS, environment, folder=folder).splitlines()]


@pytest.fixture
def hub():
    with fake_hub.serve() as served:
        yield served


def test_a_network_is_published_and_read_back(hub, trained, tmp_path):
    """By the Hub's own client, and by `alexnet_dist.load`."""
    (ended,) = publish_all(hub, tmp_path, [str(trained), NAME, "--which", "last"])
    assert ended.code == 0, ended.err
    assert f"{hub.url}/{NAME}/commit/" in ended.out
    model = hub.models[NAME]
    assert not model.private
    assert len(model.commits) == 2, "the empty model, then all files at once"
    code = f"""\
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
import huggingface_hub, tiny, torch, torchvision
import alexnet_dist
torchvision.models.alexnet = tiny.tiny_alexnet
print(huggingface_hub.snapshot_download({NAME!r}))
print(huggingface_hub.hf_hub_download({NAME!r}, "model.safetensors"))
card = huggingface_hub.ModelCard.load({NAME!r})
print(json.dumps([card.data.pipeline_tag, card.data.eval_results[0].metric_value]))
there, here = alexnet_dist.load({NAME!r}), alexnet_dist.load({str(trained)!r}, which="last")
assert (there.metadata, there.class_names, there.inputs) == (here.metadata, here.class_names, here.inputs)
assert all(map(torch.equal, there.network.state_dict().values(), here.network.state_dict().values()))
"""
    environment = {**without_hub(), **hub.environment(tmp_path / "elsewhere"), "HF_TOKEN": ""}
    snapshot, file, told = python(code, environment, folder=tmp_path).splitlines()
    assert names(Path(snapshot)) == {*FILES, "evaluation.json", ".gitattributes"}
    average = trained / "checkpoints/step_00000009/ema.safetensors"
    assert Path(file).read_bytes() == average.read_bytes()
    correct = weights.read(average, named_by="FILE").metadata["result"]["correct"]
    assert json.loads(told) == ["image-classification", correct / 52]


def test_other_weights_take_the_place_of_the_first(hub, trained, tmp_path):
    """Counts of the first do not stay beside the second; a branch leaves main alone; unchanged files are not sent."""
    ends = publish_all(
        hub,
        tmp_path,
        [str(trained), NAME, "--which", "last"],
        [str(trained), NAME, "--which", "6", "--revision", "sixth"],
        [str(trained), NAME, "--which", "3"],
        [str(trained), NAME, "--which", "3"],
    )
    assert [end.code for end in ends] == [0] * 4, [end.err for end in ends]
    model = hub.models[NAME]
    found = {branch: model.at(branch)[1] for branch in ("main", "sixth")}
    for branch, step in (("sixth", 6), ("main", 3)):
        assert set(found[branch]) - {".gitattributes"} == FILES, branch
        assert json.loads(found[branch]["config.json"])["training"]["step"] == step
        path = trained / f"checkpoints/step_{step:08d}/ema.safetensors"
        assert found[branch]["model.safetensors"] == path.read_bytes()
    assert b"revision='sixth'" in found["sixth"]["README.md"]
    line = f'alexnet_dist.load("{NAME}@sixth")'
    assert line in found["sixth"]["README.md"].decode()
    code = f"""\
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
import tiny, torchvision
import alexnet_dist
torchvision.models.alexnet = tiny.tiny_alexnet
print({line}.metadata["training"]["step"], alexnet_dist.load({NAME!r}).metadata["training"]["step"])
"""
    environment = {**without_hub(), **hub.environment(tmp_path / "elsewhere"), "HF_TOKEN": ""}
    assert python(code, environment, folder=tmp_path).split() == ["6", "3"]
    assert len(model.commits) == 4, "the same once more is no commit"


def test_a_private_network_is_for_nobody_else(hub, trained, tmp_path):
    hub.add("ada/public", {})
    new, old = publish_all(hub, tmp_path, [str(trained), NAME, "--private"], [str(trained), "ada/public", "--private"])
    assert new.code == 0, new.err
    assert hub.models[NAME].private
    assert (old.code, old.err.count("\n")) == (2, 1)
    assert "ada/public is there already and public" in old.err
    assert len(hub.models["ada/public"].commits) == 1, "nothing was sent"


def test_what_the_hub_refuses_is_one_line(hub, trained, tmp_path):
    hub.add("somebody/else", {})
    arguments = [str(trained), NAME]
    ends = publish_all(
        hub,
        tmp_path,
        (arguments, {"HF_TOKEN": ""}),
        (arguments, {"HF_TOKEN": "hf_expired"}),
        [str(trained), "somebody/new"],
        [str(trained), "somebody/else"],
    )
    expected = ["nobody is logged in", "does not accept this login", "may not write there", "may not write there"]
    for end, words in zip(ends, expected, strict=True):
        assert (end.code, end.out, end.err.count("\n")) == (2, "", 1), end
        assert words in end.err
        assert "hf_expired" not in end.err
    assert hub.models.keys() == {"somebody/else"}
    assert len(hub.models["somebody/else"].commits) == 1


@pytest.mark.parametrize("changes", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}], ids=str)
def test_a_hub_that_cannot_be_reached_is_one_line(hub, trained, tmp_path, changes):
    (end,) = publish_all(hub, tmp_path, [str(trained), NAME], **changes)
    assert (end.code, end.out, end.err.count("\n")) == (2, "", 1), end
    assert f"{NAME} cannot be published" in end.err
    assert hub.requests == []


def test_a_dry_run_asks_nobody(hub, trained, tmp_path):
    (end,) = publish_all(hub, tmp_path, [str(trained), NAME, "--dry-run", str(tmp_path / "made")], HF_TOKEN="")
    assert end.code == 0, end.err
    assert names(tmp_path / "made") == FILES | ({"evaluation.json"} & names(tmp_path / "made"))
    assert hub.requests == []
