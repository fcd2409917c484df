"""Layouts of class folders: splits and classes are found, and each mistake has its own message."""

import os
import shutil
import unicodedata

import datasets
import pytest
from class_folders import classes, listed, plant


def labels_of(images, names):
    """Return (class name, file name) of each image."""
    paths = (images.where(k) for k in range(len(images)))
    return [(names[label], path.rsplit("/")[-1]) for label, path in zip(images.labels, paths, strict=True)]


# ---- what loads -----------------------------------------------------------------------------------------------------


def test_splits_and_classes_are_folders(tmp_path):
    root = plant(tmp_path / "pets", *classes("train", ["dog", "cat"], 3), *classes("test", ["dog", "cat"]))
    found = listed(root)
    assert (found.name, found.class_names, found.evaluated_on, found.notes) == ("pets", ("cat", "dog"), "test", ())
    assert (len(found.train), len(found.test)) == (6, 4)
    assert labels_of(found.train, found.class_names) == [(c, f"{k}.png") for c in ("cat", "dog") for k in range(3)]
    assert found.train.read(3) == (root / "train/dog/0.png").read_bytes()
    assert found.train.labels.tolist() == [0, 0, 0, 1, 1, 1]


ORDERS = {
    "eleven": [f"c{k}" for k in range(11)],
    "digits": [str(k) for k in range(12)],
    "case": ["Zebra", "ape", "Bee", "zoo"],
    "spaces": ["a", "a b", "a-b", "a.b", "ab", "a_b"],
    "letters": ["caf\u00e9", "cafe", "\u65e5\u672c", "zz"],
}


@pytest.mark.parametrize("names", ORDERS.values(), ids=ORDERS)
def test_order_of_classes_and_images_is_that_of_datasets(tmp_path, names):
    files = ["2.png", "10.png", "B.png", "a.png", "a 1.png", "a-1.png"]
    root = plant(tmp_path / "set", *(f"{s}/{c}/{f}" for s in ("train", "test") for c in names for f in files))
    found = listed(root)
    theirs = datasets.load_dataset(str(root), cache_dir=str(tmp_path / "cache"))
    assert list(found.class_names) == theirs["train"].features["label"].names
    for split, images in (("train", found.train), ("test", found.test)):
        assert images.labels.tolist() == theirs[split]["label"]
        column = theirs[split].data.column("image").to_pylist()
        assert [images.where(k) for k in range(len(images))] == [record["path"] for record in column]


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING"])
@pytest.mark.parametrize("test", ["val", "valid", "validation", "test", "testing", "Val"])
def test_names_of_splits(tmp_path, train, test):
    found = listed(plant(tmp_path / "set", *classes(train, "ab"), *classes(test, "ab", 1)))
    assert (len(found.train), len(found.test), found.evaluated_on) == (4, 2, test)


def test_of_test_and_validation_the_test_split_evaluates_and_the_other_is_told(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("val", "ab"), *classes("test", "ab", 3))
    found = listed(root)
    assert len(found.test) == 6
    assert "left aside: val" in found.notes[0]
    assert len(listed(root, eval_split="val").test) == 4
    assert listed(root, eval_split="val").key != found.key


def test_splits_nested_once_and_named_by_a_word(tmp_path):
    root = plant(
        tmp_path / "intel",
        *classes("seg_train/seg_train", ["sea", "forest"]),
        *classes("seg_test/seg_test", ["sea", "forest"], 1),
        "seg_pred/seg_pred/1.png",
    )
    found = listed(root)
    assert (found.class_names, len(found.train), len(found.test)) == (("forest", "sea"), 4, 2)
    assert found.evaluated_on == "seg_test"
    assert any("1 images were left aside" in note and "seg_pred" in note for note in found.notes)


def test_train_nested_in_train(tmp_path):
    root = plant(tmp_path / "set", *classes("train/train", "ab"), *classes("test/test", "ab"))
    assert listed(root).class_names == ("a", "b")


def test_class_folders_without_splits(tmp_path):
    found = listed(plant(tmp_path / "flowers", *classes("", ["rose", "tulip"], 5)))
    assert (len(found.train), found.test, found.evaluated_on) == (10, None, "")
    assert "without splits" in found.notes[0]


def test_only_train(tmp_path):
    found = listed(plant(tmp_path / "set", *classes("train", "ab")))
    assert (len(found.train), found.test) == (4, None)


@pytest.mark.parametrize("name", ["train", "training", "train.v2", "eval", "test_tube", "val"])
def test_a_class_named_like_a_split(tmp_path, name):
    names = ["apple", name, "willow"]
    found = listed(plant(tmp_path / "set", *classes("train", names, 4), *classes("test", names, 4)))
    assert (len(found.train), len(found.test), found.class_names) == (12, 12, tuple(names))
    assert not {found.train.where(k) for k in range(12)} & {found.test.where(k) for k in range(12)}


