"""Photographs for tests: pictures with structure at all scales, as files of any format, and listings of them."""

import threading
from collections import Counter

import numpy as np
from image_sets import file_content
from PIL import ExifTags, Image

from alexnet_dist.errors import printable
from alexnet_dist.sources.listing import EncodedImages, Extents


def picture(height, width, seed=0):
    """Return (height, width, 3) uint8: waves and noise, so that resizing and chroma upsampling have something to do."""
    drawn = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    waves = np.stack([np.sin(row / 3 + column / 7), np.cos(column / 5 - row / 11), np.sin(row * column / 97)], axis=2)
    return np.clip(128 + 90 * waves + drawn.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def encoded(height=40, width=30, kind="JPEG", *, seed=0, orientation=None, mode="RGB", **options):
    """Return the content of an image file."""
    if orientation is not None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    return file_content(Image.fromarray(picture(height, width, seed)).convert(mode), kind, **options)


class InMemory(EncodedImages):
    """Encoded images in memory that count how often each is read."""

    def __init__(self, contents, labels=None, name="train"):
        super().__init__(np.array([k % 2 for k in range(len(contents))] if labels is None else labels, np.int64))
        self.contents, self.name, self.reads, self.lock = contents, name, Counter(), threading.Lock()

    def read(self, index):
        with self.lock:
            self.reads[index] += 1
        return self.contents[index]

    def where(self, index):
        return f"{self.name}[{index}] of FILE.parquet"


class InFiles(InMemory):
    """Encoded images as files of their own in a folder, in class folders `a` and `b`."""

    def __init__(self, folder, contents, labels=None):
        super().__init__(contents, labels)
        self.paths = [folder / "ab"[label % 2] / f"{k}.img" for k, label in enumerate(self.labels.tolist())]
        for path, content in zip(self.paths, contents, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def read(self, index):
        super().read(index)
        return self.paths[index].read_bytes()

    def where(self, index):
        return printable(str(self.paths[index]))

    def extents(self):
        lengths = np.array([path.stat().st_size for path in self.paths])
        return Extents(
            [str(path) for path in self.paths],
            np.arange(len(self), dtype=np.int32),
            np.zeros(len(self), np.int64),
            lengths.astype(np.int64),
        )


class InOneFile(InFiles):
    """Encoded images within one file, with bytes between them, as in a tar."""

    def __init__(self, path, contents, labels=None):
        InMemory.__init__(self, contents, labels)
        self.path, self.offsets = path, []
        with path.open("wb") as file:
            for content in contents:
                file.write(b"between")
                self.offsets.append(file.tell())
                file.write(content)

    def read(self, index):
        return InMemory.read(self, index)

    def where(self, index):
        return f"{self.path}: member {index}"

    def extents(self):
        lengths = np.array([len(content) for content in self.contents], np.int64)
        return Extents([str(self.path)], np.zeros(len(self), np.int32), np.array(self.offsets, np.int64), lengths)


def photo_folder(folder, *, train=12, test=5, classes=("cat", "dog"), sides=(70, 120), seed=0):
    """Write JPEGs of random sizes in class folders and return their folder; a split of 0 images is left out."""
    drawn = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for k in range(count):
            path = folder / split / classes[k % len(classes)] / f"{k:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            height, width = drawn.integers(*sides, 2).tolist()
            path.write_bytes(encoded(height, width, seed=int(drawn.integers(1 << 30))))
    return folder
