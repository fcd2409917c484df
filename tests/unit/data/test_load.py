"""Loading: what becomes an array or photographs, splits, held-out images, limits, the fallback; faults by name."""

import builtins
import errno
import os
import re
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from image_sets import (
    CAT_DOG,
    LOADING,
    as_pillow_reads,
    assert_equal_data,
    hub_folder,
    pets,
    pngs,
    random_images,
    undecodable,
)
from photos import encoded, photo_folder
from PIL import Image

from alexnet_dist.config import DataConfig
from alexnet_dist.data import Photographs, Split, decode, image_data, threads_of
from alexnet_dist.errors import UserError
from alexnet_dist.sources import HubUnreachableError

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
]


# ---- arrays ---------------------------------------------------------------------------------------------------------


def test_hub_layout_is_read_pixel_for_pixel(tmp_path, load):
    train, test = pngs(5), pngs(3, seed=1)
    folder = hub_folder(tmp_path / "pets", train=pets(train, [0, 1, 1, 0, 1]), test=pets(test, [1, 0, 0]))
    loaded = load(folder)
    for split, contents, labels in ((loaded.train, train, [0, 1, 1, 0, 1]), (loaded.test, test, [1, 0, 0])):
        assert split.images.shape == (len(contents), 3, 4, 4)
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == labels
        expected = np.stack([as_pillow_reads(content) for content in contents]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.images, expected)
    assert loaded.class_names == ("cat", "dog")
    assert loaded.name == "pets"
    assert loaded.flips
    assert loaded.fallback_for is None
    assert len(loaded.train) == 5


