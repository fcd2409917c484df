"""Images in memory: limits, held-out images, statistics and fingerprints."""

import numpy as np
import pytest
from datasets import ClassLabel, Features
from datasets import Image as ImageFeature
from image_sets import file_content, hub_folder, pets, pngs
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


@pytest.mark.parametrize(
    ("shape", "dtype", "labels"),
    [((4, 8, 8, 3), np.uint8, 4), ((4, 3, 8, 8), np.float32, 4), ((4, 3, 8, 8), np.uint8, 3)],
)
def test_arrays_in_another_layout_are_no_split(shape, dtype, labels):
    """Channels last, the mean would be that of three rows of pixels."""
    with pytest.raises(AssertionError, match=r"not \(N, 3, H, W\) uint8"):
        image_data.Split(np.zeros(shape, dtype), np.zeros(labels, np.int64))
