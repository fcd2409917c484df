"""Run folder, room, images and W&B: the level, and the way out."""

import contextlib
import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
import torchvision
from image_sets import hub_folder, pets, pngs
from preflight import assert_says
from ranks import free_port

from alexnet_dist.config import Config, parse
from alexnet_dist.data import ImageData, load
from alexnet_dist.doctor import checks_storage
from alexnet_dist.sources import ArrayImages, Listing, hub


def test_a_run_folder_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/run"):
        assert_says(checks_storage.run_folder(parse(["--out-dir", folder])), "error", "is no folder", "--out-dir")


def test_a_run_folder_on_a_full_disk(small_disk):
    with contextlib.suppress(OSError), (small_disk / "big").open("wb", buffering=0) as file:
        file.write(bytes(2 << 20))
        file.write(bytes(2 << 20))
    assert_says(
        checks_storage.run_folder(parse(["--out-dir", str(small_disk / "run")])), "error", "No space left", "--out-dir"
    )


def test_a_run_folder_that_holds_another_run(tmp_path):
    assert_says(checks_storage.run_folder(parse(["--resume", "must"])), "error", "no --out-dir is given")
    (tmp_path / "config.yaml").write_text("seed: 1\nmodel: {conv1_init_scale: 0.1}\n")
    assert_says(
        checks_storage.run_folder(parse(["--out-dir", "."])), "error", "seed: 1 -> 0", "choose another --out-dir"
    )
    assert_says(checks_storage.run_folder(parse(["--out-dir", ".", "--seed", "1"])), "ok", "continues the run there")


def test_no_room_for_a_checkpoint(small_disk):
    assert_says(checks_storage.disk(parse(["--out-dir", str(small_disk / "run")])), "error", "685 MB and would not fit")


@pytest.mark.parametrize(
    ("free", "held", "keep", "level"), [(3.0e9, 0, 2, "ok"), (2.0e9, 0, 2, "warning"), (2.0e9, 1e9, 2, "ok")]
)
def test_room_for_some_checkpoints(*, monkeypatch, tmp_path, free, held, keep, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 0, free))
    kept = tmp_path / "checkpoints/step_00000001"
    kept.mkdir(parents=True)
    with (kept / "model.safetensors").open("wb") as file:
        file.truncate(int(held))
    result = checks_storage.disk(parse(["--out-dir", ".", "--checkpoint.keep", str(keep)]))
    assert_says(result, level, "up to 4", *(["--checkpoint.keep"] if level == "warning" else []))


@pytest.mark.parametrize(
    "flags",
    [
        ["--optim.name", "adamw"],
        ["--optim.name", "sgd"],
        ["--optim.name", "lars"],
        ["--optim.name", "adamw", "--optim.ema", "0.9"],
    ],
)
def test_the_size_of_a_checkpoint_is_that_of_its_tensors(flags):
    config = parse(flags)
    with torch.device("meta"):
        network = torchvision.models.alexnet(num_classes=10)
    copies = {"adamw": 2, "sgd": 1, "lars": 1}[config.optim.name] + 1 + bool(config.optim.ema)
    assert checks_storage.checkpoint_bytes(config) == 4 * copies * sum(p.numel() for p in network.parameters())


def test_the_size_of_a_checkpoint_of_muon_is_an_upper_bound():
    with torch.device("meta"):
        network = torchvision.models.alexnet(num_classes=10)
    one_state = sum(layer.weight.numel() for layer in network.features if hasattr(layer, "weight"))
    tensors = 3 * sum(p.numel() for p in network.parameters()) - one_state
    assert 4 * tensors <= checks_storage.checkpoint_bytes(parse(["--optim.name", "muon"])) < 1.02 * 4 * tensors


def test_images_that_are_not_there(tmp_path, image_folder):
    (tmp_path / "empty").mkdir()
    for name, fragment in [
        ("./gone", "no such folder"),
        ("empty", "no images"),
        ("cifar", "no data set of that"),
    ]:
        assert_says(checks_storage.data_set(parse(["--data.dataset", name]).data, {}), "error", fragment)
    folder = str(image_folder())
    found = f"{folder}: 8 training and 8 test images, prepared at the start"
    assert_says(checks_storage.data_set(parse(["--data.dataset", folder]).data, {}), "ok", found)
    load(parse(["--data.dataset", folder, "--data.batch-size", "4"]).data)
    assert_says(checks_storage.data_set(parse(["--data.dataset", folder]).data, os.environ), "ok", "prepared already")
    (tmp_path / "file").write_text("")
    blocked = parse(["--data.dataset", folder, "--data.cache-dir", "file"]).data
    assert_says(checks_storage.data_set(blocked, {}), "error", "give --data.cache-dir")


