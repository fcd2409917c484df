"""What the commands that use a trained network share: which pictures are named, precision, words, output."""

import io
from types import SimpleNamespace

import pytest
import torch
from class_folders import plant

from alexnet_dist.commands import inference
from alexnet_dist.config.commands import InferenceConfig, NetworkOptions
from alexnet_dist.errors import UserError


def test_pictures_are_files_as_named_and_folders_in_order(tmp_path, monkeypatch):
    plant(tmp_path, "a/2.png", "a/1.jpg", "a/deep/0.webp", "a/.hidden/9.png", "a/notes.txt", "b.png")
    monkeypatch.setattr("sys.stdin", io.StringIO("from/stdin.png\n\n"))
    named = [str(tmp_path / "b.png"), str(tmp_path / "a"), "-", "no/such.png"]
    inside = [str(tmp_path / "a" / name) for name in ("1.jpg", "2.png", "deep/0.webp")]
    assert inference.picture_files(named) == [named[0], *inside, "from/stdin.png", "no/such.png"]


def test_only_a_line_feed_ends_a_path_from_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\u2028b.png\nc\x0cd.png\n"))
    assert inference.picture_files(["-"]) == ["a\u2028b.png", "c\x0cd.png"]


@pytest.mark.parametrize("content", [b"cat\ndog", b"\xef\xbb\xbfcat\r\ndog\r\n", b"cat\ndog\n\n"])
def test_class_names_are_read_from_files_of_any_system(tmp_path, monkeypatch, content):
    (tmp_path / "names.txt").write_bytes(content)
    monkeypatch.setattr(inference, "load", lambda *_, by_hand: by_hand.classes)
    assert inference.open_network("x", NetworkOptions(classes=tmp_path / "names.txt")) == ("cat", "dog")


def test_a_folder_without_pictures_is_named(tmp_path):
    plant(tmp_path, "notes.txt")
    with pytest.raises(UserError, match="holds no image file"):
        inference.picture_files([str(tmp_path)])


@pytest.mark.parametrize(
    ("metadata", "precision"),
    [
        (None, "fp32"),
        ({"training": {"precision": "bf16"}}, "bf16"),
        ({"training": {}, "result": {"precision": "fp16"}}, "fp16"),
        ({"result": None}, "fp32"),
        ({"training": {"precision": "fp8"}}, "fp32"),
    ],
)
def test_the_precision_of_the_run_is_in_its_file(metadata, precision):
    assert inference.recorded_precision(SimpleNamespace(metadata=metadata)) == precision


def test_fp16_without_a_gpu_is_computed_in_fp32(monkeypatch, caplog):
    asked = []
    made = SimpleNamespace(name="fp32", reason="asked for")
    monkeypatch.setattr(inference.processes, "make_accelerator", lambda config: (None, asked.append(config) or made))
    network = SimpleNamespace(metadata={"training": {"precision": "fp16"}}, path="FILE")
    _, precision = inference.start(network, InferenceConfig(cpu=True))
    assert precision.reason != "the run's"
    assert asked[0].runtime.precision == "fp32"
    assert "FILE was computed in fp16, which needs a GPU: fp32 is used" in caplog.text
    assert not torch.cuda.is_available()


def test_output_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--out .* cannot be written"):
        inference.write(tmp_path / "none" / "out", "text")


def test_too_few_words_are_asked_for():
    assert inference.words(["RUN"], least=1, meaning="RUN") == ["RUN"]
    with pytest.raises(UserError, match="name RUN"):
        inference.words([], least=1, meaning="RUN")
