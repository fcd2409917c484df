"""The export command: files that give the network's answers without this package, and none that give others."""

import dataclasses
import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from places import ROOT
from tiny import tiny_alexnet
from torch import nn

import alexnet_dist
from alexnet_dist.commands import export, main
from alexnet_dist.data import Inputs, InputSpec
from alexnet_dist.models import alexnet, weights

REAL = torchvision.models.alexnet
NAMES = ["cat", "dog", "frog", "horse", "ship"]
STATISTICS = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZES = {"stored": 224, "pixels": 112, "normalised": 112}
EVERY = [pytest.param(name, kind, id=f"{name}-{kind}") for name in ("onnx", "pt2") for kind in SIZES]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)


def network_file(path, *, size, stored=32, fit="enlarge", kind="pixels"):
    """Write a network whose answers differ from image to image: its mean logits for random images are 0."""
    torch.manual_seed(0)
    network = torchvision.models.alexnet(num_classes=len(NAMES)).eval()
    alexnet.initialise(network)
    spec = InputSpec(size, stored, *STATISTICS, fit)
    side = stored if kind == "stored" else size
    with torch.no_grad():
        network.classifier[6].bias -= network(Inputs(spec)(torch.randint(256, (9, 3, side, side)).byte())).mean(0)
    metadata = {"schema": 1, "class_names": NAMES, "input": spec.to_json(), "data": {"name": "made up"}}
    weights.write(path, network.state_dict(), metadata)
    return path


def needs_extra(name):
    if name == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'alexnet_dist[export]'")
        pytest.importorskip("onnxscript", reason="needs the extra: pip install 'alexnet_dist[export]'")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a maker of exported files, each made once: the classifier, and the file."""
    made = {}

    def make(name, kind, size=None, network=tiny_alexnet):
        needs_extra(name)
        size = size or SIZES[kind]
        if (name, kind, size, network) not in made:
            folder = tmp_path_factory.mktemp("exported")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torchvision.models, "alexnet", network)
                source = network_file(folder / "model.safetensors", size=size, kind=kind)
                flags = [str(source), "--format", name, "--input", kind, "--out", str(folder / f"model.{name}")]
                assert export.main(flags, prog="alexnet-dist export") == 0
                made[name, kind, size, network] = alexnet_dist.load(source), folder / f"model.{name}"
        return made[name, kind, size, network]

    return make


def images_of(classifier, kind, batch):
    """Return random images as the file takes them, and the network's logits for them.

    The inputs are contiguous, as an exported file computes: convolutions of the same numbers laid out as channels_last
    give logits that differ by 5e-6 of the largest.
    """
    spec = classifier.inputs.spec
    side = spec.stored_size if kind == "stored" else spec.image_size
    pixels = np.random.default_rng(batch).integers(0, 256, (batch, 3, side, side), dtype=np.uint8)
    images = torch.from_numpy(pixels)
    inputs = classifier.inputs(images).contiguous()
    with torch.no_grad():
        logits = classifier.network(inputs)
    return (inputs if kind == "normalised" else images), logits


def session_of(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def answers(path, images):
    if path.suffix == ".onnx":
        return torch.from_numpy(session_of(path).run(["logits"], {"images": images.numpy()})[0])
    with torch.no_grad():
        return torch.export.load(path).module()(images)


def assert_same_answers(classifier, path, kind):
    for batch in (1, 33):
        images, expected = images_of(classifier, kind, batch)
        found = answers(path, images)
        off = float((found - expected).abs().max())
        largest, size = float(expected.abs().max()), classifier.inputs.spec.image_size
        print(f"{path.suffix} {kind} {size}, batch {batch}: off by {off:.1e}, largest logit {largest:.2f}")
        assert torch.equal(found.argmax(1), expected.argmax(1))
        assert off < 1e-5
    assert len(set(expected.argmax(1).tolist())) > 1, "else equal classes would say little"


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_file_gives_the_answers_of_the_network(exported, name, kind):
    classifier, path = exported(name, kind)
    assert_same_answers(classifier, path, kind)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["model.safetensors", path.name]), "weights inside"


def test_onnx_of_small_images(exported):
    """Stored at 112: with the old exporter, adaptive pooling failed there."""
    classifier, path = exported("onnx", "stored", 112)
    assert_same_answers(classifier, path, "stored")


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, 112])
@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_the_real_network(exported, monkeypatch, name, kind, size):
    monkeypatch.setattr(torchvision.models, "alexnet", REAL)
    classifier, path = exported(name, kind, size, REAL)
    assert path.stat().st_size > 200e6
    assert_same_answers(classifier, path, kind)
    path.unlink()


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_enlargement_and_normalisation_inside_are_those_of_training_to_the_bit(tmp_path, name):
    """At factor 28, where outputs lie half-way between two grey levels."""
    needs_extra(name)
    classifier = alexnet_dist.load(network_file(tmp_path / "model.safetensors", size=224, stored=8))
    classifier = dataclasses.replace(classifier, network=nn.Identity())
    write = export.to_onnx if name == "onnx" else export.to_pt2
    path = tmp_path / f"model.{name}"
    path.write_bytes(write(export.trace(classifier, "stored"), export.described(classifier, "stored")))
    images, _ = images_of(classifier, "stored", 33)
    images[16:] = images[16:] // 128 * 255
    expected = classifier.inputs(images)
    assert torch.equal(answers(path, images), expected)


def metadata_of(path):
    if path.suffix == ".onnx":
        return session_of(path).get_modelmeta().custom_metadata_map["alexnet_dist"]
    extra = {"alexnet_dist.json": ""}
    torch.export.load(path, extra_files=extra)
    return extra["alexnet_dist.json"]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_metadata_say_what_the_network_is_and_what_it_takes(exported, name, kind):
    classifier, path = exported(name, kind)
    found = json.loads(metadata_of(path))
    side = 32 if kind == "stored" else 112
    dtype = "float32" if kind == "normalised" else "uint8"
    shape = ["B", 3, side, side]
    assert found.pop("export") == {"input": kind, "shape": shape, "dtype": dtype, "torch": torch.__version__}
    assert found == {**classifier.metadata, "architecture": "torchvision.models.alexnet"}
    assert (found["class_names"], found["data"]) == (NAMES, {"name": "made up"})


def test_onnx_names_its_input_and_output_and_the_classes(exported):
    session = session_of(exported("onnx", "pixels")[1])
    [images], [logits] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape, images.type) == ("images", ["batch", 3, 112, 112], "tensor(uint8)")
    assert (logits.name, logits.shape, logits.type) == ("logits", ["batch", 5], "tensor(float)")
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == NAMES


def test_a_network_of_another_program_gets_metadata(tmp_path):
    classifier = alexnet_dist.load(network_file(tmp_path / "model.safetensors", size=112))
    found = export.described(dataclasses.replace(classifier, metadata=None), "pixels")
    assert (found["schema"], found["class_names"], found["input"]["mean"]) == (1, NAMES, STATISTICS[0])


@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_no_path_of_this_machine_is_inside(exported, name):
    path = exported(name, "pixels")[1]
    parts = [path.read_bytes()]
    if name == "pt2":
        with zipfile.ZipFile(path) as archive:
            parts = [archive.read(part) for part in archive.namelist()]
    assert not [part for part in parts if b"site-packages" in part or str(ROOT).encode() in part]


ALONE = """
import sys
sys.modules |= {"alexnet_dist": None, "torchvision": None}  # an import of either fails
import numpy as np, torch
for folder in sys.argv[1:]:
    network = torch.export.load(f"{folder}/model.pt2").module()
    with torch.no_grad():
        np.save(f"{folder}/found.npy", network(torch.from_numpy(np.load(f"{folder}/images.npy"))).numpy())
