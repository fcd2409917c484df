"""Prepared photographs: torchvision's pixels, one reading, continued after a kill, reopened without an image."""

import hashlib
import json
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from image_sets import as_pillow_reads, first_half
from photos import InFiles, InMemory, InOneFile, encoded
from torchvision.transforms.v2 import functional

from alexnet_dist.data import decode, photographs
from alexnet_dist.data.photographs import choose, open_store, prepare
from alexnet_dist.errors import UserError

STORES = ["pixels", "encoded"]
SOURCES = ["memory", "files", "one file"]
KINDS = [
    {"kind": "JPEG"}, {"kind": "JPEG", "mode": "L"}, {"kind": "JPEG", "orientation": 6}, {"kind": "PNG"},
    {"kind": "PNG", "mode": "P"}, {"kind": "WEBP", "orientation": 3}, {"kind": "JPEG", "mode": "CMYK"},
    {"kind": "JPEG", "progressive": True},
]  # fmt: skip


def contents(count, largest=90):
    sides = np.random.default_rng(0).integers(20, largest, (count, 2)).tolist()
    return [encoded(*side, seed=k, **KINDS[k % len(KINDS)]) for k, side in enumerate(sides)]


def listing(source, tmp_path, files, labels=None):
    if source == "memory":
        return InMemory(files, labels)
    return (
        InFiles(tmp_path / "originals", files, labels)
        if source == "files"
        else InOneFile(tmp_path / "tar", files, labels)
    )


def prepared(tmp_path, train, test=None, **options):
    settings = {"store": "pixels", "stored_size": 32, "threads": 2, "class_names": ("cat", "dog")} | options
    return prepare(train, test, settings.pop("class_names"), tmp_path / "cache" / "photos-key", **settings)