@pytest.mark.parametrize("name", ["train", "test", "train.v2"])
def test_a_class_named_like_a_split_without_splits(tmp_path, name):
    found = listed(plant(tmp_path / "set", *classes("", ["apple", name, "willow"], 4)))
    assert (len(found.train), found.class_names) == (12, ("apple", name, "willow"))


def test_a_split_that_is_named(tmp_path):
    root = plant(tmp_path / "set", *classes("fold1", "ab"), *classes("fold2", "ab", 1), *classes("train", "xy"))
    found = listed(root, train_split="fold1", eval_split="fold2")
    assert (found.class_names, len(found.train), len(found.test)) == (("a", "b"), 4, 2)
    assert "left aside: train" in found.notes[0]


def test_an_evaluation_split_without_class_folders_is_passed_over(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("val", "ab", 1), "test/0.png", "test/1.png")
    found = listed(root)
    assert (found.evaluated_on, len(found.test)) == ("val", 2)
    assert "the split test has no labels" in found.notes[0]


def test_a_copy_below_another_folder_is_left_aside_and_told(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("test", "ab"), *classes("backup/train", "ab"))
    found = listed(root)
    assert len(found.train) == 4
    assert any("4 images were left aside" in note and "backup/train/a" in note for note in found.notes)


def test_files_of_other_kinds_are_counted(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    plant(root, *(f"train/a/{k}.txt" for k in range(10)), "train/b/x.xml", "LICENSE", content=b"text")
    note = listed(root).notes[-1]
    assert note == "left aside, as no images: .txt (10), .xml (1), no suffix (1)"


def test_hidden_and_system_files_are_left_aside(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"), ".git/x.png", "train/a/._0.png", "__MACOSX/train/a/0.png")
    plant(root, "train/.DS_Store", "train/a/Thumbs.db", "desktop.ini", content=b"system")
    found = listed(root)
    assert (len(found.train), found.notes) == (4, ())


def test_a_path_with_brackets(tmp_path):
    assert len(listed(plant(tmp_path / "data[1]*", *classes("train", "ab"))).train) == 4


def test_a_name_that_is_not_utf8(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    os.rename(os.fsencode(root / "train/a/0.png"), os.fsencode(root) + b"/train/a/caf\xe9.png")  # noqa: PTH104 - bytes
    os.rename(os.fsencode(root / "train/b"), os.fsencode(root) + b"/train/b\xe9")  # noqa: PTH104
    found = listed(root)
    assert found.class_names == ("a", r"b\xe9")
    where = found.train.where(1)
    assert where.endswith(r"train/a/caf\xe9.png")
    assert found.train.read(1)
    where.encode()


# ---- mistakes -------------------------------------------------------------------------------------------------------


def test_images_one_level_below_their_class(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train/cat", ["images"]), *classes("train/dog", ["images"]))
    message = refusal(root)
    assert "FOLDER/train/cat lie one level too deep, in FOLDER/train/cat/images: move them up" in message


def test_one_level_too_many_around_the_splits(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("archive/train", "ab"), *classes("archive/test", "ab"))
    assert "one level down, in FOLDER/archive: give --data.dataset FOLDER/archive" in refusal(root)


def test_one_level_too_many_below_train(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train/animals", "ab"), *classes("train/plants", "cd"))
    assert "FOLDER/train/animals holds no images but folders of images (a, b), one level too many" in refusal(root)


def test_one_level_too_many_in_one_class(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train", "ab"), "train/a/more/1.png")
    assert "FOLDER/train/a holds images, and its folder FOLDER/train/a/more too" in refusal(root)


@pytest.mark.parametrize("path", ["train/stray.png", "test/stray.png"])
def test_a_picture_right_below_a_split(tmp_path, refusal, path):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("test", "ab"), path)
    split = path.split("/")[0]
    assert f"an image lies right in FOLDER/{split}, in no class folder ('stray.png')" in refusal(root)


def test_pictures_without_any_class_folder(tmp_path, refusal):
    assert "3 images lie right in FOLDER/train" in refusal(plant(tmp_path / "a", *(f"train/{k}.png" for k in "123")))
    assert "3 images lie right in FOLDER," in refusal(plant(tmp_path / "b", *(f"{k}.png" for k in "123")))


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_root_that_is_itself_a_split(tmp_path, refusal, name):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("test", "ab"))
    message = refusal(root / name)
    other = {"train": "test", "test": "train"}[name]
    assert f"{name} is one split of {root}, beside {other}: give --data.dataset {root}" in message


def test_a_root_called_train_without_other_splits_trains(tmp_path):
    assert len(listed(plant(tmp_path / "train", *classes("", "ab"))).train) == 4


def test_a_single_class(tmp_path, refusal):
    message = refusal(plant(tmp_path / "set", *classes("train", ["cat"]), *classes("test", ["cat"])))
    assert "FOLDER/train holds one class, cat: two or more are needed" in message


def test_only_an_evaluation_split(tmp_path, refusal):
    assert "needs a folder train" in refusal(plant(tmp_path / "set", *classes("test", "ab")))


def test_two_training_splits(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("training", "ab"))
    assert "train and training are both training splits: name one by --data.train-split" in refusal(root)


def test_a_split_that_does_not_exist(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("test", "ab"))
    assert "--data.eval-split tset: there is no such split, but test, train" in refusal(root, eval_split="tset")


# ---- classes that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["heic", "HEIC", "cr2"])
def test_a_class_whose_files_nothing_reads(tmp_path, refusal, suffix):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    plant(root, f"train/cow/1.{suffix}", f"train/cow/2.{suffix}", content=b"ftypheic")
    message = refusal(root)
    assert f"the class FOLDER/train/cow has 2 files, none an image that Pillow reads (.{suffix.lower()})" in message


def test_an_empty_class_is_told(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    (root / "train/cow").mkdir()
    plant(root, "train/notes/readme.txt", content=b"text")
    found = listed(root)
    assert found.class_names == ("a", "b")
    assert f"{root}/train/cow holds no image and is no class (no files)" in found.notes
    assert f"{root}/train/notes holds no image and is no class (.txt (1))" in found.notes


def test_a_class_in_the_evaluation_split_alone(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("test", ["a", "b", "cow"]))
    assert "no training images of cow, which FOLDER/test/cow holds" in refusal(root)


def test_a_class_in_the_training_split_alone_is_told(tmp_path):
    found = listed(plant(tmp_path / "set", *classes("train", "abc"), *classes("test", "ab")))
    assert found.notes == ("no evaluation images of c: 1 of 3 classes",)
    assert (found.class_names, found.test.labels.tolist()) == (("a", "b", "c"), [0, 0, 1, 1])


@pytest.mark.parametrize("train", [["Cat", "dog"], ["Cat", "cat", "dog"]])
def test_names_that_differ_by_case(tmp_path, refusal, train):
    root = plant(tmp_path / "set", *classes("train", train), *classes("test", ["cat", "dog"]))
    message = refusal(root)
    assert "Cat and cat differ by upper and lower case alone" in message
    assert "FOLDER/train/Cat" in message
    assert "FOLDER/test/cat" in message


def test_letters_may_differ_by_case(tmp_path):
    names = ["A", "B", "a", "b"]
    assert listed(plant(tmp_path / "set", *classes("train", names), *classes("test", names))).class_names == tuple(
        names
    )


def test_one_name_in_two_unicode_forms(tmp_path, refusal):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    root = plant(tmp_path / "set", *classes("train", [composed, "tea"]), *classes("test", [decomposed, "tea"]))
    message = refusal(root)
    assert r"cafe\u0301 and caf\xe9 are one name in two Unicode forms" in message


def test_one_folder_as_two_classes_by_a_link(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train", "ab"), *classes("test", "a"))
    (root / "test/b").symlink_to(root / "train/b")
    assert "FOLDER/test/b and FOLDER/train/b are the same folder, by a link" in refusal(root)


def test_an_empty_file_is_named(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    plant(root, "train/b/empty.jpg", content=b"")
    assert "FOLDER/train/b/empty.jpg is empty (0 bytes)" in refusal(root)


# ---- nothing to list ------------------------------------------------------------------------------------------------


def test_folders_without_images(tmp_path, refusal):
    assert "holds no images (no files)" in refusal(plant(tmp_path / "a", "x/.hidden"))
    assert "holds no images (.txt (1))" in refusal(plant(tmp_path / "b", "x/y.txt", content=b"text"))
    script = refusal(plant(tmp_path / "c", "c.py", content=b"import datasets"))
    assert "c.py is a loading script" in script
    assert "refs/convert/parquet" in script
    assert "archive.zip" in refusal(plant(tmp_path / "d", "archive.zip", content=b"PK"))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_in_train_only_is_named(tmp_path, refusal, name):
    root = plant(tmp_path / "set", "train/1.png", "train/2.png", *classes("test", "ab"))
    plant(root, f"train/{name}", content=b"file_name,label\n1.png,0\n")
    message = refusal(root)
    assert f"FOLDER/train/{name}" in message
    assert "train/CLASS" in message


# ---- the key --------------------------------------------------------------------------------------------------------


def test_the_key_changes_with_files_and_not_with_their_place(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    before = listed(root).key
    assert listed(root).key == before
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert listed(moved).key == before
    file = root / "train/a/0.png"
    info = file.stat()
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    touched = listed(root).key
    assert touched != before
    file.write_bytes(file.read_bytes() + b"x")
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert listed(root).key not in (before, touched)
    file.rename(root / "train/a/7.png")
    assert listed(root).key not in (before, touched)
