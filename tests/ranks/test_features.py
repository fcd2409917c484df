"""The features command on two ranks: the bytes that one writes."""

import pytest
import torchvision
from network_files import PHOTOS, network_file
from photos import encoded
from ranks import run_ranks
from tiny import tiny_alexnet

from alexnet_dist.commands import features


def write(arguments):
    """Run the command on a rank and return its exit code."""
    torchvision.models.alexnet = tiny_alexnet
    return features.main(arguments, prog="alexnet-dist features")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pictures(tmp_path):
    """Seventeen pictures, of which the third and the last are broken."""
    (tmp_path / "photos").mkdir()
    for number in range(17):
        path = tmp_path / f"photos/{number:02d}.jpg"
        path.write_bytes(b"broken" if number in (2, 16) else encoded(70 + number, 90 - number, seed=number))
    return tmp_path / "photos"


@pytest.mark.parametrize("rows", [[], ["--shard-images", "5"]], ids=["one file", "several"])
def test_two_ranks_write_what_one_writes(tmp_path, pictures, rows, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # sums of other parts round differently
    network = network_file(tmp_path / "network.safetensors", PHOTOS)
    found = []
    for world_size in (1, 2):
        folder = tmp_path / f"ranks {world_size}"
        folder.mkdir()
        arguments = [str(network), str(pictures), "--layers", "conv1,pool5,fc7,logits", "--batch-size", "3", *rows]
        arguments += ["--runtime.cpu", "--out", str(folder / "x.safetensors")]
        assert run_ranks(write, arguments, world_size=world_size) == [1] * world_size
        found.append(contents(folder))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == (5 if rows else 1)
    assert found[0] == found[1]


def test_two_ranks_share_a_data_set(tmp_path):
    network = network_file(tmp_path / "network.safetensors")
    found = []
    for world_size in (1, 2):
        out = tmp_path / f"{world_size}.safetensors"
        flags = ["--data.dataset", "synthetic", "--data.limit", "50", "--batch-size", "8", "--layers", "relu3,fc7"]
        arguments = [str(network), *flags, "--runtime.cpu", "--out", str(out)]
        assert run_ranks(write, arguments, world_size=world_size) == [0] * world_size
        found.append(out.read_bytes())
    assert found[0] == found[1]


def test_a_mistake_of_one_rank_ends_all(tmp_path, pictures):
    network = network_file(tmp_path / "network.safetensors", PHOTOS)
    arguments = [str(network), str(pictures), "--runtime.cpu", "--out", str(tmp_path / "none/x.safetensors")]
    with pytest.raises(AssertionError, match="cannot be written: No such file"):
        run_ranks(write, arguments)
