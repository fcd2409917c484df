"""Photographs of any size, prepared once a machine: an index over encoded originals, or over pixels in one file.

A split lies in a folder: `rows.bin` is the index, `places.bin` holds the paths of the originals, `sha256.bin` the
SHA-256 of each image as read and as stored, and `contents.bin` the pixels, or the originals that cannot be read where
they lie. All files are appended to and memory-mapped, so that neither preparing nor reading takes memory by the image.
"""

import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import psutil
from filelock import FileLock
from tqdm import tqdm

from alexnet_dist import atomic_files, rng
from alexnet_dist.architecture import Channels
from alexnet_dist.data import crops, decode
from alexnet_dist.data.decode import DECODER, Header
from alexnet_dist.data.image_data import STATISTICS_IMAGES, Images, Labels, Statistics
from alexnet_dist.errors import UserError, first_line
from alexnet_dist.sources.listing import EncodedImages, Extents

logger = logging.getLogger(__name__)

Store = Literal["pixels", "encoded"]
T = TypeVar("T")

FORMAT = 1  # version of the files
ROWS, PLACES, HASHES, CONTENTS = FILES = ("rows.bin", "places.bin", "sha256.bin", "contents.bin")
META, REQUEST, DONE = "meta.json", "request.json", "done.json"
CHUNK = 2000  # images between two checkpoints of a preparation: seconds of work, 400 MB of pixels
SAMPLED = 1000  # headers from which the size of a store is estimated, to some percent
ROW = np.dtype(
    {
        "names": ["offset", "place", "label", "length", "height", "width", "orientation", "is_jpeg"],
        "formats": ["<i8", "<i8", "<i8", "<u4", "<i4", "<i4", "u1", "?"],
    },
    align=True,
)
"""A row of the index, 40 bytes: where an image's bytes and its path begin, label, length in bytes, size as stored in
pixels, EXIF orientation that is still to be applied, whether simplejpeg may decode it."""


class Photographs:
    """A split on disk: images of any size, with labels. Any thread may call its methods.

    Args:
        folder: of the split's files.
        store: what `contents.bin` holds.
        stored_size: short side of stored pixels that were larger; None for `encoded`.
        rows: (N,) of dtype `ROW`, the chosen part of the index; None for all of it, memory-mapped.
    """

    def __init__(
        self, folder: Path, store: Store, stored_size: int | None, rows: npt.NDArray[Any] | None = None
    ) -> None:
        self.folder = folder
        self.store = store
        self.stored_size = stored_size
        self.rows = np.asarray(np.memmap(folder / ROWS, ROW, mode="r")) if rows is None else rows
        with (folder / PLACES).open("rb") as file:
            self._places = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._contents = str(folder / CONTENTS)
        self._pixels = np.asarray(np.memmap(self._contents, np.uint8, mode="r")) if store == "pixels" else None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Labels:
        """(N,) int64 in [0, number of classes), memory-mapped."""
        return self.rows["label"]

    @property
    def heights(self) -> npt.NDArray[np.int32]:
        """(N,) int32, of the pictures that `picture` returns, memory-mapped."""
        return self.rows["height"]

    @property
    def widths(self) -> npt.NDArray[np.int32]:
        """(N,) int32, of the pictures that `picture` returns, memory-mapped."""
        return self.rows["width"]

    def take(self, chosen: npt.NDArray[Any]) -> "Photographs":
        """Return the images at these positions, (K,) integers, or (N,) bool: rows are copied, contents are not."""
        return Photographs(self.folder, self.store, self.stored_size, self.rows[chosen])

    def where(self, index: int) -> str:
        """Return the place of an image for error messages: its file's path, or `train[4] of FILE.parquet`."""
        return self._place(self.rows["place"].item(index))[1]

    def picture(self, index: int, box: list[int] | None = None) -> Images:
        """Return an image's pixels, (H, W, 3) uint8, upright; read-only ones of the memory map for `pixels`.

        Args:
            index: of the image.
            box: top, left, height and width of the part that is asked for; None for all.

        Raises:
            UserError: the original cannot be read, or is not what was prepared.
        """
        offset, place, _, length, height, width, orientation, is_jpeg = self.rows[index].tolist()
        if self._pixels is not None:
            picture = self._pixels[offset : offset + length].reshape(height, width, 3)
        else:
            content, where = self._read(offset, length, place)
            head = Header(height, width, orientation, is_jpeg)
            if box is not None and (found := decode.region(content, head, box)) is not None:
                return found
            picture = decode.pixels(content, where, head)
            if picture.shape != (height, width, 3):
                raise UserError(f"{where} has another size than when it was prepared: prepare it again, or restore it")
        top, left, height, width = box or (0, 0, height, width)
        return picture[top : top + height, left : left + width]

    def sha256(self, index: int) -> bytes:
        """Return the SHA-256 of an image's bytes as stored."""
        offset, place, _, length, *_ = self.rows[index].tolist()
        if self._pixels is not None:
            return hashlib.sha256(self._pixels[offset : offset + length].data).digest()
        return hashlib.sha256(self._read(offset, length, place)[0]).digest()

    def _read(self, offset: int, length: int, place: int) -> tuple[bytes, str]:
        """Return an original's bytes, from its own file or from `contents.bin`, and its place for error messages."""
        path, where = self._place(place)
        try:
            file = os.open(path or self._contents, os.O_RDONLY)  # a file object costs 30 microseconds more
            try:
                content = os.pread(file, length, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error.strerror}") from None
        if len(content) < length:
            raise UserError(f"{where} is shorter than when it was prepared: prepare it again, or restore it")
        return content, where

    def _place(self, start: int) -> tuple[str, str]:
        """Return an original's path, empty if its bytes are in `contents.bin`, and its place for error messages."""
        middle = self._places.find(b"\0", start)
        path, where = self._places[start:middle], self._places[middle + 1 : self._places.find(b"\0", middle + 1)]
        return os.fsdecode(path), where.decode() or os.fsdecode(path)


