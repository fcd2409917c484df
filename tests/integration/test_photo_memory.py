"""Memory of a rank that trains on photographs: index, order and draws grow with the number of images, nothing else."""

import json
import subprocess
import sys

import numpy as np
import pytest
from deadlines import deadline
from photos import photo_folder
from places import ROOT

from alexnet_dist.config import parse
from alexnet_dist.data import load

INDEX_ROWS = (100_000, 1_000_000)
BYTES_AN_IMAGE = 128
MEASURE = """
import sys
from pathlib import Path
import numpy as np, psutil
from alexnet_dist.commands import train_setup
from alexnet_dist.config import parse
from alexnet_dist.data import ImageData, Photographs
from alexnet_dist.data.image_data import Statistics
from alexnet_dist.distributed import accelerator as processes
import torch

folder, *flags = sys.argv[1:]
config = parse(flags)
photos = Photographs(Path(folder), config.data.store, 72 if config.data.store == "pixels" else None)
statistics = Statistics((0.5,) * 3, (0.2,) * 3)
data = ImageData("many", photos, photos.take(np.arange(10)), ("cat", "dog"), statistics, fingerprint="")
accelerator, _ = processes.make_accelerator(config)
loaders = train_setup.make_loaders(config, data, accelerator, lambda: None)
inputs = train_setup.make_inputs(config, data, None, torch.float32)
for epoch in range(2):
    loaders.order.set_position(epoch=epoch, end=100)
    draws = inputs.draws(epoch, accelerator.device)
    for batch in loaders.train:
        inputs.augmented(batch, draws)
assert int(photos.labels.max()) == 1  # each page of the index was looked at
print(psutil.Process().memory_info().rss)
"""


@pytest.fixture(scope="module", params=["pixels", "encoded"])
def store(request, tmp_path_factory):
    """Return the flags and the folder of a training split of 64 photographs."""
    place = tmp_path_factory.mktemp("photographs")
    photo_folder(place / "photos", train=64, test=8)
    flags = ["--data.dataset", str(place / "photos"), "--data.cache-dir", str(place / "cache"), "--runtime.cpu"]
    flags += ["--data.store", request.param, "--data.stored-size", "72", "--data.image-size", "64"]
    flags += ["--data.batch-size", "64", "--data.cutout", "0.25", "--data.threads", "2"]
    return flags, load(parse(flags).data).train.folder


def resident(flags, folder, count):
    """Return the resident bytes of a process that trains on an index of `count` rows, over the same 64 images."""
    rows = np.fromfile(folder / "rows.bin", np.uint8).reshape(64, -1)
    many = folder.with_name(f"{folder.name} {count}")
    many.mkdir()
    for path in folder.iterdir():
        if path.name != "rows.bin":
            (many / path.name).symlink_to(path)
    np.tile(rows, (-(-count // 64), 1))[:count].tofile(many / "rows.bin")
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, str(many), *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=deadline(120), check=False,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    return json.loads(measured.stdout)


@pytest.mark.slow
def test_memory_grows_by_index_order_and_draws_alone(store):
    few, many = (resident(*store, count) for count in INDEX_ROWS)
    grown = (many - few) / (INDEX_ROWS[1] - INDEX_ROWS[0])
    print(f"{few / 1e6:.0f} MB with {INDEX_ROWS[0]:,} rows, {many / 1e6:.0f} with {INDEX_ROWS[1]:,}: {grown:.0f} each")
    assert grown <= BYTES_AN_IMAGE