"""


def test_pt2_needs_neither_this_package_nor_torchvision(exported, tmp_path):
    expected = {}
    for kind in SIZES:
        classifier, path = exported("pt2", kind)
        images, expected[kind] = images_of(classifier, kind, 7)
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "images.npy", images.numpy())
        (tmp_path / kind / "model.pt2").symlink_to(path)
    start = [sys.executable, "-c", ALONE, *map(str, expected)]
    subprocess.run(start, cwd=tmp_path, check=True)
    for kind, logits in expected.items():
        found = torch.from_numpy(np.load(tmp_path / kind / "found.npy"))
        assert torch.equal(found.argmax(1), logits.argmax(1))
        assert float((found - logits).abs().max()) < 1e-5


def snippet(title):
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    return re.search(r"```python\n(.*?)```", text.partition(f"## {title}\n")[2], re.DOTALL)[1]


@pytest.mark.parametrize(("name", "title"), [("onnx", "Run it with ONNX Runtime"), ("pt2", "Run it with torch")])
def test_the_lines_of_the_documentation_run(exported, tmp_path, capsys, name, title):
    classifier, path = exported(name, "stored")
    (tmp_path / path.name).symlink_to(path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        exec(snippet(title), variables := {})
    picture = pixels if name == "onnx" else np.zeros((32, 32, 3), np.uint8)
    assert capsys.readouterr().out.strip() == classifier.predict(picture, top=1)[0][0].name
    if name == "onnx":
        assert variables["logits"] == pytest.approx(
            classifier.features(picture, ["logits"])["logits"].numpy(), abs=1e-5
        )


# ---- refusals --------------------------------------------------------------------------------------------------------


def ending(capsys, *flags):
    """Return the exit code and the line of a command that fails."""
    with pytest.raises(SystemExit) as end:
        main.main(["export", *map(str, flags)])
    [line] = capsys.readouterr().err.splitlines()
    return end.value.code, line


def interpolated(images, size):
    """Enlarge as most programs would: in float32, half-way values to even."""
    return nn.functional.interpolate(images.float(), (size, size), mode="bilinear").round().to(torch.uint8)


def test_other_preprocessing_is_refused(tmp_path, monkeypatch, capsys):
    """It differs from the right one by a grey level in some pixels."""
    source = network_file(tmp_path / "model.safetensors", size=224, stored=8)
    monkeypatch.setattr(export, "enlarge_fixed_point", interpolated)
    flags = ["--format", "pt2", "--input", "stored", "--out", tmp_path / "model.pt2"]
    code, line = ending(capsys, source, *flags)
    assert code == 1
    assert re.fullmatch(r"error: .*model\.pt2 is removed: its logits are off the network's by .* of the largest", line)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.fixture
def untraced(tmp_path, monkeypatch):
    """A network's file, and commands that write a byte at once; `run_pt2` is the network itself."""
    source = network_file(tmp_path / "model.safetensors", size=112)
    module = export.WithPreprocessing(alexnet_dist.load(source), "pixels").eval()
    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setattr(export, "to_pt2", lambda *_: b"x")
    monkeypatch.setattr(export, "run_pt2", lambda _, images: module(images))
    return source