@dataclass(frozen=True)
class PhotoSet:
    """Prepared splits, with what was computed from them."""

    train: Photographs
    test: Photographs | None
    """None where the source has no evaluation split."""
    class_names: tuple[str, ...]
    statistics: Statistics
    """Over the pixels of at most 5,000 training images."""
    fingerprint: str
    """SHA-256 over class names, labels, each image's SHA-256, store, stored size and decoder."""


def prepare(
    train: EncodedImages,
    test: EncodedImages | None,
    class_names: Sequence[str],
    folder: Path,
    *,
    store: Store,
    stored_size: int | None,
    threads: int,
    verify: bool = False,
) -> PhotoSet:
    """Return the prepared store in a folder, after preparing it if there is none, or one of another kind.

    At most one process of a machine prepares; the others wait for it, however long. A preparation that was killed
    goes on from its last checkpoint. Every rank calls this, before a process group exists.

    Args:
        train: training split.
        test: evaluation split, if there is one.
        class_names: of the labels.
        folder: of the store; its name stands for what identifies the originals, such as `Listing.key`.
        store: kind of the store.
        stored_size: short side to which larger images are resized; `encoded` ignores it.
        threads: that decode.
        verify: compare all contents with their recorded SHA-256.

    Raises:
        UserError: an image is damaged, the disk is too small, or contents differ from what was prepared.
    """
    splits = {"train": train} if test is None else {"train": train, "test": test}
    request: dict[str, Any] = {
        "format": FORMAT,
        "store": store,
        "stored_size": stored_size if store == "pixels" else None,
    }
    request |= {"class_names": list(class_names), "counts": [len(images) for images in splits.values()]}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            found = open_store(folder, verify=verify, threads=threads) if _request_of(folder) == request else None
            if found is None:
                _prepare(splits, request, folder, threads)
                found = open_store(folder)
    except OSError as error:
        fault = f"the data cache {folder.parent} cannot be used: {error}"
        raise UserError(f"{fault}. Choose another by --data.cache-dir") from None
    assert found is not None, "unreadable as soon as it was written"
    return found