def test_what_datasets_itself_writes_is_read(tmp_path, load):
    images = random_images(4)
    rows = {"img": [Image.fromarray(pixels) for pixels in images], "label": ["dog", "cat", "dog", "dog"]}
    (tmp_path / "own" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        dataset = datasets.Dataset.from_dict(rows, features=CAT_DOG)
        dataset.to_parquet(tmp_path / "own" / "data" / f"{split}-00000-of-00001.parquet")
    loaded = load(tmp_path / "own")
    np.testing.assert_array_equal(loaded.train.images, images.transpose(0, 3, 1, 2))
    assert loaded.test.labels.tolist() == [1, 0, 1, 1]


def test_image_folder_is_read_pixel_for_pixel(image_folder, load):
    folder = image_folder(size=6, per_class=3, classes=("owl", "bee", "cow"))
    loaded = load(folder)
    assert loaded.class_names == ("bee", "cow", "owl")
    for name, split in (("train", loaded.train), ("test", loaded.test)):
        files = sorted((folder / name).glob("*/*.png"))
        assert split.images.shape == (9, 3, 6, 6)
        expected = np.stack([as_pillow_reads(file.read_bytes()) for file in files]).transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(split.images, expected)
        assert [loaded.class_names[label] for label in split.labels] == [file.parent.name for file in files]


def test_loading_warns_of_nothing(good, load):
    """Not even where the user has switched off the progress bars of `datasets`, as this suite does."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(good)


# ---- photographs ----------------------------------------------------------------------------------------------------


def test_images_of_several_sizes_are_photographs(tmp_path, load):
    folder = photo_folder(tmp_path / "photos")
    loaded = load(folder, image_size=64)
    assert isinstance(loaded.train, Photographs)
    assert isinstance(loaded.test, Photographs)
    assert (len(loaded.train), len(loaded.test), loaded.evaluated_on) == (12, 5, "test")
    assert (loaded.name, loaded.class_names, loaded.flips) == ("photos", ("cat", "dog"), True)
    for name, split in (("train", loaded.train), ("test", loaded.test)):
        files = sorted((folder / name).glob("*/*.jpg"))
        for index, file in enumerate(files):
            assert np.array_equal(split.picture(index), as_pillow_reads(file.read_bytes())), "none is above 256"
            assert loaded.class_names[split.labels[index]] == file.parent.name
    assert any(note.startswith("store pixels: ") for note in loaded.notes), "the choice is told with its reason"


def test_one_image_of_another_size_makes_photographs_of_all(image_folder, load):
    """The public report: one picture of 150x113 among 14,000 of 150x150."""
    folder = image_folder(size=20, per_class=6)
    assert isinstance(load(folder, image_size=64).train, Split)
    for split in ("train", "test"):
        odd = folder / split / "dog" / "3.png"
        before = odd.read_bytes()
        Image.fromarray(random_images(1, (20, 15))[0]).save(odd)
        loaded = load(folder, image_size=64)
        assert isinstance(loaded.train, Photographs)
        assert (len(loaded.train), len(loaded.test)) == (12, 12), "none is skipped"
        split_of = {"train": loaded.train, "test": loaded.test}[split]
        assert split_of.picture(9).shape == (15, 20, 3)
        odd.write_bytes(before)
    assert isinstance(load(folder, image_size=64).train, Split), "as it was"


@pytest.mark.parametrize(
    ("size", "options", "kind"),
    [
        ((20, 20), {}, Split),
        ((64, 64), {}, Split),
        ((65, 65), {}, Photographs),
        ((20, 19), {}, Photographs),
        ((20, 20), {"fit": "crop"}, Photographs),
        ((20, 20), {"store": "encoded"}, Photographs),
        ((20, 20), {"store": "pixels"}, Photographs),
        ((20, 20), {"fit": "enlarge"}, Split),
        ((20, 20), {"store": "array"}, Split),
    ],
    ids=str,
)
def test_small_squares_are_an_array_unless_something_else_is_asked_for(tmp_path, load, size, options, kind):
    folder = hub_folder(tmp_path / "set", train=pets(pngs(3, size)), test=pets(pngs(2, size)))
    for _ in range(2):  # prepared, and found again
        loaded = load(folder, image_size=64, **options)
        assert (type(loaded.train), type(loaded.test)) == (kind, kind)
        if kind is Photographs and "store" in options:
            assert loaded.train.store == options["store"]


@pytest.mark.parametrize("options", [{"fit": "enlarge"}, {"store": "array"}], ids=str)
def test_what_cannot_be_enlarged_is_refused_where_that_is_asked_for(tmp_path, complaint, options):
    folder = photo_folder(tmp_path / "photos", sides=(30, 60))
    message = complaint(folder, image_size=64, **options)
    assert re.search(r"0000\.jpg has \d+x\d+ pixels", message), message
    assert "--data.image-size 64" in message
    wide = hub_folder(tmp_path / "wide", train=pets(pngs(3, (70, 70))), test=pets(pngs(2, (70, 70))))
    assert "70x70 pixels" in complaint(wide, image_size=64, **options)
    odd = hub_folder(tmp_path / "odd", train=pets(pngs(3)), test=pets([*pngs(1), *pngs(1, (5, 4))]))
    assert "test[1] is 5x4 pixels" in complaint(odd, image_size=64, **options)


@pytest.mark.parametrize("name", ["digits", "synthetic", "npz"])
@pytest.mark.parametrize("options", [{"fit": "crop"}, {"store": "encoded"}], ids=str)
def test_arrays_are_not_cropped(tmp_path, complaint, name, options):
    if name == "npz":
        arrays = {"images": np.zeros((4, 8, 8), np.uint8), "labels": np.array([[0], [1], [0], [1]])}
        name = tmp_path / "mnist.npz"
        np.savez(name, **{f"{split}_{key}": value for split in ("train", "test") for key, value in arrays.items()})
    assert "leave --data.fit and --data.store out" in complaint(name, **options)


@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_a_second_load_reads_no_photograph(tmp_path, load, monkeypatch, store):
    folder = photo_folder(tmp_path / "photos")
    first = load(folder, image_size=64, store=store)
    for name in ("header", "decode_all"):
        monkeypatch.setattr(LOADING, name, undecodable)
    monkeypatch.setattr(decode, "header", undecodable)
    monkeypatch.setattr(decode, "pixels", undecodable)
    monkeypatch.setattr(Path, "read_bytes", undecodable)
    for _ in range(2):
        second = load(folder, image_size=64, store=store)
        assert second.fingerprint == first.fingerprint
        assert (second.statistics, second.notes, second.name) == (first.statistics, first.notes, first.name)
        assert second.train.labels.tolist() == first.train.labels.tolist()


def test_the_fingerprint_is_of_pixels_labels_store_and_decoder(tmp_path, load, monkeypatch):
    folder = photo_folder(tmp_path / "photos")
    found = [load(folder, image_size=64, store=store).fingerprint for store in ("encoded", "pixels")]
    found.append(load(folder, image_size=64, store="pixels", stored_size=70).fingerprint)
    (folder / "train/cat/0000.jpg").write_bytes(encoded(80, 90, seed=99))
    found.append(load(folder, image_size=64, store="encoded").fingerprint)
    (folder / "train/cat/0000.jpg").rename(folder / "train/dog/0000.jpg")
    found.append(load(folder, image_size=64, store="encoded").fingerprint)
    monkeypatch.setattr(LOADING.photographs, "DECODER", "another decoder")
    found.append(load(folder, image_size=64, store="encoded").fingerprint)
    assert len(set(found)) == len(found)


def test_a_change_of_the_input_size_changes_how_images_are_kept(tmp_path, load):
    folder = hub_folder(tmp_path / "set", train=pets(pngs(3, (70, 70))), test=pets(pngs(2, (70, 70))))
    for size, kind in ((64, Photographs), (70, Split), (64, Photographs), (224, Split)):
        assert type(load(folder, image_size=size).train) is kind


def test_a_changed_original_is_prepared_again(tmp_path, load):
    folder = photo_folder(tmp_path / "photos")
    before = load(folder, image_size=64, store="encoded")
    changed = encoded(90, 75, seed=7)
    (folder / "train/cat/0002.jpg").write_bytes(changed)
    after = load(folder, image_size=64, store="encoded")
    assert after.fingerprint != before.fingerprint
    assert np.array_equal(after.train.picture(1), as_pillow_reads(changed))


@pytest.mark.parametrize("damage", ["missing listing", "missing index"])
def test_a_damaged_store_is_prepared_again(tmp_path, load, damage):
    folder = photo_folder(tmp_path / "photos")
    before = load(folder, image_size=64)
    store = before.train.folder.parent
    (store / LOADING.LISTING if damage == "missing listing" else store / "train/rows.bin").unlink()
    after = load(folder, image_size=64)
    assert after.fingerprint == before.fingerprint
    assert np.array_equal(after.train.picture(3), before.train.picture(3))


def test_threads_are_this_process_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert threads_of(DataConfig()) == 12
    for ranks, threads in (("4", 3), ("5", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert threads_of(DataConfig()) == threads
    assert threads_of(DataConfig(threads=7)) == 7


# ---- splits, held-out images, limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [("validation",), ("validation", "test")])
def test_validation_stands_in_only_where_there_is_no_test_split(tmp_path, load, present):
    sizes = {"validation": 2, "test": 3}
    splits = {name: pets(pngs(sizes[name])) for name in present}
    loaded = load(hub_folder(tmp_path / "pets", train=pets(pngs(4)), **splits))
    assert (len(loaded.test), loaded.evaluated_on) == (sizes[present[-1]], present[-1])


@pytest.mark.parametrize("missing", [-1, None])
def test_a_test_split_without_labels_evaluates_nothing(tmp_path, load, missing):
    splits = {"train": pets(pngs(4)), "validation": pets(pngs(2, seed=1)), "test": pets(pngs(3), [missing] * 3)}
    for _ in range(2):
        loaded = load(hub_folder(tmp_path / "pets", **splits))
        assert (len(loaded.test), loaded.evaluated_on) == (2, "validation")
        assert any("test has no labels and is passed over" in note for note in loaded.notes), "also from the cache"


@pytest.mark.parametrize("kind", [Split, Photographs])
def test_without_evaluation_split_a_tenth_is_held_out_loudly(tmp_path, image_folder, load, caplog, kind):
    if kind is Split:
        folder = image_folder(size=4, per_class=20)
        for file in (folder / "test").glob("*/*.png"):
            file.unlink()
        for place in (folder / "test/cat", folder / "test/dog", folder / "test"):
            place.rmdir()
    else:
        folder = photo_folder(tmp_path / "photos", train=40, test=0)
    for _ in range(2):
        caplog.clear()
        loaded = load(folder, image_size=64)
        assert isinstance(loaded.train, kind)
        assert (len(loaded.train), len(loaded.test), loaded.evaluated_on) == (36, 4, "held-out")
        assert np.bincount(loaded.test.labels).tolist() == [2, 2], "a tenth of each class"
        (record,) = (record for record in caplog.records if "HELD OUT" in record.getMessage())
        assert record.levelname == "WARNING"
        assert "10 % OF ITS TRAINING IMAGES" in record.getMessage()
        assert "--data.val-fraction" in record.getMessage()
    caplog.clear()
    asked = load(folder, image_size=64, val_fraction=0.25)
    assert (len(asked.train), len(asked.test), asked.evaluated_on) == (30, 10, "held-out")
    assert not [record for record in caplog.records if "HELD OUT" in record.getMessage()], "it was asked for"


def test_fewer_images_than_a_batch(good, complaint):
    assert re.search(r"5 training images.*--data\.batch-size 6", complaint(good, batch_size=6))
    assert re.search(r"2 training images.*--data\.batch-size 3", complaint(good, batch_size=3, limit=2))


def test_a_batch_of_all_images_is_allowed(good, load):
    assert len(load(good, batch_size=5).train) == 5


def test_limit_draws_from_all_classes(image_folder, load):
    folder = image_folder(size=4, per_class=20, classes=("ant", "bee", "cow"))
    whole, few, again, fewer = load(folder), load(folder, limit=12), load(folder, limit=12), load(folder, limit=5)
    assert (whole.train.labels[:12] == 0).all(), "the first images are all of one class"
    for split, source in ((few.train, whole.train), (few.test, whole.test)):
        assert len(split) == len(split.images) == 12
        assert len(set(split.labels.tolist())) > 1
        originals = {image.tobytes(): label for image, label in zip(source.images, source.labels, strict=True)}
        assert len({image.tobytes() for image in split.images}) == 12, "each image once"
        for image, label in zip(split.images, split.labels, strict=True):
            assert originals[image.tobytes()] == label
    assert_equal_data(few, again)
    assert len({whole.fingerprint, few.fingerprint, fewer.fingerprint}) == 3
    assert few.class_names == whole.class_names


def test_held_out_images_are_of_the_training_split_and_no_longer_in_it(image_folder, load):
    folder = image_folder(size=4, per_class=20, classes=("ant", "bee", "cow"))
    whole, held = load(folder), load(folder, val_fraction=0.25)
    assert (whole.evaluated_on, held.evaluated_on) == ("test", "held-out")
    assert np.bincount(held.test.labels).tolist() == [5, 5, 5], "a quarter of each class"
    assert np.bincount(held.train.labels).tolist() == [15, 15, 15]
    originals = sorted(image.tobytes() for image in whole.train.images)
    assert sorted(image.tobytes() for image in (*held.train.images, *held.test.images)) == originals
    assert held.mean == image_data.statistics(held.train.images)[0], "statistics are those of what is trained on"
    assert held.fingerprint != whole.fingerprint
    assert_equal_data(held, load(folder, val_fraction=0.25))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_split_without_images_is_refused(image_folder, complaint, fraction):
    assert "--data.val-fraction" in complaint(image_folder(size=4, per_class=20), val_fraction=fraction)


def test_held_out_digits_stay_digits(load):
    held = load("digits", val_fraction=0.1)
    assert (held.name, held.flips) == ("digits", False)


def test_limit_beyond_the_data_keeps_all(good, load):
    assert_equal_data(load(good, limit=1000), load(good))


@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_parts_of_photographs_are_parts_and_have_fingerprints_of_their_own(tmp_path, load, store):
    folder = photo_folder(tmp_path / "photos", train=40, test=9)
    options = {"image_size": 64, "store": store}
    whole, few = load(folder, **options), load(folder, **options, limit=7)
    held = load(folder, **options, val_fraction=0.25)
    assert (len(held.train), len(held.test), held.evaluated_on) == (30, 10, "held-out")
    assert (len(few.train), len(few.test), few.evaluated_on) == (7, 7, "test")
    assert len({whole.fingerprint, held.fingerprint, few.fingerprint}) == 3
    originals = sorted(whole.train.picture(index).tobytes() for index in range(40))
    parts = (held.train, held.test)
    assert sorted(part.picture(k).tobytes() for part in parts for k in range(len(part))) == originals, "each once"
    assert set(few.train.labels.tolist()) == {0, 1}
    assert few.statistics == held.statistics == whole.statistics
    again = load(folder, **options, val_fraction=0.25)
    assert again.fingerprint == held.fingerprint
    assert [again.test.where(k) for k in range(10)] == [held.test.where(k) for k in range(10)]


# ---- damage ---------------------------------------------------------------------------------------------------------


USELESS = {
    "nothing": {},
    "text": {"notes.txt": b"nothing to see"},
    "unknown files": {"model.xyz": b"\x00\x01"},
    "loading script": {"useless.py": b"import datasets"},
    "broken card": {"README.md": b"---\nlicense: [mit\nother: }\n---\n"},
    "broken JSON": {"train.json": b"{", "test.json": b"{"},
}


@pytest.mark.parametrize("content", USELESS)
def test_a_folder_with_nothing_usable(tmp_path, complaint, content):
    folder = tmp_path / "useless"
    folder.mkdir()
    for name, text in USELESS[content].items():
        (folder / name).write_bytes(text)
    assert "FOLDER" in complaint(folder)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "zero bytes"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_corrupt_parquet_file_is_named(good, complaint, damage, split):
    file = good / "data" / f"{split}-00000-of-00001.parquet"
    content = file.read_bytes()
    damaged = {"garbage": b"PAR1" + bytes(1000) + b"????", "truncated": content[:-10], "zero bytes": b""}
    file.write_bytes(damaged[damage])
    assert file.name in complaint(good)


def test_a_flipped_bit_of_a_parquet_file_is_harmless_or_the_users_error(good, load):
    file = good / "data" / "train-00000-of-00001.parquet"
    content = file.read_bytes()
    refused = 0
    for position in range(4, len(content) - 8, len(content) // 10):
        damaged = bytearray(content)
        damaged[position] ^= 0x40
        file.write_bytes(damaged)
        try:
            assert len(load(good).train) == 5
        except UserError:
            refused += 1
    assert refused > 0
    file.write_bytes(content)
    assert len(load(good).train) == 5


@pytest.mark.parametrize("rows", ["no row group", "a row group without rows"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split_is_named(good, complaint, split, rows):
    """As `datasets` writes it, and as pyarrow does."""
    file = good / "data" / f"{split}-00000-of-00001.parquet"
    table = CAT_DOG.arrow_schema.empty_table()
    if rows == "no row group":
        pq.ParquetWriter(file, table.schema).close()
    else:
        pq.write_table(table, file)
    message = complaint(good)
    assert "empty" in message
    assert re.search(rf"split {split}\b|{split}-00000", message)


def test_an_evaluation_split_alone_trains_nothing(tmp_path, complaint):
    message = complaint(hub_folder(tmp_path / "half", test=pets(pngs(2))))
    assert "needs the splits train and test, and has test" in message


@pytest.mark.parametrize("store", ["array", "pixels", "encoded"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_picture_is_named_by_its_file(image_folder, complaint, split, store):
    folder = image_folder(size=6)
    file = folder / split / "dog" / "2.png"
    file.write_bytes(file.read_bytes()[:-30])
    message = complaint(folder, image_size=64, store=store)
    assert f"FOLDER/{split}/dog/2.png is damaged: " in message


@pytest.mark.parametrize("store", ["array", "encoded"])
def test_an_unreadable_picture_is_named_by_its_file(image_folder, complaint, monkeypatch, store):
    folder, opened = image_folder(size=6), open

    def refused(path, *arguments, **keywords):
        if str(path).endswith("dog/2.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(builtins, "open", refused)
    assert "FOLDER/train/dog/2.png cannot be read: Permission denied" in complaint(folder, image_size=64, store=store)


def test_a_revision_of_what_is_not_on_the_hub_is_told(good, load, caplog):
    for name in (good, "synthetic"):
        caplog.clear()
        load(name, revision="abc")
        assert any("--data.revision is ignored" in record.getMessage() for record in caplog.records)


# ---- the fallback ----------------------------------------------------------------------------------------------------


def test_without_network_the_ways_out_are_told(load):
    with pytest.raises(HubUnreachableError) as caught:
        load("cifar10")
    message = str(caught.value)
    assert "uoft-cs/cifar10" in message
    assert "--data.fallback digits" in message
    assert "--data.dataset FOLDER" in message
    assert "\n" not in message


def test_the_fallback_is_used_and_nobody_can_miss_it(load, caplog):
    loaded = load("cifar10", fallback="digits")
    assert loaded.name == "digits"
    assert loaded.fallback_for == "cifar10"
    assert not loaded.flips
    (record,) = (record for record in caplog.records if "FALLBACK" in record.getMessage())
    assert record.levelname == "WARNING"
    assert "digits instead of cifar10" in record.getMessage()
    assert load("digits", fallback="digits").fallback_for is None


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "{tmp}/nowhere", "~/nowhere", "a/b/c"])
def test_the_fallback_is_no_excuse_for_a_missing_folder(complaint, tmp_path, caplog, name):
    dataset = name.format(tmp=tmp_path)
    assert "a folder that exists" in complaint(dataset, fallback="digits")
    assert caplog.records == []


def test_a_folder_of_the_same_name_does_not_shadow_a_named_data_set(tmp_path, load, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10", "synthetic"):
        hub_folder(tmp_path / name, train=pets(pngs(2)), test=pets(pngs(2)))
    with pytest.raises(HubUnreachableError):
        load("cifar10")
    assert load("synthetic").train.images.shape[2:] == (32, 32)
    assert load("./cifar10").train.images.shape == (2, 3, 4, 4)


def test_a_name_that_no_path_can_have(complaint):
    assert "--data.dataset" in complaint("long" * 1000, fallback="digits")


def test_the_fallback_is_no_excuse_for_a_broken_folder(tmp_path, complaint, caplog):
    folder = hub_folder(tmp_path / "broken", train=pets([*pngs(1), b"broken"]), test=pets(pngs(1)))
    assert "train[1]" in complaint(folder, fallback="digits")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "file"):
        assert "FOLDER" in complaint(tmp_path / name, fallback="digits")
    assert not [record for record in caplog.records if "FALLBACK" in record.getMessage()]


@pytest.mark.parametrize(
    "error",
    [
        datasets.exceptions.DatasetNotFoundError("Dataset 'some/set' doesn't exist on the Hub"),
        datasets.exceptions.DataFilesNotFoundError("No (supported) data files found in some/set"),
        datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"),
        datasets.exceptions.NonMatchingSplitsSizesError("[{'expected': 2, 'recorded': 1}]"),
        RuntimeError("Dataset scripts are no longer supported, but found set.py"),
        ValueError("Config name is missing."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_fallback_is_no_excuse_for_what_the_hub_answers(complaint, caplog, monkeypatch, error):
    def answer(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", answer)
    assert "--data.dataset FOLDER" in complaint("some/set", fallback="digits")
    assert not [record for record in caplog.records if "FALLBACK" in record.getMessage()]


@pytest.mark.skipif("ALEXNET_DIST_TEST_CIFAR10" not in os.environ, reason="names no folder with the real CIFAR-10")
def test_real_cifar10(load, monkeypatch):
    folder = os.environ["ALEXNET_DIST_TEST_CIFAR10"]
    loaded = load(folder)
    for split, count in ((loaded.train, 50_000), (loaded.test, 10_000)):
        assert split.images.shape == (count, 3, 32, 32)
        assert np.bincount(split.labels).tolist() == [count // 10] * 10
    assert len(loaded.class_names) == 10
    # as widely published for the original; of copies compressed as JPEG, too
    np.testing.assert_allclose(loaded.mean, (0.4914, 0.4822, 0.4465), atol=3e-3)
    np.testing.assert_allclose(loaded.std, (0.2470, 0.2435, 0.2616), atol=3e-3)
    rows = pq.read_table(next(Path(folder).rglob("train-*.parquet"))).column("img")
    for index in range(0, 50_000, 997):
        pixels = as_pillow_reads(rows[index]["bytes"].as_py())
        np.testing.assert_array_equal(loaded.train.images[index].transpose(1, 2, 0), pixels)
    monkeypatch.setattr(LOADING, "decode_all", undecodable)
    assert load(folder).fingerprint == loaded.fingerprint


@pytest.mark.parametrize("side", [4, 300])
def test_parquet_files_are_copied_once(tmp_path, load, side):
    """`datasets` makes a copy of its own on the way, which would stay."""
    folder = hub_folder(tmp_path / "pets", train=pets(pngs(2, (side, side))), test=pets(pngs(2, (side, side))))
    first = load(folder)
    assert [path for path in (tmp_path / "cache/arrow").rglob("*") if path.is_file()] == []
    assert load(folder).fingerprint == first.fingerprint
    assert load(folder).train.picture(1).shape[0] == min(side, 256)