def test_a_look_at_parquet_files_leaves_no_copy_of_them(tmp_path):
    folder = hub_folder(tmp_path / "pets", train=pets(pngs(4)), test=pets(pngs(2)))
    data = parse(["--data.dataset", str(folder), "--data.cache-dir", str(tmp_path / "cache")]).data
    assert_says(checks_storage.data_set(data, {}), "ok", "4 training and 2 test images, prepared at the start")
    assert not list((tmp_path / "cache").rglob("*"))


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(checks_storage.importlib.util, "find_spec", lambda _: None)
    assert_says(checks_storage.data_set(parse(["--data.dataset", "digits"]).data, {}), "error", "alexnet_dist[demo]")
    assert_says(checks_storage.data_set(parse(["--data.dataset", "synthetic"]).data, {}), "ok")


def test_a_hub_that_cannot_be_reached(web, taken):
    cifar, offline = parse([]).data, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": web}
    assert_says(checks_storage.data_set(cifar, offline), "error", "HF_HUB_OFFLINE is set", "--data.dataset FOLDER")
    silent = {"HF_ENDPOINT": f"http://key:secret@127.0.0.1:{taken}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hub.answers.__kwdefaults__, "seconds", 0.2)
        result = checks_storage.data_set(cifar, silent)
    assert_says(result, "error", "127.0.0.1 does not answer", "--data.fallback digits")
    assert "secret" not in result.message
    instead = parse(["--data.fallback", "digits"]).data
    assert_says(checks_storage.data_set(instead, offline), "warning", "TRAINS ON digits INSTEAD")
    assert_says(checks_storage.data_set(cifar, {"HF_ENDPOINT": web}), "ok", "the Hub answers")


@pytest.mark.parametrize("revision", [None, "abc"])
def test_images_that_were_decoded_before_are_found_where_the_run_finds_them(monkeypatch, revision):
    def listed(name, options, _):
        images = ArrayImages(np.zeros((300, 8, 8), np.uint8), np.arange(300) % 2)
        return Listing(name, ("cat", "dog"), images, images, "test", hub.hub_key(name, options))

    monkeypatch.setattr(hub, "list_hub", listed)
    config = parse(["--data.revision", revision] if revision else []).data
    assert_says(checks_storage.data_set(config, os.environ), "error", "not here")
    assert isinstance(load(config), ImageData)
    assert_says(checks_storage.data_set(config, os.environ), "ok", "prepared already")
    other = dataclasses.replace(config, revision="another")
    assert_says(checks_storage.data_set(other, os.environ), "error", "not here")


def test_images_in_the_hubs_own_cache(tmp_path):
    (tmp_path / "hub/datasets/uoft-cs___cifar10").mkdir(parents=True)
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    assert_says(checks_storage.data_set(Config().data, environment), "ok", "downloaded already")


def test_wandb(monkeypatch, web):
    monkeypatch.delenv("WANDB_MODE")
    assert_says(checks_storage.wandb(Config(), {}, records=True), "warning", "no login: run `wandb login`")
    online = parse(["--wandb.mode", "online"])
    assert_says(checks_storage.wandb(online, {}, records=True), "error", "needs a login")
    assert_says(checks_storage.wandb(parse(["--wandb.mode", "offline"]), {}, records=True), "ok", "offline (asked for)")
    assert_says(checks_storage.wandb(parse(["--log.trackers"]), {}, records=True), "ok", "not used")
    slash = parse(["--wandb.project", "a/b"])
    assert_says(checks_storage.wandb(slash, {}, records=True), "error", "--wandb.project a/b: W&B takes none of")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 3 + "and-a-secret")
    result = checks_storage.wandb(Config(), {"WANDB_BASE_URL": web}, records=True)
    assert_says(result, "ok", "online (WANDB_API_KEY)")
    assert "secret" not in result.message
    refused = {"WANDB_BASE_URL": f"http://user:secret@127.0.0.1:{free_port()}"}
    result = checks_storage.wandb(Config(), refused, records=True)
    assert_says(result, "warning", "127.0.0.1 does not answer", "wandb sync")
    assert "secret" not in result.message
    assert_says(checks_storage.wandb(Config(), refused, records=False), "ok")