def complaint(*arguments, **options):
    with pytest.raises(UserError) as caught:
        prepared(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message, "a user's error is one line"
    return message


def expected(content, stored_size):
    """Return what torchvision's v2 transforms make of an image, (H, W, 3)."""
    image = torch.from_numpy(decode.upright(as_pillow_reads(content), decode.header(content, "").orientation).copy())
    image = image.permute(2, 0, 1).contiguous()
    if stored_size is not None and min(image.shape[1:]) > stored_size:
        image = functional.resize(image, [stored_size], antialias=True)
    return image.permute(1, 2, 0).numpy()


# ---- what is stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("threads", [1, 3])
def test_pictures_are_those_of_torchvision(tmp_path, source, store, threads):
    files = contents(24)
    found = prepared(tmp_path, listing(source, tmp_path, files), InMemory(files[:3]), store=store, threads=threads)
    assert (len(found.train), len(found.test)) == (24, 3)
    assert found.train.store == store
    assert found.train.stored_size == (32 if store == "pixels" else None)
    for photos in (found.train, found.test):
        for k in range(len(photos)):
            picture = photos.picture(k)
            np.testing.assert_array_equal(picture, expected(files[k], found.train.stored_size))
            assert (photos.heights[k], photos.widths[k]) == picture.shape[:2]
    assert found.train.labels.dtype == np.int64
    assert found.train.labels.tolist() == [0, 1] * 12


@pytest.mark.parametrize("store", STORES)
def test_a_box_of_a_picture_is_a_part_of_it(tmp_path, monkeypatch, store):
    found, asked = prepared(tmp_path, InMemory(contents(9)), store=store).train, []
    for region in (lambda *given: asked.append(given), lambda *_: np.full((3, 5, 3), 7, np.uint8)):
        monkeypatch.setattr(decode, "region", region)
        for k in range(9):
            part = found.picture(k, [1, 2, 3, 5])
            alone = store == "encoded" and region(b"", None, []) is not None
            np.testing.assert_array_equal(part, 7 if alone else found.picture(k)[1:4, 2:7])
    assert [given[2] for given in asked if given[0]] == [[1, 2, 3, 5]] * (9 if store == "encoded" else 0)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("store", STORES)
def test_each_image_is_read_once(tmp_path, monkeypatch, source, store):
    images = listing(source, tmp_path, contents(30))
    monkeypatch.setattr(photographs, "_stored_bytes", lambda *_: 0)
    prepared(tmp_path, images, store=store)
    assert dict(images.reads) == dict.fromkeys(range(30), 1)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("store", STORES)
def test_places_are_kept(tmp_path, source, store):
    images = listing(source, tmp_path, contents(5))
    found = prepared(tmp_path, images, store=store)
    assert [found.train.where(k) for k in range(5)] == [images.where(k) for k in range(5)]


def test_names_that_are_not_utf8_are_kept(tmp_path):
    images = InFiles(tmp_path / os.fsdecode(b"caf\xe9"), contents(3))
    found = prepared(tmp_path, images, store="encoded")
    assert found.train.where(2) == images.where(2)
    np.testing.assert_array_equal(found.train.picture(2), expected(images.contents[2], None))


def test_names_are_kept_where_the_locale_has_ascii_alone(tmp_path, monkeypatch):
    """As under LC_ALL=C PYTHONUTF8=0, where a path is in surrogates, and its place, for people, in letters."""
    coding = {
        "fsencode": lambda name: os.fspath(name).encode("ascii", "surrogateescape"),
        "fsdecode": lambda name: name.decode("ascii", "surrogateescape"),
    }
    monkeypatch.setattr(photographs, "os", SimpleNamespace(**{**vars(os), **coding}))
    images = InFiles(tmp_path / "caf\udcc3\udca9", contents(3))
    found = prepared(tmp_path, images, store="encoded")
    assert "caf\u00e9" in found.train.where(2)
    np.testing.assert_array_equal(found.train.picture(2), expected(images.contents[2], None))


@pytest.mark.parametrize("store", STORES)
def test_a_part_is_a_view(tmp_path, store):
    photos = prepared(tmp_path, InMemory(contents(9)), store=store).train
    before = sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))
    chosen = np.array([7, 2, 2, 0])
    part, odd = photos.take(chosen), photos.take(photos.labels == 1)
    assert (len(part), len(odd)) == (4, 4)
    np.testing.assert_array_equal(odd.take(np.array([3])).picture(0), photos.picture(7))
    for k, index in enumerate(chosen):
        np.testing.assert_array_equal(part.picture(k), photos.picture(index))
        assert part.where(k) == photos.where(index)
        assert (part.labels[k], part.heights[k], part.widths[k]) == (
            photos.labels[index], photos.heights[index], photos.widths[index],
        )  # fmt: skip
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.bin")) == before


