"""WebDataset tars: members that belong together, splits by name, places within the files."""

import json
import tarfile
from pathlib import Path

import pytest
from class_folders import listed, picture
from stand_ins import add

from alexnet_dist.errors import UserError


def shard(path, labels, suffix="jpg", kind="cls", first=0):
    """Write a tar with a picture for each label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for k, label in enumerate(labels, first):
            if kind == "json":
                add(archive, f"{k:05d}.json", json.dumps({"label": label, "width": 6}).encode())
            else:
                add(archive, f"{k:05d}.cls", str(label).encode())
            add(archive, f"{k:05d}.{suffix}", picture(k, kind="WEBP" if suffix == "webp" else "PNG"))
    return path


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp"])
@pytest.mark.parametrize("kind", ["cls", "json"])
def test_images_and_labels(tmp_path, suffix, kind):
    shard(tmp_path / "set/train-0.tar", [2, 0], suffix, kind)
    shard(tmp_path / "set/train-1.tar", [1, 2], suffix, kind, first=2)
    shard(tmp_path / "set/val-0.tar", [0, 1, 2], suffix, kind)
    found = listed(tmp_path / "set")
    assert (found.name, found.class_names, found.evaluated_on) == ("set", ("0", "1", "2"), "val")
    assert found.train.labels.tolist() == [2, 0, 1, 2]
    assert found.test.labels.tolist() == [0, 1, 2]
    expected = [picture(k, kind="WEBP" if suffix == "webp" else "PNG") for k in range(4)]
    assert [found.train.read(k) for k in range(4)] == expected
    assert found.train.where(2).endswith(f"train-1.tar: 00002.{suffix}")


def test_extents_are_the_places_of_the_images(tmp_path):
    shard(tmp_path / "set/train/0.tar", [0, 1])
    shard(tmp_path / "set/train/1.tar", [1, 0])
    images = listed(tmp_path / "set").train
    places = images.extents()
    for k in range(4):
        content = Path(places.files[places.file[k]]).read_bytes()
        assert content[places.offset[k] :][: places.length[k]] == images.read(k)


def test_splits_by_folder_and_none(tmp_path):
    for split in ("train", "test", "validation"):
        shard(tmp_path / f"a/{split}/0.tar", [0, 1])
    found = listed(tmp_path / "a")
    assert found.evaluated_on == "test"
    assert "left aside: validation" in found.notes[0]
    assert listed(tmp_path / "a", eval_split="validation").evaluated_on == "validation"
    shard(tmp_path / "b/0.tar", ["cat", "dog"])
    found = listed(tmp_path / "b")
    assert (found.class_names, found.test) == (("cat", "dog"), None)
    assert listed(tmp_path / "b/0.tar").class_names == ("cat", "dog")


def test_long_names_and_folders_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for k, label in enumerate((1, 0)):
            folder = f"{'long/' * 40}{k}"
            add(archive, f"{folder}/image.v2.jpg", picture(k))
            add(archive, f"{folder}/image.cls", str(label).encode())
    images = listed(tmp_path / "train.tar").train
    assert images.labels.tolist() == [1, 0]
    assert images.read(1) == picture(1)


def test_labels_of_another_key_of_the_json(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for k, species in enumerate(("owl", "bee")):
            add(archive, f"{k}.png", picture(k))
            add(archive, f"{k}.json", json.dumps({"species": species}).encode())
    assert listed(tmp_path / "train.tar", label_column="species").class_names == ("bee", "owl")


def test_a_test_split_without_labels_is_passed_over(tmp_path):
    shard(tmp_path / "set/train.tar", [0, 1])
    with tarfile.open(tmp_path / "set/test.tar", "w") as archive:
        add(archive, "0.jpg", picture(0))
    found = listed(tmp_path / "set")
    assert found.test is None
    assert found.notes == ("the split test has no labels and is passed over",)


def test_an_image_without_label_is_named(tmp_path, refusal):
    path = shard(tmp_path / "train.tar", [0, 1])
    with tarfile.open(path, "a") as archive:
        add(archive, "more.jpg", picture(5))
    assert "train.tar: more.jpg has no label: neither KEY.cls nor KEY.json" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"garbage" * 200, b"\x1f\x8b" + bytes(600)])
def test_a_damaged_tar_is_named(tmp_path, refusal, content):
    shard(tmp_path / "set/train-0.tar", [0, 1])
    (tmp_path / "set/train-1.tar").write_bytes(content)
    assert "FOLDER: train-1.tar is no uncompressed tar or damaged" in refusal(tmp_path / "set")


def test_a_tar_that_is_cut_off_is_named(tmp_path, refusal):
    path = shard(tmp_path / "set/train.tar", [0, 1])
    images = listed(tmp_path / "set").train
    content = path.read_bytes()
    path.write_bytes(content[: int(images.extents().offset[1]) + 10])
    with pytest.raises(UserError, match=r"train\.tar: 00001\.jpg is shorter than when it was listed"):
        images.read(1)
    assert "train.tar" in refusal(tmp_path / "set")


def test_a_label_that_is_no_text_is_named(tmp_path, refusal):
    path = shard(tmp_path / "train.tar", [0, 1])
    with tarfile.open(path, "a") as archive:
        add(archive, "more.jpg", picture(5))
        add(archive, "more.json", b"{broken")
    assert "train.tar is no uncompressed tar or damaged" in refusal(path)


def test_tars_of_pictures_without_any_label(tmp_path, refusal):
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        add(archive, "0.jpg", picture(0))
    assert "train[0] has label -1" in refusal(tmp_path / "train.tar")


def test_the_key_changes_when_a_tar_does(tmp_path):
    shard(tmp_path / "set/train.tar", [0, 1])
    before = listed(tmp_path / "set").key
    assert listed(tmp_path / "set").key == before
    shard(tmp_path / "set/train.tar", [0, 1, 1])
    assert listed(tmp_path / "set").key != before
