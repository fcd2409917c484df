"""Listing: the images of a source by split, encoded and with labels, before anything is decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet_dist.errors import UserError, first_line, printable

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What names the parts of a source that cannot be guessed; None where it is guessed."""

    cache: Path
    """Folder of the data cache: Arrow copies of local parquet files go there."""
    config: str | None = None
    """`--data.config`: the configuration of a Hub set that has several."""
    revision: str | None = None
    """`--data.revision`: git revision of a Hub set."""
    train_split: str | None = None
    """`--data.train-split`."""
    eval_split: str | None = None
    """`--data.eval-split`."""
    image_column: str | None = None
    """`--data.image-column`."""
    label_column: str | None = None
    """`--data.label-column`."""

    def choices(self) -> tuple[str | None, ...]:
        """Return all options that change what is listed: they are part of `Listing.key`."""
        return self.config, self.train_split, self.eval_split, self.image_column, self.label_column


class Extents(NamedTuple):
    """Places of encoded images within files that stay where they are: a file of a folder, a member of a tar."""

    files: Sequence[str]
    """Absolute paths; what is not UTF-8 is escaped by surrogates, as `os.fsdecode` does."""
    file: npt.NDArray[np.int32]
    """(N,) index into `files` of each image's file."""
    offset: npt.NDArray[np.int64]
    """(N,) bytes before the image in its file."""
    length: npt.NDArray[np.int64]
    """(N,) bytes of the encoded image."""


class EncodedImages(ABC):
    """Encoded images of a split (JPEG, PNG, WebP, ...) in a fixed order. Any thread may call its methods.

    Args:
        labels: (N,) int64 in [0, number of classes).
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, index: int) -> bytes:
        """Return the bytes of an encoded image.

        Raises:
            UserError: they cannot be read; the message names the file.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """Return the place of an image for error messages: its file's path, or `train[4] of FILE.parquet`."""

    def extents(self) -> Extents | None:
        """Return where the images lie, if each can be read from its file by offset; None if they must be copied."""
        return None


class StoredImages(EncodedImages):
    """Images that are files, or parts of files that are not compressed.

    Args:
        extents: their places.
        labels: (N,) int64.
        members: names of the parts, for error messages; None for whole files.
    """

    def __init__(self, extents: Extents, labels: Labels, members: Sequence[str] | None = None) -> None:
        super().__init__(labels)
        self._extents, self._members = extents, members

    def read(self, index: int) -> bytes:
        """Return the bytes of an image."""
        length = int(self._extents.length[index])
        try:
            with open(self._extents.files[self._extents.file[index]], "rb", buffering=0) as file:  # noqa: PTH123
                file.seek(int(self._extents.offset[index]))
                content = file.read(length)
        except OSError as error:
            raise UserError(f"{self.where(index)} cannot be read: {error.strerror or first_line(error)}") from None
        if len(content) < length:
            raise UserError(f"{self.where(index)} is shorter than when it was listed: restore the file, or start again")
        return content

    def where(self, index: int) -> str:
        """Return the path of a file, or `FILE.tar: MEMBER`."""
        member = f": {self._members[index]}" if self._members else ""
        return printable(self._extents.files[self._extents.file[index]] + member)

    def extents(self) -> Extents:
        """Return the places of the images."""
        return self._extents


@dataclass(frozen=True)
class ArrayImages:
    """Images of a split that are stored as pixels of one size, as MedMNIST does."""

    images: npt.NDArray[np.uint8]
    """(N, H, W) grey or (N, H, W, 3) RGB, uint8."""
    labels: Labels
    """(N,) int64 in [0, number of classes)."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Listing:
    """What a source holds: images, labels and class names; no image has been decoded."""

    name: str
    """Of the data set: a folder's name, a Hub id."""
    class_names: tuple[str, ...]
    train: EncodedImages | ArrayImages
    test: EncodedImages | ArrayImages | None
    """The evaluation split; None where the source has none with labels, and training images must be held out."""
    evaluated_on: str
    """Name of the evaluation split as the source calls it: test, validation, val, ...; empty without one."""
    key: str
    """SHA-256, hexadecimal, of what identifies the content without reading it: names, sizes and times, or Hub id and
    revision. Equal keys mean that a prepared store may be used again."""
    notes: tuple[str, ...] = ()
    """Choices that were guessed or made for the user, one sentence each, for the run card."""
