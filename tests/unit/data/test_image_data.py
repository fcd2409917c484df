"""Images in memory: limits, held-out images, statistics and fingerprints."""

import re

import numpy as np
import pytest
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from image_sets import assert_equal_data, file_content, hub_folder, pets, pngs
from PIL import Image

from alexnet_dist.data import image_data

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
]


def test_equal_pixels_have_equal_fingerprints_wherever_they_came_from(tmp_path, image_folder, load):
    folder = image_folder(size=4, per_class=2)
    splits = {}
    for split in ("train", "test"):
        files = sorted((folder / split).glob("*/*.png"))
        splits[split] = pets([file.read_bytes() for file in files], [0, 0, 1, 1])
    assert load(hub_folder(tmp_path / "hub", **splits)).fingerprint == load(folder).fingerprint

    other_label = splits | {"test": splits["test"] | {"label": [0, 0, 1, 0]}}
    other_pixel = splits | {"train": splits["train"] | {"img": [*splits["train"]["img"][:3], *pngs(1, seed=9)]}}
    other_names = Features({"img": ImageFeature(), "label": ClassLabel(names=["cat", "wolf"])})
    variants = [
        hub_folder(tmp_path / "label", **other_label),
        hub_folder(tmp_path / "pixel", **other_pixel),
        hub_folder(tmp_path / "names", other_names, **splits),
    ]
    assert len({load(variant).fingerprint for variant in [folder, *variants]}) == 4


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


def test_mean_and_std_are_those_of_the_training_pixels(tmp_path, load):
    rng = np.random.default_rng(3)
    images = np.clip(rng.normal([60, 128, 200], [10, 40, 70], (40, 5, 5, 3)), 0, 255).astype(np.uint8)
    contents = [file_content(Image.fromarray(pixels)) for pixels in images]
    loaded = load(hub_folder(tmp_path / "statistics", train=pets(contents), test=pets(pngs(2, (5, 5)))))
    values = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(loaded.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(loaded.std, values.std(axis=0), rtol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3, 4, 4), (7, 3, 7, 7), (3, 3, 5, 5)])
def test_a_constant_channel_has_a_deviation_of_one(shape):
    """Rounding must not leave 1e-16, by which another image's pixels would be divided."""
    wrong = [value for value in range(256) if image_data.statistics(np.full(shape, value, np.uint8))[1] != (1, 1, 1)]
    assert wrong == []
    images = np.zeros(shape, np.uint8)
    images[0, 1, 0, 0] = 1
    red, green, blue = image_data.statistics(images)[1]
    assert (red, blue) == (1, 1)
    assert 0 < green < 1 / 255