def open_store(folder: Path, *, verify: bool = False, threads: int = 1) -> PhotoSet | None:
    """Return the prepared store in a folder, without reading an image; None if there is none or its files are damaged.

    Args:
        folder: of the store.
        verify: compare all contents with their recorded SHA-256.
        threads: that do so.

    Raises:
        UserError: contents differ; the message names the image.
    """
    if not (folder / META).is_file():
        return None
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        seal = meta.pop("sha256")
        fault = None if seal == _seal(meta) and meta["files"] == _sizes(folder) else "sizes or SHA-256 differ"
        splits = {name: Photographs(folder / name, meta["store"], meta["stored_size"]) for name in meta["index"]}
        if any(atomic_files.sha256(folder / name / ROWS) != digest for name, digest in meta["index"].items()):
            fault = "the SHA-256 of an index differs"
    except Exception as error:  # noqa: BLE001 - damage makes JSON's and NumPy's readers raise nearly anything
        fault = first_line(error)
    if fault:
        logger.warning("the prepared images in %s are damaged: preparing again (%s)", folder, fault)
        return None
    if verify:
        for photos in splits.values():
            _verify(photos, threads)
    red, green, blue = map(_channels, meta["covariance"])
    return PhotoSet(
        train=splits["train"],
        test=splits.get("test"),
        class_names=tuple(meta["class_names"]),
        statistics=Statistics(_channels(meta["mean"]), _channels(meta["std"]), (red, green, blue)),
        fingerprint=_fingerprint(meta),
    )


def choose(
    store: Literal["auto", "pixels", "encoded"], splits: Sequence[EncodedImages], folder: Path, stored_size: int
) -> tuple[Store, str]:
    """Return the kind of store and a sentence that says why.

    For `auto`, what is prepared already in the folder is kept; otherwise it is `pixels` if they fit into half of the
    free disk and into memory, from which every epoch but the first reads them.

    Args:
        store: as asked for.
        splits: whose size is estimated from `SAMPLED` headers of each.
        folder: of the store, which need not exist.
        stored_size: short side of stored pixels that were larger.
    """
    if store != "auto":
        return store, f"store {store}, by --data.store"
    for place in (folder, _work_folder(folder)):
        if (begun := _request_of(place)) and begun["stored_size"] in (None, stored_size):
            return begun["store"], f"store {begun['store']}: prepared before"
    needed = sum(_stored_bytes(images, stored_size, threads=os.cpu_count() or 1) for images in splits)
    free, memory = _free_bytes(folder), psutil.virtual_memory().total
    room = f"half of the free disk ({_gb(free / 2)}) and memory ({_gb(memory)})"
    if needed <= min(free / 2, memory):
        return "pixels", f"store pixels: {_gb(needed)} fit into {room}"
    return "encoded", f"store encoded: the {_gb(needed)} of pixels do not fit into both {room}"


def statistics(photos: Photographs, threads: int) -> Statistics:
    """Return the statistics of the pixels as stored.

    All pixels of at most `STATISTICS_IMAGES` images, drawn by a fixed permutation, weigh alike; sums are exact.
    """
    chosen = rng.generator(0, "statistics").permutation(len(photos))[:STATISTICS_IMAGES].tolist()
    count, first, second = 0, np.zeros(3), np.zeros((3, 3))

    def sums(index: int) -> tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        values = photos.picture(index).reshape(-1, 3).astype(np.float64)
        return len(values), values.sum(axis=0), values.T @ values

    for its_count, its_first, its_second in _in_order(sums, chosen, threads):
        count, first, second = count + its_count, first + its_first, second + its_second  # integers below 2**53
    mean = first / count
    covariance = (second / count - np.outer(mean, mean)) / 255**2
    std = np.sqrt(covariance.diagonal().clip(0))
    std[std == 0] = 1
    red, green, blue = map(_channels, covariance)
    return Statistics(_channels(mean / 255), _channels(std), (red, green, blue))


def _channels(values: Iterable[float]) -> Channels:
    """Return three numbers, of red, green and blue."""
    red, green, blue = map(float, values)
    return red, green, blue


# ---- preparing ------------------------------------------------------------------------------------------------------


class _Prepared(NamedTuple):
    """An image that was read and decoded, as it goes into the files of a split."""

    row: tuple[int, int, int, int, int, int, int, bool]
    """As `ROW`; place is 0, and so is offset where the bytes go into `contents.bin`."""
    place: bytes
    """Path and description, each with a final 0."""
    hashes: bytes
    """SHA-256 as read, and as stored."""
    content: bytes
    """For `contents.bin`."""
    is_turned: bool
    """Whether its EXIF orientation turned or mirrored it."""


