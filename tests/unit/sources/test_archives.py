"""Zip files of class folders, and MedMNIST's arrays."""

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from class_folders import classes, listed, picture

from alexnet_dist.errors import UserError


def zipped(path, names, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for number, name in enumerate(names):
            archive.writestr(name, picture(number))
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("top", ["", "pets/"])
def test_a_zip_of_splits(tmp_path, compression, top):
    names = [top + name for name in (*classes("train", ["cat", "dog"]), *classes("val", ["cat", "dog"], 1))]
    found = listed(zipped(tmp_path / "pets.zip", [*names, "__MACOSX/train/cat/._0.png"], compression))
    assert (found.class_names, found.evaluated_on, found.train.labels.tolist()) == (("cat", "dog"), "val", [0, 0, 1, 1])
    assert [found.train.read(k) for k in range(4)] == [picture(k) for k in range(4)]
    assert found.train.where(3).endswith(f"pets.zip/{top}train/dog/1.png")


def test_a_zip_of_class_folders(tmp_path):
    found = listed(zipped(tmp_path / "a.zip", classes("", "abc", 3)))
    assert (found.class_names, len(found.train), found.test) == (("a", "b", "c"), 9, None)


def test_a_zip_whose_folders_end_in_backslashes(tmp_path):
    names = [
        name.replace("/", "\\") for name in (*classes("train", "ab"), *classes("test", "ab", 1))
    ]  # as .NET wrote them
    found = listed(zipped(tmp_path / "a.zip", names))
    assert (found.class_names, found.evaluated_on, found.test.labels.tolist()) == (("a", "b"), "test", [0, 1])
    assert [found.train.read(k) for k in range(4)] == [picture(k) for k in range(4)]


def test_many_threads_read_a_zip(tmp_path):
    images = listed(zipped(tmp_path / "a.zip", sorted(classes("train", "ab", 20)))).train
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(images.read, [*range(40)] * 5)) == [picture(k) for k in range(40)] * 5


def test_names_that_lead_outside_are_only_names(tmp_path):
    names = [*classes("train", "ab"), "../outside/1.png", "/train/a/absolute.png"]
    found = listed(zipped(tmp_path / "a.zip", names))
    assert (len(found.train), found.train.read(2)) == (5, picture(5))
    assert [path.name for path in tmp_path.rglob("*.png")] == []


def test_mistakes_of_layout_are_those_of_folders(tmp_path, refusal):
    message = refusal(zipped(tmp_path / "a.zip", [*classes("train", "ab"), "train/stray.png"]))
    assert "an image lies right in FOLDER/train" in message


def test_a_damaged_zip_is_named(tmp_path, refusal):
    path = zipped(tmp_path / "a.zip", classes("train", "ab"), zipfile.ZIP_STORED)
    content = path.read_bytes()
    images = listed(path).train
    path.write_bytes(content.replace(picture(1), picture(1)[:-1] + b"x"))
    with pytest.raises(UserError, match=r"a\.zip/train/a/1\.png cannot be read: Bad CRC-32"):
        images.read(1)
    path.write_bytes(content[:-30])
    assert "FOLDER cannot be read: File is not a zip file" in refusal(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_read(tmp_path, compression):
    images = listed(zipped(tmp_path / "a.zip", classes("train", "ab"), compression)).train
    assert [images.read(k) for k in range(4)] == [picture(k) for k in range(4)]


def test_an_encrypted_member_is_named(tmp_path):
    path = zipped(tmp_path / "a.zip", classes("train", "ab"))
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(header) + flags] |= 1  # the bit that says so, of the first member
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.zip/train/a/0\.png cannot be read: .*encrypted"):
        listed(path).train.read(0)


# ---- MedMNIST -------------------------------------------------------------------------------------------------------


def arrays(train=8, test=4, shape=(28, 28, 3), **more):
    drawn = np.random.default_rng(0)
    made = {}
    for split, count in (("train", train), ("val", test), ("test", test)):
        made[f"{split}_images"] = drawn.integers(0, 256, (count, *shape), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % 3)[:, None]
    return made | more


def saved(path, made, *, compressed=True):
    (np.savez_compressed if compressed else np.savez)(path, **made)
    return path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (28, 20)])
def test_arrays_are_read(tmp_path, compressed, shape):
    made = arrays(shape=shape)
    made["train_images"] = np.asfortranarray(made["train_images"])
    found = listed(saved(tmp_path / "path.npz", made, compressed=compressed))
    assert (found.class_names, found.evaluated_on) == (("0", "1", "2"), "test")
    np.testing.assert_array_equal(found.train.images, made["train_images"])
    np.testing.assert_array_equal(found.train.labels, made["train_labels"][:, 0])
    assert (found.train.images.dtype, found.train.labels.dtype) == (np.uint8, np.int64)
    assert "left aside: val" in found.notes[0]
    assert len(listed(tmp_path / "path.npz", eval_split="val").test) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.zeros((8, 14), np.uint8)}, "train_labels is uint8 (8, 14): one class for each image"),
        ({"train_labels": np.zeros(8, np.float32)}, "train_labels is float32"),
        ({"train_labels": np.zeros(7, np.uint8)}, "train has 8 images and 7 labels"),
        ({"train_images": np.zeros((8, 28, 28, 28), np.uint8)}, "train_images is uint8 (8, 28, 28, 28)"),
        ({"train_images": np.zeros((8, 28, 28), np.float32)}, "train_images is float32"),
        ({"train_images": np.array([b"x", None] * 4, object)}, "train_images holds Python objects"),
    ],
)
def test_arrays_that_are_refused(tmp_path, refusal, change, message):
    assert message in refusal(saved(tmp_path / "a.npz", arrays(**change)))


def test_arrays_that_are_missing(tmp_path, refusal):
    made = arrays()
    del made["test_labels"]
    assert "lacks test_labels" in refusal(saved(tmp_path / "a.npz", made))
    assert "lacks train_images, train_labels; it has x" in refusal(saved(tmp_path / "b.npz", {"x": np.zeros(3)}))


@pytest.mark.parametrize("damage", ["half", "garbage", "empty"])
def test_damaged_arrays_are_named(tmp_path, refusal, damage):
    path = saved(tmp_path / "a.npz", arrays())
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "garbage": b"x" * 1000, "empty": b""}[damage])
    assert "FOLDER cannot be read" in refusal(path)


def test_a_header_that_claims_more_than_there_is(tmp_path, refusal):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 28, 28)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("train_images", "train_labels"):
            archive.writestr(f"{name}.npy", header.getvalue())
    assert "train_images is cut off" in refusal(tmp_path / "a.npz")