@pytest.mark.parametrize(
    "wrong",
    [
        lambda logits: logits + 1e-4 * logits.abs().max().clamp(min=1),
        lambda logits: logits * torch.nan,
        lambda logits: logits * (1 if len(logits) == 1 else torch.nan),
        lambda logits: logits[None],
        lambda logits: logits.flip(1),
        lambda logits: logits if len(logits) == 1 else logits.flip(0),
    ],
)
def test_other_answers_are_refused_and_leave_no_file(untraced, monkeypatch, capsys, wrong):
    right, out = export.run_pt2, untraced.with_name("model.pt2")
    assert export.main([str(untraced), "--format", "pt2", "--out", str(out)], prog="export") == 0
    out.unlink()
    capsys.readouterr()
    monkeypatch.setattr(export, "run_pt2", lambda path, images: wrong(right(path, images)))
    code, line = ending(capsys, untraced, "--format", "pt2", "--out", out)
    assert code == 1
    assert "is removed" in line
    assert list(untraced.parent.iterdir()) == [untraced]


@pytest.mark.usefixtures("umask")
def test_others_may_read_the_file(untraced):
    out = untraced.with_name("model.pt2")
    assert export.main([str(untraced), "--format", "pt2", "--out", str(out)], prog="export") == 0
    assert out.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_one_line_and_leaves_no_file(untraced, capsys):
    untraced.with_name(".model.pt2.writing").symlink_to("/dev/full")
    code, line = ending(capsys, untraced, "--format", "pt2", "--out", untraced.with_name("model.pt2"))
    assert code == 2
    assert re.search(r"--out .*model\.pt2 cannot be written: .*No space left", line)
    assert list(untraced.parent.iterdir()) == [untraced]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", "a.pt2"], "name one network, RUN: 0 are named"),
        (["RUN", "RUN", "--out", "a.pt2"], "name one network, RUN: 2 are named"),
        (["RUN"], "--out FILE has to end in .pt2"),
        (["RUN", "--out", "a.onnx"], "--out a.onnx has to end in .pt2, or choose another --format"),
        (["RUN", "--out", "old.pt2"], "--out old.pt2 exists and is not overwritten"),
        (["RUN", "--out", "link.pt2"], "--out link.pt2 exists and is not overwritten"),
        (["RUN", "--out", "nowhere/a.pt2"], "--out nowhere/a.pt2 cannot be written: "),
        (["RUN", "--out", "old.pt2/a.pt2"], "--out old.pt2/a.pt2 cannot be written: "),
        (["nowhere.safetensors", "--out", "a.pt2"], "there is no such file"),
        (["RUN", "--out", "a.pt2", "--input", "photos"], "--input"),
    ],
)
def test_mistakes_are_one_line(untraced, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(untraced.parent)
    (untraced.parent / "old.pt2").write_text("old")
    (untraced.parent / "link.pt2").symlink_to("gone")
    code, line = ending(capsys, "--format", "pt2", *[str(untraced) if flag == "RUN" else flag for flag in flags])
    assert code == 2
    assert words in line
    assert (untraced.parent / "old.pt2").read_text() == "old"


def test_photographs_have_no_stored_size(tmp_path, capsys):
    source = network_file(tmp_path / "model.safetensors", size=112, fit="crop")
    code, line = ending(capsys, source, "--format", "pt2", "--input", "stored", "--out", tmp_path / "a.pt2")
    assert code == 2
    assert "--input stored" in line
    assert line.endswith("choose --input pixels")


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    code, line = ending(capsys, "RUN", "--out", tmp_path / "a.onnx")
    assert code == 2
    assert re.search(r"needs .*onnxscript.*: pip install 'alexnet_dist\[export\]'$", line)
