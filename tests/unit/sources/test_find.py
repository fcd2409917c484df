"""What `--data.dataset` stands for."""

import logging
from pathlib import Path

import pytest
import stand_ins
from class_folders import classes, listed, plant
from image_sets import hub_folder, pets, pngs

from alexnet_dist.config import DataConfig
from alexnet_dist.sources import HubUnreachableError, SourceOptions, find, hub, tars
from alexnet_dist.sources.find import cache_place, hub_id, is_folder, is_local


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", "uoft-cs/cifar10"),
        ("owner/name", "owner/name"),
        ("name", None),
        ("./name", None),
        ("/tmp/name", None),
        ("~/name", None),
        ("a/b/c", None),
        ("data/café", None),
        ("data/caf\udce9", None),
    ],
)
def test_hub_ids(name, expected):
    assert hub_id(name) == expected


def test_the_place_of_the_cache():
    assert cache_place(DataConfig(cache_dir=Path("/x")), {}) == Path("/x")
    assert cache_place(DataConfig(), {"XDG_CACHE_HOME": "/c"}) == Path("/c/alexnet_dist")
    assert cache_place(DataConfig(), {}) == Path.home() / ".cache" / "alexnet_dist"


@pytest.mark.parametrize("name", ["\u5199" * 80, "a" * 250, "pets"])
def test_names_in_the_cache_are_no_longer_than_file_systems_take(tmp_path, name):
    folder = find.folder_of(tmp_path, "0123456789abcdef" * 4, name)
    assert len(f"{folder.name}-pixels1024.lock".encode()) <= 143  # of eCryptfs; others take 255
    assert folder.name.startswith(name[:20])
    assert folder.name.endswith("-v3-0123456789abcdef")


def test_a_name_that_looks_like_a_pattern_is_one(tmp_path):
    plant(tmp_path, "data [1]-v3-0-encoded/meta.json", content=b"{}")
    assert find.is_prepared(tmp_path / "data [1]-v3-0")


def test_a_folder_of_the_name_of_a_set_that_is_built_in_hides_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "digits", "synthetic", "pets"):
        plant(tmp_path / name, *classes("train", "ab"))
        assert is_folder(name) == is_local(name) == (name == "pets")
    assert is_folder("./cifar10")
    assert listed("./cifar10", tmp_path / "cache").name == "cifar10"
    with pytest.raises(HubUnreachableError):
        listed("cifar10", tmp_path / "cache")
    assert not is_local("long" * 2000)


@pytest.mark.parametrize("name", ["nowhere", "~/nowhere", "a/b/c", "long" * 2000, "data/café", "data/caf\udce9"])
def test_what_is_nowhere(refusal, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert "a folder that exists" in refusal(name, cache=tmp_path)


@pytest.mark.parametrize("name", ["model.xyz", "file", "train.parquet", "images.tar.gz"])
def test_a_file_of_another_kind(tmp_path, refusal, name):
    message = refusal(plant(tmp_path, name, content=b"?") / name)
    assert "not a data set by its suffix" in message
    assert ".zip, .npz or .tar" in message


def test_a_revision_that_is_ignored_is_told(tmp_path, caplog):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    with caplog.at_level(logging.WARNING):
        listed(root, revision="abc")
    assert "--data.revision is ignored" in caplog.text


def test_parquet_files_count_more_than_images_beside_them(tmp_path):
    root = hub_folder(tmp_path / "set", train=pets(pngs(4)), test=pets(pngs(2)))
    plant(root, "figures/cover.png")
    assert listed(root).class_names == ("cat", "dog")


def test_a_relative_path(tmp_path, monkeypatch):
    plant(tmp_path / "set", *classes("train", "ab"))
    monkeypatch.chdir(tmp_path / "set")
    found = listed(".", tmp_path / "cache")
    assert (found.name, len(found.train)) == ("set", 4)
    monkeypatch.chdir("/")
    assert found.train.read(0)


def test_a_key_without_a_listing_is_that_of_the_listing(tmp_path, monkeypatch):
    parquet = hub_folder(tmp_path / "parquet", train=pets(pngs(4)), test=pets(pngs(2)))
    (parquet / "README.md").write_text("a card\n")
    tar = stand_ins.make(next(each for each in stand_ins.ALL if each.layout == "wds"), tmp_path)
    for place in (parquet, tar):
        for options in ({}, {"eval_split": "test"}):
            named = SourceOptions(cache=tmp_path / "cache", **options)
            assert find.locate(str(place), named, {}).key == listed(place, tmp_path / "cache", **options).key
    monkeypatch.setattr(hub, "list_local", unlisted)
    monkeypatch.setattr(tars, "list_tars", unlisted)
    for place in (parquet, tar):
        assert find.locate(str(place), SourceOptions(cache=tmp_path), {}).name == place.name
    assert find.locate("cifar10", SourceOptions(cache=tmp_path), {}).name == "uoft-cs/cifar10"


def unlisted(*_):
    raise AssertionError("listed before it was asked for")


def test_a_folder_is_walked_once(tmp_path, monkeypatch):
    walked, scan = [], find.scan
    monkeypatch.setattr(find, "scan", lambda root: walked.append(root) or scan(root))
    listed(plant(tmp_path / "set", *classes("train", "ab"), *classes("test", "ab")), tmp_path / "cache")
    assert len(walked) == 1


def test_data_sets_without_files():
    assert find.WITHOUT_FILES == ("digits", "synthetic")
