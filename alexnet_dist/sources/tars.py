"""WebDataset: tar files of KEY.jpg with KEY.cls or KEY.json, whose images are read in place by their offset."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alexnet_dist.errors import UserError, first_line
from alexnet_dist.sources import columns, splits
from alexnet_dist.sources.folders import File, hidden, image_suffixes, suffix
from alexnet_dist.sources.listing import EncodedImages, Extents, Labels, Listing, SourceOptions, printable

LABEL_KEYS = ("label", "cls", "class", "target")  # of a member KEY.json
LONGEST_LABEL = 1 << 20  # bytes of a .cls or .json


@dataclass
class _Shard:
    """Images of tars: their members' names, places and labels, in the order of the files."""

    names: list[str] = field(default_factory=list)
    file: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    labels: list[str | int] = field(default_factory=list)


class TarImages(EncodedImages):
    """Images within uncompressed tars.

    Args:
        members: names of the members, for error messages.
        extents: their places.
        labels: (N,) int64.
    """

    def __init__(self, members: Sequence[str], extents: Extents, labels: Labels) -> None:
        super().__init__(labels)
        self._members, self._extents = members, extents

    def read(self, index: int) -> bytes:
        """Return the bytes of a member."""
        path = self._extents.files[self._extents.file[index]]
        length = int(self._extents.length[index])
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                file.seek(int(self._extents.offset[index]))
                content = file.read(length)
        except OSError as error:
            raise UserError(f"{self.where(index)} cannot be read: {error.strerror or first_line(error)}") from None
        if len(content) < length:
            raise UserError(f"{self.where(index)} is cut off: the tar is shorter than when it was listed")
        return content

    def where(self, index: int) -> str:
        """Return `FILE.tar: MEMBER`."""
        return printable(f"{self._extents.files[self._extents.file[index]]}: {self._members[index]}")

    def extents(self) -> Extents:
        """Return the places of the images within their tars."""
        return self._extents


def list_tars(root: str, shards: Sequence[File], options: SourceOptions) -> Listing:
    """Return what tars hold; a word of a file's path, as `train`, says which split it belongs to.

    Args:
        root: the folder that they are in, absolute.
        shards: all tars, relative to it.
        options: with the names of the splits.

    Raises:
        UserError: a tar is damaged or compressed, or an image has no label.
    """
    source = f"--data.dataset {printable(root)}"
    by_split: dict[str, list[File]] = {}
    for file in sorted(shards):
        by_split.setdefault(splits.split_word(file.path) or "train", []).append(file)
    read: dict[str, _Shard] = {}

    def labelled(split: str) -> bool:
        if split not in read:
            read[split] = _read(root, by_split[split], options)
        return columns.labelled(read[split].labels)

    chosen = splits.choose(list(by_split), labelled, options, source)
    used = [chosen.train, *([chosen.test] if chosen.test else [])]
    for split in used:
        if not labelled(split):
            raise UserError(f"{source}: the tars of the split {split} hold no images with labels, KEY.cls or KEY.json")
    names, labels = columns.as_classes({split: read[split].labels for split in used}, None, source)
    images = {split: _images(root, by_split[split], read[split], labels[split]) for split in used}
    key = hashlib.sha256(repr((sorted(shards), options.choices())).encode("utf-8", "backslashreplace")).hexdigest()
    test = images[chosen.test] if chosen.test else None
    name = printable(os.path.basename(root))  # noqa: PTH119
    return Listing(name, names, images[chosen.train], test, chosen.test or "", key, chosen.notes)


def _images(root: str, files: Sequence[File], read: _Shard, labels: Labels) -> TarImages:
    """Return the images of a split's tars."""
    paths = [os.path.join(root, file.path) for file in files]  # noqa: PTH118
    where = np.array(read.file, np.int32), np.array(read.offset, np.int64), np.array(read.length, np.int64)
    return TarImages(read.names, Extents(paths, *where), labels)


def _read(root: str, files: Sequence[File], options: SourceOptions) -> _Shard:
    """Return the images and labels of tars, in the order of their members: about 30 us for each member."""
    found = _Shard()
    for number, file in enumerate(files):
        path = os.path.join(root, file.path)  # noqa: PTH118
        where = f"--data.dataset {printable(root)}: {printable(file.path)}"
        images: dict[str, tuple[str, int, int]] = {}
        labels: dict[str, str | int] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # which the archive would keep in memory
                    folder, name = os.path.split(member.name)
                    if not member.isreg() or hidden(name):
                        continue
                    stem, _, end = name.partition(".")
                    key = f"{folder}/{stem}"
                    if suffix(name) in image_suffixes():
                        images.setdefault(key, (member.name, member.offset_data, member.size))
                    elif end.lower() in ("cls", "json") and member.size <= LONGEST_LABEL:
                        content = archive.extractfile(member)
                        label = _label(content.read() if content else b"", end.lower(), options)
                        if label is not None:
                            labels[key] = label
        except (tarfile.TarError, OSError, ValueError) as error:
            raise UserError(f"{where} is no uncompressed tar or damaged: {first_line(error)}") from None
        for key, (name, offset, length) in images.items():
            found.names.append(name)
            found.file.append(number)
            found.offset.append(offset)
            found.length.append(length)
            if key not in labels and labels:
                raise UserError(f"{where}: {printable(name)} has no label: neither KEY.cls nor KEY.json")
            found.labels.append(labels.get(key, -1))
    return found


def _label(content: bytes, end: str, options: SourceOptions) -> str | int | None:
    """Return the label in a .cls or .json member, an integer where it is one; None if there is none."""
    text: object = content.decode("utf-8").strip()
    if end == "json":
        record = json.loads(content)
        keys = (options.label_column,) if options.label_column else LABEL_KEYS
        text = next((record[key] for key in keys if key in record), None) if isinstance(record, dict) else record
    if isinstance(text, str):
        return int(text) if text.lstrip("-").isdecimal() else text
    return text if isinstance(text, int) else None