class _Writer(ExitStack):
    """Files of a split that is being prepared: they are appended to, from the last checkpoint on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._done = folder / DONE
        self.sizes: dict[str, int] = dict.fromkeys(FILES, 0)
        recorded = _read_json(self._done)
        if recorded.keys() == self.sizes.keys() and all(
            (folder / name).stat().st_size >= recorded[name] for name in FILES
        ):
            self.sizes = recorded
        self._files = {name: self.enter_context((folder / name).open("ab")) for name in FILES}
        for name, file in self._files.items():
            file.truncate(self.sizes[name])

    @property
    def count(self) -> int:
        """Number of images written."""
        return self.sizes[ROWS] // ROW.itemsize

    def append(self, image: _Prepared) -> None:
        """Write an image into the files."""
        row = np.array(image.row, ROW)
        row["place"] = self.sizes[PLACES]
        row["offset"] += self.sizes[CONTENTS] if image.content else 0
        for name, content in zip(FILES, (row.tobytes(), image.place, image.hashes, image.content), strict=True):
            self._files[name].write(content)
            self.sizes[name] += len(content)

    def checkpoint(self) -> None:
        """Have the disk hold all files, then record their sizes: what follows is cut off after a kill."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        atomic_files.write_text(self._done, json.dumps(self.sizes))


def _prepare(splits: dict[str, EncodedImages], request: dict[str, Any], folder: Path, threads: int) -> None:
    """Prepare a store in a folder beside the final one and rename that: a killed process leaves no partial store."""
    work = _work_folder(folder)
    if _request_of(work) != request:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        atomic_files.write_text(work / REQUEST, json.dumps(request))
    _check_space(splits.values(), request, work, threads)
    content = hashlib.sha256()
    for name, images in splits.items():
        _prepare_split(images, work / name, request, threads)
        content.update(np.memmap(work / name / ROWS, ROW, mode="r")["label"].tobytes())
        content.update(np.memmap(work / name / HASHES, "V32", mode="r")[::2].tobytes())
    mean, std, covariance = statistics(Photographs(work / "train", request["store"], request["stored_size"]), threads)
    meta = request | {"mean": mean, "std": std, "covariance": covariance, "content": content.hexdigest()}
    meta |= {"decoder": DECODER, "index": {name: atomic_files.sha256(work / name / ROWS) for name in splits}}
    meta |= {"files": _sizes(work)}
    atomic_files.write_text(work / META, json.dumps(meta | {"sha256": _seal(meta)}, indent=1))
    for name in (".", *splits):
        atomic_files.flush(work / name)
    shutil.rmtree(folder, ignore_errors=True)
    work.rename(folder)


def _prepare_split(images: EncodedImages, folder: Path, request: dict[str, Any], threads: int) -> None:
    """Read, hash and decode each image of a split once, and write its files, from the last checkpoint on."""
    extents = images.extents() if request["store"] == "encoded" else None
    read = partial(_prepared, images, extents, request["stored_size"])
    seconds = 0.5 if sys.stderr.isatty() else 60.0  # in a log file each update is a line
    with (
        _Writer(folder) as files,
        tqdm(
            desc=f"preparing {folder.name}", total=len(images), initial=files.count, unit="image", mininterval=seconds
        ) as bar,
    ):
        turned = 0
        for image in _in_order(read, range(files.count, len(images)), threads):
            files.append(image)
            turned += image.is_turned
            bar.update()
            if files.count % CHUNK == 0 or files.count == len(images):
                files.checkpoint()
    decode.tell_of_turned(turned, len(images), folder.name)