def test_many_threads_may_read_at_once(tmp_path):
    files = contents(12)
    photos = prepared(tmp_path, InMemory(files), store="encoded").train
    pictures, wrong = [expected(content, None) for content in files], []

    def check():
        wrong.extend(k for k in range(12) if not np.array_equal(photos.picture(k), pictures[k]))
        wrong.extend(k for k in range(12) if not photos.where(k).startswith(f"train[{k}]"))

    threads = [threading.Thread(target=check) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_index_row_takes_40_bytes(tmp_path):
    photos = prepared(tmp_path, InMemory(contents(3))).train
    assert photos.rows.itemsize == 40
    assert (photos.folder / "rows.bin").stat().st_size == 3 * 40


# ---- statistics and fingerprint -------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", STORES)
def test_statistics_are_those_of_the_stored_pixels(tmp_path, store):
    found = prepared(tmp_path, InMemory(contents(12)), InMemory(contents(2)), store=store)
    pixels = np.concatenate([found.train.picture(k).reshape(-1, 3) for k in range(12)]) / 255
    np.testing.assert_allclose(found.statistics.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.statistics.std, pixels.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.statistics.covariance, np.cov(pixels.T, bias=True), rtol=1e-9)


def test_a_constant_channel_has_the_standard_deviation_1(tmp_path):
    from image_sets import file_content
    from PIL import Image

    found = prepared(tmp_path, InMemory([file_content(Image.new("RGB", (9, 9), (7, 8, 9)))] * 2))
    assert found.statistics.std == (1.0, 1.0, 1.0)


def test_statistics_are_taken_from_a_fixed_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(photographs, "STATISTICS_IMAGES", 4)
    first = prepared(tmp_path / "a", InMemory(contents(12)), threads=1)
    second = prepared(tmp_path / "b", InMemory(contents(12)), threads=3)
    assert first.statistics == second.statistics
    chosen = photographs.rng.generator(0, "statistics").permutation(12)[:4]
    pixels = np.concatenate([first.train.picture(k).reshape(-1, 3) for k in chosen]) / 255
    np.testing.assert_allclose(first.statistics.mean, pixels.mean(axis=0), rtol=1e-12)


def test_the_fingerprint_is_that_of_content_and_way(tmp_path, monkeypatch):
    files = contents(6)
    changed = [*files[:5], encoded(50, 50, seed=77)]

    def of(number, *arguments, **options):
        return prepared(tmp_path / str(number), *arguments, **options).fingerprint

    train, test = InMemory(files), InMemory(files[:2])
    same = of(0, train, test)
    assert len(same) == 64
    assert of(1, InFiles(tmp_path / "files", files), test, threads=1) == same, "where images lie does not matter"
    others = [
        of(2, InMemory(changed), test), of(3, InMemory(files, [0] * 6), test), of(4, train, InMemory(files[1:3])),
        of(5, train, test, class_names=("cat", "cow")), of(6, train, test, store="encoded"), of(7, train, None),
        of(8, train, test, stored_size=33), of(9, InMemory(files[::-1], train.labels[::-1]), test),
    ]  # fmt: skip
    monkeypatch.setattr(photographs, "DECODER", "Pillow 1")
    others.append(of(10, train, test))
    assert len({same, *others}) == 10


def test_another_decoder_changes_originals_and_not_stored_pixels(tmp_path, monkeypatch):
    stores = {store: prepared(tmp_path / store, InMemory(contents(3)), store=store) for store in STORES}
    monkeypatch.setattr(photographs, "DECODER", "Pillow 1")
    same = {store: prepared(tmp_path / store, InMemory(contents(3)), store=store).fingerprint for store in STORES}
    assert same["pixels"] == stores["pixels"].fingerprint
    assert same["encoded"] != stores["encoded"].fingerprint


# ---- a second start -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("store", STORES)
def test_a_second_start_reads_no_image(tmp_path, monkeypatch, source, store):
    images = listing(source, tmp_path, contents(8))
    first = prepared(tmp_path, images, store=store)
    images.reads.clear()
    for place in (tmp_path / "originals", tmp_path / "tar"):
        if place.exists():
            place.rename(tmp_path / "unreadable")
    monkeypatch.setattr(decode, "pixels", None)
    monkeypatch.setattr(photographs.Photographs, "picture", None)
    again = prepared(tmp_path, images, store=store)
    assert not images.reads
    for name in ("class_names", "statistics", "fingerprint", "test"):
        assert getattr(again, name) == getattr(first, name)
    for name in ("folder", "store", "stored_size"):
        assert getattr(again.train, name) == getattr(first.train, name)
    np.testing.assert_array_equal(again.train.rows, first.train.rows)


@pytest.mark.parametrize("change", [{"store": "encoded"}, {"stored_size": 40}, {"class_names": ("a", "b")}])
def test_another_kind_of_store_is_prepared_anew(tmp_path, change):
    images = InMemory(contents(4))
    prepared(tmp_path, images)
    found = prepared(tmp_path, images, **change)
    assert found.train.store == change.get("store", "pixels")
    assert found.class_names == change.get("class_names", ("cat", "dog"))
    np.testing.assert_array_equal(found.train.picture(3), expected(images.contents[3], found.train.stored_size))


@pytest.mark.parametrize("file", ["train/rows.bin", "train/contents.bin", "train/places.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["shortened", "flipped", "removed"])
def test_a_damaged_store_is_prepared_anew(tmp_path, caplog, file, damage):
    images = InMemory(contents(4))
    first = prepared(tmp_path, images)
    path = tmp_path / "cache" / "photos-key" / file
    if damage == "flipped":
        if file in ("train/contents.bin", "train/places.bin"):
            pytest.skip("found by verify alone")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "shortened":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    images.reads.clear()
    found = prepared(tmp_path, images)
    assert found.fingerprint == first.fingerprint
    assert images.reads
    assert "preparing again" in caplog.text or (file, damage) == ("meta.json", "removed")
    np.testing.assert_array_equal(found.train.picture(3), expected(images.contents[3], 32))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("store", STORES)
def test_verify_names_what_has_changed(tmp_path, source, store):
    images = listing(source, tmp_path, contents(6))
    found = prepared(tmp_path, images, store=store)
    prepared(tmp_path, images, store=store, verify=True)
    path, offset = found.train.folder / "contents.bin", int(found.train.rows["offset"][4])
    if store == "encoded" and source != "memory":
        path = images.paths[4] if source == "files" else images.path
    content = bytearray(path.read_bytes())
    content[offset + 10] ^= 1
    path.write_bytes(content)
    prepared(tmp_path, images, store=store)
    message = complaint(tmp_path, images, store=store, verify=True)
    assert message.startswith(f"{images.where(4)} is not what was prepared")
    assert "photos-key" in message


def test_there_is_no_store_in_other_folders(tmp_path):
    assert open_store(tmp_path / "none") is None
    assert open_store(tmp_path) is None


def test_originals_that_changed_are_named(tmp_path):
    images = InFiles(tmp_path / "originals", contents(4))
    photos = prepared(tmp_path, images, store="encoded").train
    images.paths[1].write_bytes(images.contents[1][:-30])
    with pytest.raises(UserError, match=rf"^{images.paths[1]} is shorter than when it was prepared"):
        photos.picture(1)
    images.paths[2].unlink()
    with pytest.raises(UserError, match=rf"^{images.paths[2]} cannot be read: No such file"):
        photos.picture(2)
    images.paths[0].write_bytes(encoded(11, 12) + bytes(len(images.contents[0])))
    with pytest.raises(UserError, match=rf"^{images.paths[0]} has another size than when it was prepared"):
        photos.picture(0)


# ---- faults while preparing -----------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


class Dying(InMemory):
    """Images of which one cannot be read until `healed`: as if the process was killed there."""

    at, healed = 25, False

    def read(self, index):
        if index == self.at and not self.healed:
            raise Killed
        return super().read(index)


@pytest.fixture
def small_chunks(monkeypatch):
    """Checkpoints each 10 images, and no reading of headers for an estimate."""
    monkeypatch.setattr(photographs, "CHUNK", 10)
    monkeypatch.setattr(photographs, "_stored_bytes", lambda *_: 0)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.usefixtures("small_chunks")
def test_a_killed_preparation_goes_on(tmp_path, store):
    images = Dying(contents(40))
    with pytest.raises(Killed):
        prepared(tmp_path, images, store=store)
    assert open_store(tmp_path / "cache" / "photos-key") is None
    images.healed = True
    images.reads.clear()
    work = tmp_path / "cache" / ".photos-key.preparing" / "train"
    with (work / "contents.bin").open("ab") as file:
        file.write(b"written after the last checkpoint")
    found = prepared(tmp_path, images, store=store)
    assert sorted(images.reads) == list(range(20, 40)), "what was done is not read again"
    whole = prepared(tmp_path / "whole", InMemory(images.contents), store=store)
    assert found.fingerprint == whole.fingerprint
    for name in ("rows.bin", "places.bin", "sha256.bin", "contents.bin"):
        assert (found.train.folder / name).read_bytes() == (whole.train.folder / name).read_bytes()
    assert not work.exists()


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_preparation_of_another_kind_is_not_continued(tmp_path):
    images = Dying(contents(40))
    with pytest.raises(Killed):
        prepared(tmp_path, images, stored_size=24)
    images.healed = True
    found = prepared(tmp_path, images, stored_size=32)
    np.testing.assert_array_equal(found.train.picture(0), expected(images.contents[0], 32))


@pytest.mark.parametrize("record", [b"", b"[]", b'{"rows.bin": 1}'])
@pytest.mark.usefixtures("small_chunks")
def test_a_damaged_checkpoint_starts_anew(tmp_path, record):
    images = Dying(contents(40))
    with pytest.raises(Killed):
        prepared(tmp_path, images)
    images.healed = True
    (tmp_path / "cache" / ".photos-key.preparing" / "train" / "done.json").write_bytes(record)
    found = prepared(tmp_path, images)
    np.testing.assert_array_equal(found.train.picture(33), expected(images.contents[33], 32))


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_image_is_named(tmp_path, monkeypatch, store, split):
    monkeypatch.setattr(photographs, "SAMPLED", 1)
    files = contents(20)
    splits = {"train": InFiles(tmp_path / "train", files), "test": InFiles(tmp_path / "test", files)}
    splits[split].paths[16].write_bytes(first_half(files[16]))
    message = complaint(tmp_path, splits["train"], splits["test"], store=store)
    assert message.startswith(f"{splits[split].paths[16]} is damaged")


def test_a_small_disk_is_refused_with_the_arithmetic(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000))
    monkeypatch.setattr(photographs, "_gb", lambda number: f"{round(number)} B")
    images = [InMemory(contents(30)), InFiles(tmp_path / "files", contents(30))]
    needed = sum(expected(content, 32).size for content in images[0].contents)
    message = complaint(tmp_path, images[1])
    assert f"--data.store pixels needs about {needed} B in" in message
    assert "20000 B are free: choose another disk by --data.cache-dir, or --data.store encoded" in message
    assert f"needs about {sum(map(len, images[0].contents))} B" in complaint(tmp_path, images[0], store="encoded")
    prepared(tmp_path, images[1], store="encoded")  # originals that stay where they are need an index alone


def test_a_disk_that_fills_up_is_told(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = complaint(tmp_path, InMemory(contents(3)))
    assert "No space left on device" in message
    assert "--data.cache-dir" in message


def test_processes_of_a_machine_prepare_once(tmp_path):
    images = InMemory(contents(20))
    found = []
    threads = [threading.Thread(target=lambda: found.append(prepared(tmp_path, images, threads=1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({photos.fingerprint for photos in found}) == 1
    assert set(images.reads.values()) == {2}  # once for its size, by the one that prepares


# ---- choice of the store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "memory", "store"), [(1e9, 1e9, "pixels"), (1e5, 1e9, "encoded"), (1e9, 1e4, "encoded")]
)
def test_auto_takes_pixels_that_fit(tmp_path, monkeypatch, free, memory, store):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(free)))
    monkeypatch.setattr(photographs.psutil, "virtual_memory", lambda: SimpleNamespace(total=int(memory)))
    images = [InMemory(contents(20)), InMemory(contents(5))]
    chosen, reason = choose("auto", images, tmp_path / "cache" / "photos-key", 32)
    assert chosen == store
    assert reason.startswith(f"store {store}: ")
    assert "GB" in reason
    assert choose("pixels", images, tmp_path, 32) == ("pixels", "store pixels, by --data.store")


def test_auto_keeps_what_is_prepared(tmp_path, monkeypatch):
    images = InMemory(contents(10))
    prepared(tmp_path, images)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    images.reads.clear()
    assert choose("auto", [images], tmp_path / "cache" / "photos-key", 32)[0] == "pixels"
    assert not images.reads
    assert choose("auto", [images], tmp_path / "cache" / "photos-key", 33)[0] == "encoded"


def test_the_store_is_sealed(tmp_path):
    found = prepared(tmp_path, InMemory(contents(3)))
    meta = json.loads((found.train.folder.parent / "meta.json").read_text())
    seal = meta.pop("sha256")
    assert seal == hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("store", STORES)
def test_photographs_that_are_turned_are_told_once(tmp_path, caplog, store):
    files = [encoded(40, 30), encoded(40, 30, orientation=8), encoded(40, 30, orientation=2)]
    prepared(tmp_path, InMemory(files), store=store, stored_size=32 if store == "pixels" else None)
    assert [message for message in caplog.messages if "EXIF" in message] == [
        "train: 2 of 3 images are turned or mirrored by their EXIF orientation, which version 0.1 left as stored"
    ]
