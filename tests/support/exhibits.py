"""A data set of a few images whose class names are awkward."""

import numpy as np

from alexnet_dist.data import image_data

NAMES = ("cat", "dog/wolf", "</script>")


def dataset(*, size=32, num_images=40):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 3, size, size), dtype=np.uint8)
    split = image_data.Split(images, np.arange(num_images) % 3)
    return image_data.assemble("some/data", split, split, NAMES)