def _prepared(images: EncodedImages, extents: Extents | None, stored_size: int | None, index: int) -> _Prepared:
    """Return an image, read and decoded, with its pixels or bytes if they are to be copied.

    Args:
        images: of the split.
        extents: where originals lie that are not copied.
        stored_size: short side of stored pixels that were larger; None if originals are stored.
        index: of the image.

    Raises:
        UserError: the image cannot be read or is damaged.
    """
    content, where, label = images.read(index), images.where(index), int(images.labels[index])
    head = decode.header(content, where)
    picture = decode.pixels(content, where, head)
    is_turned, source = head.orientation > 1, hashlib.sha256(content).digest()
    path, offset, length, stored = "", 0, len(content), content
    if stored_size is not None:
        stored = crops.shrunk(picture, stored_size).tobytes()
        head = Header(*crops.shrunk_size(picture.shape, stored_size), orientation=1, is_jpeg=False)
        length = len(stored)
    elif extents is not None:
        path, offset, stored = extents.files[extents.file[index]], int(extents.offset[index]), b""
    if length >= 2**32:
        raise UserError(f"{where} has {_gb(length)}: images of less than 4 GB can be prepared")
    place = os.fsencode(path) + b"\0" + (b"" if where == path else where.encode()) + b"\0"
    hashes = source + (hashlib.sha256(stored).digest() if stored_size is not None else source)
    return _Prepared((offset, 0, label, length, *head), place, hashes, stored, is_turned)


def _in_order(function: Callable[[int], T], indices: Iterable[int], threads: int) -> Iterator[T]:
    """Return the results for all indices in their order, computed in threads; few wait to be taken at a time."""
    running: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in indices:
                running.append(pool.submit(function, index))
                if len(running) > 8 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _verify(photos: Photographs, threads: int) -> None:
    """Check each image's SHA-256 as stored.

    Raises:
        UserError: it differs.
    """
    recorded = np.memmap(photos.folder / HASHES, "V32", mode="r")[1::2]
    for index, digest in enumerate(_in_order(photos.sha256, range(len(photos)), threads)):
        if digest != recorded[index].tobytes():
            remedy = f"restore it, or delete {photos.folder.parent} to prepare again"
            raise UserError(f"{photos.where(index)} is not what was prepared (its SHA-256 differs): {remedy}")


# ---- sizes ----------------------------------------------------------------------------------------------------------


def _check_space(splits: Iterable[EncodedImages], request: dict[str, Any], work: Path, threads: int) -> None:
    """Check that the disk has room for what a preparation still writes.

    Raises:
        UserError: it has not.
    """
    store, stored_size = request["store"], request["stored_size"]
    copied = [images for images in splits if store == "pixels" or images.extents() is None]
    needed = sum(_stored_bytes(images, stored_size, threads) for images in copied)
    written = sum(_sizes(work).values())
    free = _free_bytes(work)
    if needed > free + written:
        other = ", or --data.store encoded" if store == "pixels" else ""
        room = f"about {_gb(needed)} in {work.parent}, where {_gb(free + written)} are free"
        raise UserError(f"--data.store {store} needs {room}: choose another disk by --data.cache-dir{other}")


def _stored_bytes(images: EncodedImages, stored_size: int | None, threads: int) -> float:
    """Return a split's bytes of pixels, or for None of the originals; an estimate where images are many."""

    def size(index: int) -> int:
        content = images.read(index)
        if stored_size is None:
            return len(content)
        return 3 * math.prod(crops.shrunk_size(decode.header(content, images.where(index)), stored_size))

    chosen = rng.generator(0, "sizes").permutation(len(images))[:SAMPLED].tolist()
    return sum(_in_order(size, chosen, threads)) / len(chosen) * len(images)


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that a folder, which need not exist, is on."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def _gb(num_bytes: float) -> str:
    """Return a number of bytes as text, in GB."""
    return f"{num_bytes / 1e9:,.1f} GB"


# ---- files ----------------------------------------------------------------------------------------------------------


def _work_folder(folder: Path) -> Path:
    """Return the folder in which a store is prepared until it is whole."""
    return folder.with_name(f".{folder.name}.preparing")


def _request_of(folder: Path) -> dict[str, Any]:
    """Return what was asked for when a store was begun; empty if there is none."""
    return _read_json(folder / REQUEST)


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's dictionary; an empty one if the file is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of the splits below a folder, by relative path."""
    paths = (path for path in folder.glob("*/*.bin"))
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(paths)}


def _fingerprint(meta: dict[str, Any]) -> str:
    """Return the SHA-256 of what decides a store's pixels and labels; originals are decoded by today's decoder."""
    decoder = DECODER if meta["store"] == "encoded" else meta["decoder"]
    return _seal(
        {key: meta[key] for key in ("class_names", "counts", "store", "stored_size", "content")} | {"decoder": decoder}
    )


def _seal(meta: dict[str, Any]) -> str:
    """Return the SHA-256 of a dictionary as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
