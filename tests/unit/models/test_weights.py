"""Network files: metadata in the header, modes, and files that are refused."""

import json
import logging
import os

import pytest
import safetensors
import safetensors.torch
import torch

from alexnet_dist.architecture import IMAGENET_MEAN, IMAGENET_STD
from alexnet_dist.config import ModelConfig
from alexnet_dist.errors import UserError
from alexnet_dist.models import weights

METADATA = {"schema": 1, "class_names": ["cat", "dög"], "input": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
TENSORS = {"features.0.bias": torch.arange(3.0), "classifier.6.bias": torch.ones(2, dtype=torch.bfloat16)}


def written(path, metadata=METADATA, **tensors):
    weights.write(path, TENSORS | tensors, metadata)
    return path


def test_what_is_written_reads_back(tmp_path):
    path = written(tmp_path / "a.safetensors")
    found = weights.read(path, named_by="FILE")
    assert found.metadata == METADATA
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_the_header_holds_one_json_entry(tmp_path):
    with safetensors.safe_open(written(tmp_path / "a.safetensors"), framework="pt") as file:
        header = file.metadata()
    assert header.keys() == {"alexnet_dist"}
    assert json.loads(header["alexnet_dist"]) == METADATA


def test_a_file_of_which_nothing_is_known_has_no_metadata(tmp_path):
    with safetensors.safe_open(written(tmp_path / "a.safetensors", metadata=None), framework="pt") as file:
        assert file.metadata() is None


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        written(tmp_path / "none" / "a.safetensors")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_colleagues_may_read_it_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        path = written(tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(2, dtype=torch.int8), "features.3.bias is torch.int8"),
        (torch.tensor([1.0, float("nan")]), "features.3.bias holds NaN or infinite values"),
        (torch.tensor([1.0, float("-inf")]), "features.3.bias holds NaN or infinite values"),
    ],
)
def test_weights_that_no_network_could_have_are_refused(tmp_path, tensor, words):
    path = written(tmp_path / "bad.safetensors", **{"features.3.bias": tensor})
    with pytest.raises(UserError, match=words) as refusal:
        weights.starting_weights(ModelConfig(weights=path))
    assert str(refusal.value).startswith(f"--model.weights {path}")


def test_a_file_cut_short_is_not_taken_for_a_pickle(tmp_path):
    path = written(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"is not a safetensors file") as refusal:
        weights.read(path, named_by="FILE")
    assert "convert" not in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["module.features.0.weight", "module.classifier.6.bias"], "module."),
        (["model._orig_mod.module.features.0.weight"], "model._orig_mod.module."),
        (["net.features.0.weight", "net.extra"], "net."),
        (["n_averaged", "module.features.0.weight"], "module."),
        (["module.features.0.weight", "loss.weight"], ""),
        (["features.0.weight", "features.0.bias"], ""),
        (["module.conv1.weight"], ""),
        (["my_features.0.weight"], ""),
        ([], ""),
    ],
)
def test_what_wrappers_put_before_all_names(names, prefix):
    assert weights.wrapper_prefix(names) == prefix


@pytest.mark.parametrize("text", [None, "", "[]", "3", '{"class_names": []}', "{" * 5000])
def test_metadata_that_are_none_of_ours(text):
    assert weights.parse_metadata(text) is None


def test_metadata_of_a_later_version_are_left_aside_with_a_word(caplog):
    assert weights.parse_metadata('{"schema": 99}') is None
    assert "version 99" in caplog.text


def test_starting_weights_bring_their_mean_and_standard_deviation(tmp_path):
    """A 2-class network that was fine-tuned from ImageNet: its head says nothing, its metadata all."""
    start = weights.starting_weights(ModelConfig(weights=written(tmp_path / "a.safetensors")))
    assert start.statistics == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_head_of_1000_classes_without_metadata_is_imagenets(tmp_path):
    safetensors.torch.save_file({"classifier.6.bias": torch.ones(1000)}, tmp_path / "a.safetensors")
    start = weights.starting_weights(ModelConfig(weights=tmp_path / "a.safetensors"))
    assert start.statistics == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("num_classes", [10, 365])
def test_another_head_without_metadata_is_a_warning(tmp_path, caplog, num_classes):
    safetensors.torch.save_file({"classifier.6.bias": torch.ones(num_classes)}, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        assert weights.starting_weights(ModelConfig(weights=tmp_path / "a.safetensors")).statistics is None
    assert "does not say which mean and standard deviation" in caplog.text


@pytest.mark.parametrize("entry", [{}, {"mean": [1, 2], "std": [1, 2]}, {"mean": [0.5] * 3, "std": [0.0] * 3}, "x"])
def test_statistics_that_cannot_be_right_are_refused(tmp_path, entry):
    path = written(tmp_path / "a.safetensors", metadata={"schema": 1, "input": entry})
    with pytest.raises(UserError, match="mean"):
        weights.starting_weights(ModelConfig(weights=path))
