"""The features command as a process: its memory, however many the pictures; and Captum on the network."""

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
import torchvision
from deadlines import deadline
from network_files import network_file
from PIL import Image
from places import ROOT, SUPPORT
from tiny import tiny_alexnet

import alexnet_dist

FEW, MANY = 1_000, 10_000
BYTES_AN_IMAGE = 2_000
"""That memory may grow by for each picture: its path and its name, three times over. Its features take 63 kB."""
MEASURE = f"""
import resource, sys; sys.path[:0] = [{str(ROOT)!r}, {str(SUPPORT)!r}]
import torchvision, tiny
torchvision.models.alexnet = tiny.tiny_alexnet
from alexnet_dist.commands import features
code = features.main(sys.argv[1:], prog="features")
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    network, folder = network_file(tmp_path / "network.safetensors"), tmp_path / "pictures"
    folder.mkdir()
    drawn = np.random.default_rng(0)
    peaks = []
    for count in (FEW, MANY):
        for number in range(len([*folder.iterdir()]), count):
            Image.fromarray(drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{number:05d}.png")
        out = tmp_path / f"{count}.safetensors"
        start = [sys.executable, "-c", MEASURE, network, folder, "--layers", "conv1,fc7", "--shard-images", MANY]
        start += ["--out", out, "--batch-size", "32"]
        done = subprocess.run([*map(str, start)], capture_output=True, text=True, timeout=deadline(300), check=False)
        assert done.returncode == 0, done.stderr
        code, peak = done.stdout.split()[-2:]
        assert code == "0"
        peaks.append(int(peak))
        with safetensors.safe_open(out, framework="np") as file:
            assert file.get_slice("conv1").get_shape() == [count, 64, 15, 15]
            assert len(json.loads(file.metadata()["alexnet_dist"])["names"]) == count
            assert np.isfinite(file.get_slice("fc7")[count - 1 :]).all()
    grown = (peaks[1] - peaks[0]) / (MANY - FEW)
    size = out.stat().st_size
    print(
        f"{peaks[0] / 1e6:.0f} MB at {FEW:,}, {peaks[1] / 1e6:.0f} MB at {MANY:,}, whose file has {size / 1e6:.0f} MB"
    )
    assert grown <= BYTES_AN_IMAGE


@pytest.mark.parametrize("method", ["Saliency", "IntegratedGradients", "LayerGradCam", "DeepLift"])
def test_captum_explains_the_network(tmp_path, monkeypatch, method):
    attr = pytest.importorskip("captum.attr")
    monkeypatch.setattr(torchvision.models, "alexnet", tiny_alexnet)
    trained = alexnet_dist.load(network_file(tmp_path / "network.safetensors"))
    pictures = [np.full((40, 40, 3), 30 * k, np.uint8) for k in range(3)]
    inputs = trained.preprocess(pictures).requires_grad_()
    layer = [trained.network.get_submodule("features.10")] if method == "LayerGradCam" else []
    found = getattr(attr, method)(trained.network, *layer).attribute(inputs, target=torch.tensor([1, 2, 3]))
    assert found.shape == ((3, 1, 3, 3) if layer else inputs.shape)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0
    if method == "IntegratedGradients":
        trained_logits, black = trained.network(inputs), trained.network(torch.zeros_like(inputs))
        gained = (trained_logits - black).gather(1, torch.tensor([[1], [2], [3]]))[:, 0]
        assert torch.allclose(found.sum(dim=(1, 2, 3)).float(), gained, rtol=0.05, atol=1e-3), "completeness"
