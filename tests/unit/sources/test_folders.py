"""The walk through a folder: links, faults, and images by their place."""

import os
from pathlib import Path

import numpy as np
import pytest
from class_folders import classes, listed, plant

from alexnet_dist.errors import UserError
from alexnet_dist.sources import folders


def test_links_to_classes_are_followed(tmp_path):
    root = plant(tmp_path / "set", *classes("train", ["ape", "bee"]), *classes("test", ["ape", "bee"]))
    for split in ("train", "test"):
        plant(tmp_path / "elsewhere", f"{split}/0.png")
        (root / split / "cow").symlink_to(tmp_path / "elsewhere" / split)
    found = listed(root)
    assert found.class_names == ("ape", "bee", "cow")
    assert found.train.labels.tolist() == [0, 0, 1, 1, 2]
    assert found.test.labels.tolist() == [0, 0, 1, 1, 2]


def test_links_to_files_and_to_the_root_are_followed(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    outside = plant(tmp_path, "outside.png") / "outside.png"
    (root / "train/a/9.png").symlink_to(outside)
    (tmp_path / "link").symlink_to(root)
    found = listed(tmp_path / "link")
    assert (len(found.train), found.train.read(2)) == (5, outside.read_bytes())


def test_links_in_a_circle_end(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    (root / "train/a/round").symlink_to(root)
    (root / "again").symlink_to(root)
    (root / "x.png").symlink_to("x.png")
    (root / "x.png").unlink()
    assert len(listed(root).train) == 4


def test_a_link_to_nothing_is_named(tmp_path, refusal):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    (root / "train/a/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert "FOLDER/train/a/gone.jpg is a link to a file that does not exist" in refusal(root)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, refusal, monkeypatch):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("train/b"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "FOLDER/train/b cannot be read: Permission denied" in refusal(root)


def test_a_file_that_has_gone_is_named(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    found = listed(root)
    (root / "train/a/1.png").unlink()
    with pytest.raises(UserError, match=r"train/a/1\.png cannot be read: No such file"):
        found.train.read(1)


def test_extents_are_whole_files(tmp_path):
    root = plant(tmp_path / "set", *classes("train", "ab"))
    found = listed(root)
    places = found.train.extents()
    for k in range(len(found.train)):
        content = Path(places.files[places.file[k]]).read_bytes()
        assert content[places.offset[k] :][: places.length[k]] == found.train.read(k)
    assert (places.file.dtype, places.offset.dtype, places.length.dtype) == (np.int32, np.int64, np.int64)
    assert all(map(os.path.isabs, places.files))


def test_paths_are_a_sequence():
    paths = folders.FilePaths([("/a", ["x.png", "caf\udce9.png"]), ("/b", []), ("/c", ["y.png"])])
    expected = ["/a/x.png", "/a/caf\udce9.png", "/c/y.png"]
    assert list(paths) == expected
    assert (paths[-1], len(paths)) == (expected[-1], 3)
    with pytest.raises(IndexError):
        paths[3]


@pytest.mark.parametrize("suffix", "jpg jpeg JPG png webp bmp gif tif tiff ppm pgm jfif".split())
def test_suffixes_of_images(tmp_path, suffix):
    root = plant(tmp_path / "set", f"train/a/1.{suffix}", f"train/b/1.{suffix}")
    assert len(listed(root).train) == 2


@pytest.mark.parametrize("suffix", [".eps", ".wmf", ".mpg", ".h5", ".heic", ".txt", ""])
def test_suffixes_of_other_files(suffix):
    assert suffix not in folders.image_suffixes()


def test_paths_take_little_memory():
    names = [f"n01440764_{k}.JPEG" for k in range(10_000)]
    paths = folders.FilePaths([(f"/data/imagenet/train/n{k}", names) for k in range(10)])
    held = len(paths._names) + paths._ends.nbytes + paths._folder.nbytes
    assert held / len(paths) < 40
