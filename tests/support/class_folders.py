"""Small trees of class folders, and listings of them."""

import os
from pathlib import Path

import numpy as np
from image_sets import file_content
from PIL import Image

from alexnet_dist.sources import SourceOptions, list_images


def picture(seed, size=(6, 5), mode="RGB", kind="PNG"):
    """Return an encoded image that differs from those of other seeds."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return file_content(Image.fromarray(pixels).convert(mode), kind)


def plant(root, *paths, content=None):
    """Write a file at each path below a root: a picture by default, or this content."""
    for number, path in enumerate(paths):
        file = Path(root) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number) if content is None else content)
    return Path(root)


def classes(split, names, count=2):
    """Return paths of pictures of these classes in a split: train/cat/0.png, ..."""
    return [f"{split}/{name}/{k}.png" if split else f"{name}/{k}.png" for name in names for k in range(count)]


def listed(dataset, cache=None, **options):
    """List a data set with a cache beside it."""
    place = Path(cache) if cache else Path(str(dataset) + "-cache")
    return list_images(str(dataset), SourceOptions(cache=place, **options), os.environ)
