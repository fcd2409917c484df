"""Prepared storage: mapped when it is whole, made again when it is not."""

import errno
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_sets import (
    LOADING,
    assert_equal_data,
    cache_of,
    hub_folder,
    in_memory,
    pets,
    pngs,
    random_images,
    undecodable,
)
from PIL import Image

from alexnet_dist.config import DataConfig
from alexnet_dist.data import cache as data_cache
from alexnet_dist.data import load as load_data
from alexnet_dist.sources import ArrayImages, Listing, hub

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
]


def test_a_second_load_maps_the_cache_and_decodes_nothing(good, load, monkeypatch):
    first = load(good)
    monkeypatch.setattr(LOADING, "decode_all", undecodable)
    monkeypatch.setattr(datasets, "load_dataset", undecodable)
    second = load(good)
    assert_equal_data(first, second)
    for split in (first.train, first.test, second.train, second.test):
        assert isinstance(split.images, np.memmap)
        assert isinstance(split.labels, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            split.images[0] = 0
    assert sorted(path.name for path in cache_of(second).iterdir()) == [
        "meta.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]


def test_the_cache_defaults_to_the_users_cache_folder(good, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    loaded = load_data(DataConfig(dataset=str(good), batch_size=1))
    assert Path(loaded.train.images.filename).is_relative_to(tmp_path / "xdg" / "alexnet_dist")


def test_a_changed_source_is_decoded_again(image_folder, load):
    folder = image_folder(size=4)
    before = load(folder)
    changed = Image.fromarray(random_images(1, seed=8)[0])
    changed.save(folder / "train" / "dog" / "3.png")
    after = load(folder)
    assert after.fingerprint != before.fingerprint
    np.testing.assert_array_equal(after.train.images[7].transpose(1, 2, 0), np.asarray(changed))
    (folder / "train" / "dog" / "3.png").rename(folder / "train" / "cat" / "9.png")
    assert load(folder).train.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_data_sets_of_one_name_do_not_share_a_cache(tmp_path, load):
    folders = [hub_folder(tmp_path / str(k) / "pets", train=pets(pngs(2, seed=k)), test=pets(pngs(2))) for k in (1, 2)]
    for folder in folders * 2:
        expected = random_images(2, seed=int(folder.parent.name)).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(load(folder).train.images, expected)


def flip(position):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[position] ^= 0x10
        file.write_bytes(content)

    return damage


def cut(length):
    def damage(file):
        file.write_bytes(file.read_bytes()[:length])

    return damage


def becomes(text):
    return lambda file: file.write_text(text)


CACHE_DAMAGE = {
    "flipped pixel": ("train_images.npy", flip(-10)),
    "flipped test pixel": ("test_images.npy", flip(-1)),
    "flipped label": ("train_labels.npy", flip(-8)),
    "flipped test label": ("test_labels.npy", flip(-8)),
    "flipped magic": ("train_images.npy", flip(0)),
    "truncated images": ("train_images.npy", cut(-5)),
    "truncated labels": ("test_labels.npy", cut(-8)),
    "truncated header": ("train_labels.npy", cut(40)),
    "empty file": ("train_images.npy", cut(0)),
    "zip": ("train_images.npy", lambda file: file.write_bytes(b"PK\x03\x04" + bytes(100))),
    "missing array": ("test_images.npy", Path.unlink),
    "missing meta": ("meta.json", Path.unlink),
    "meta is empty": ("meta.json", becomes("")),
    "meta is malformed": ("meta.json", becomes('{"name": ')),
    "meta is a list": ("meta.json", becomes("[]")),
    "meta lacks keys": ("meta.json", becomes("{}")),
    "meta has wrong types": (
        "meta.json",
        becomes(json.dumps({"class_names": 3, "mean": None, "std": 1, "fingerprint": ""})),
    ),
}


FOUND_BY_HASHING = ("flipped pixel", "flipped test pixel", "flipped label", "flipped test label")
"""Sizes, types and meta.json are compared at every start; pixels and labels are hashed by --data.verify."""


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("damage", CACHE_DAMAGE)
def test_a_damaged_cache_is_decoded_again(*, good, load, caplog, monkeypatch, damage, verify):
    loaded = load(good)
    intact = in_memory(loaded)
    name, harm = CACHE_DAMAGE[damage]
    harm(cache_of(loaded) / name)
    caplog.clear()
    found = load(good, verify=verify)
    if damage in FOUND_BY_HASHING and not verify:
        assert caplog.records == [], "a start reads no image"
        return
    assert_equal_data(found, intact)
    warned = [r.levelname for r in caplog.records if "is damaged: decoding again" in r.getMessage()]
    assert warned == ([] if damage == "missing meta" else ["WARNING"]), "without meta.json nothing was prepared"
    caplog.clear()
    monkeypatch.setattr(LOADING, "decode_all", undecodable)
    assert_equal_data(load(good), intact)
    assert caplog.records == [], "the second load found it repaired"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy.*")
@pytest.mark.parametrize("name", ["meta.json", "train_labels.npy"])
def test_no_flipped_bit_of_the_cache_goes_unnoticed(good, load, caplog, name):
    """Byte order, mean and deviation included: what --data.verify does not recognise as damaged must be unharmed."""
    caplog.set_level("CRITICAL", logger="alexnet_dist.data")  # hundreds of warnings
    loaded = load(good)
    intact, folder = in_memory(loaded), cache_of(loaded)
    content = (folder / name).read_bytes()
    bits = (0,) if name == "meta.json" else (1, 3, 4)  # 1: '<' to '>'; 3: 'i' to 'a'; 4: a bracket closes no more
    unnoticed = []
    for position in range(len(content)):
        for bit in bits:
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            (folder / name).write_bytes(damaged)
            found = data_cache.read(folder, "good", verify=True)
            if found is None:
                continue
            try:
                assert_equal_data(found, intact)
            except AssertionError:
                unnoticed.append(bytes(damaged[max(0, position - 8) : position + 8]))
    assert unnoticed == []


def left_in(cache):
    """Return the names in a data cache, without locks and the Arrow copies that `datasets` makes."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock" and path.name != "arrow"]


class Killed(BaseException):
    """As KeyboardInterrupt or SystemExit: nothing may catch it."""


@pytest.mark.parametrize("saved", [0, 2])
def test_an_interrupted_writer_leaves_nothing(good, load, tmp_path, monkeypatch, saved):
    save, calls = np.save, []

    def interrupted(path, array):
        if len(calls) == saved:
            Path(path).write_bytes(b"half of it")
            raise Killed
        calls.append(path)
        save(path, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", interrupted)
        with pytest.raises(Killed):
            load(good)
    assert len(calls) == saved
    assert left_in(tmp_path / "cache") == []
    loaded = load(good)
    np.testing.assert_array_equal(loaded.train.images, random_images(5).transpose(0, 3, 1, 2))
    assert not list((tmp_path / "cache").glob(".writing-*"))


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("200 requested and 10 written"),  # what numpy raises when the disk fills up under it
    ],
)
def test_a_full_disk_is_the_users_error(*, good, complaint, load, tmp_path, monkeypatch, failure):
    def full(*_):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        message = complaint(good)
    assert "--data.cache-dir" in message
    assert str(failure) in message
    loaded = load(good)
    assert len(loaded.train) == 5
    assert left_in(tmp_path / "cache") == [cache_of(loaded).name]


def test_a_cache_that_cannot_be_made_is_the_users_error(good, complaint, tmp_path):
    (tmp_path / "file").touch()
    for dataset in (good, "cifar10"):
        message = complaint(dataset, cache_dir=tmp_path / "file" / "cache", fallback="digits")
        assert "--data.cache-dir" in message
        assert str(tmp_path / "file") in message


def test_a_hub_data_set_is_cached_by_revision(load, monkeypatch):
    asked = []

    def listed(name, options, _):
        asked.append((name, options.revision))
        images = ArrayImages(random_images(2, seed=len(asked)), np.array([0, 1]))
        return Listing(name, ("cat", "dog"), images, images, "test", hub.hub_key(name, options))

    monkeypatch.setattr(hub, "list_hub", listed)
    first, pinned, again = load("cifar10"), load("cifar10", revision="abc"), load("cifar10")
    assert asked == [("uoft-cs/cifar10", None), ("uoft-cs/cifar10", "abc")]
    assert_equal_data(first, again)
    assert pinned.fingerprint != first.fingerprint
    assert isinstance(again.train.images, np.memmap)


def test_a_start_hashes_no_pixels_unless_it_is_told_to(good, load, monkeypatch):
    intact = in_memory(load(good))
    with monkeypatch.context() as patch:
        patch.setattr(data_cache, "fingerprint", undecodable)
        assert_equal_data(load(good), intact)
    assert_equal_data(load(good, verify=True), intact)
