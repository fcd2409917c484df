"""Named data sets as uint8 arrays in memory-mapped files.

A data set is decoded once per machine into a cache whose files carry their own SHA-256. Everything here happens before
a process group exists; this module knows nothing about processes beyond a file lock.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import logging
import math
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image

from alexnet_dist import files, seeds
from alexnet_dist.config import DataConfig, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import datasets

logger = logging.getLogger(__name__)

CIFAR10_ON_HUB = "uoft-cs/cifar10"
CACHE_FORMAT = 2  # raise it when the files below change their meaning
CONVERTIBLE_MODES = {"RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "YCbCr"}  # 8 bits a channel; deeper would be clipped
LARGEST_SIDE = 1024  # as of --data.image-size: what is larger serves no configuration
EVALUATION_SPLITS = ("test", "validation", "valid", "val")
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class HubUnreachableError(UserError):
    """The data set is neither on this machine nor to be had over the network."""


@dataclass(frozen=True)
class Split:
    """Images with their labels: `images` (N, 3, H, W) uint8, `labels` (N,) int64 in [0, number of classes)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageData:
    """A data set, ready to train on."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    """Of the training split's channels, values in [0, 1]."""
    std: tuple[float, float, float]
    fingerprint: str
    """SHA-256 over pixels, labels and class names: equal for equal data, wherever they came from."""
    flips: bool = True
    """Whether a mirrored image keeps its class."""
    fallback_for: str | None = None
    """The data set that was asked for, when this one stands in for it."""


def load(config: DataConfig) -> ImageData:
    """Return the data set that the configuration names, from the cache where it holds it.

    Raises:
        UserError: what is wrong with the data, with split and index, or how to obtain them.
    """
    try:
        data = _load_named(config.dataset, config)
    except HubUnreachableError as error:
        if config.fallback == "none":
            raise
        logger.warning(
            "%s\nTHE FALLBACK IS USED: training on %s instead of %s.", error, config.fallback, config.dataset
        )
        data = replace(_load_named(config.fallback, config), fallback_for=config.dataset)
    if config.limit:
        data = _limited(data, config.limit)
    _check_fit(data, config)
    return data


def _check_fit(data: ImageData, config: DataConfig) -> None:
    if len(data.train) < config.batch_size:
        raise UserError(
            f"{data.name} has {len(data.train)} training images, fewer than one global batch (--data.batch-size "
            f"{config.batch_size})"
        )
    height, width = data.train.images.shape[2:]
    if height != width or height > config.image_size:
        raise UserError(
            f"{data.name} has images of {width}x{height} pixels: they must be square and no larger than "
            f"--data.image-size {config.image_size}"
        )


def _load_named(name: str, config: DataConfig) -> ImageData:
    if config.revision and (name in ("digits", "synthetic") or Path(name).exists()):
        logger.warning("--data.revision is ignored: %s does not come from the Hub", name)
    if name == "digits":
        return _digits()
    if name == "synthetic":
        return _synthetic()
    cache = config.cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet_dist"
    if name == "cifar10":
        name = CIFAR10_ON_HUB
    elif _is_folder(name):
        source = Path(name).resolve()
        return _cached(cache, _folder_digest(source), source.name, lambda: _read_folder(source))
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"--data.dataset {name}: not cifar10, digits, synthetic, a folder that exists, or a Hub id (owner/name)"
        )
    key = hashlib.sha256(f"{name}@{config.revision or 'main'}".encode()).hexdigest()
    return _cached(cache, key, name, lambda: _read_hub(name, config.revision))


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # longer than a path can be
        return False


# ---- where data sets come from --------------------------------------------------------------------------------------


def _digits() -> ImageData:
    """Scikit-learn's 1,797 scanned digits, 8x8, four fifths of each class for training by a fixed permutation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the digits data set needs scikit-learn: pip install 'alexnet_dist[demo]'") from None
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None].repeat(3, axis=1)
    labels = bunch.target.astype(np.int64)
    order = seeds.generator(0, "digits").permutation(len(labels))
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        of_digit = order[labels[order] == digit]
        is_test[of_digit[: len(of_digit) // 5]] = True
    names = tuple(str(digit) for digit in range(10))
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    return replace(_assemble("digits", train, test, names), flips=False)


def _synthetic(num_classes: int = 10, size: int = 32) -> ImageData:
    """Return images whose class is a smooth colour pattern, shifted at random under noise: easy, but not trivial."""
    rng = seeds.generator(0, "synthetic")
    coarse = rng.normal(size=(num_classes, 3, 4, 4)).repeat(size // 4, axis=2).repeat(size // 4, axis=3)

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int64) % num_classes
        shifts = rng.integers(-4, 5, (count, 2))
        clean = np.stack([np.roll(coarse[k], tuple(s), (1, 2)) for k, s in zip(labels, shifts, strict=True)])
        return Split(np.clip(128 + 40 * (clean + rng.normal(size=clean.shape)), 0, 255).astype(np.uint8), labels)

    return _assemble("synthetic", split(4000), split(1000), tuple(f"pattern {k}" for k in range(num_classes)))


def _read_folder(folder: Path) -> tuple[Split, Split, tuple[str, ...]]:
    import datasets

    with _quiet(datasets), tempfile.TemporaryDirectory() as scratch:
        try:
            splits = datasets.load_dataset(str(folder), cache_dir=scratch)
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            raise UserError(
                _unusable_parquet(folder)
                or f"--data.dataset {folder}: not a data set in Hub layout (parquet files) or ImageFolder layout "
                f"(train/CLASS/*.png, test/CLASS/*.png): {_first_line(error.__cause__ or error)}"
            ) from None
        return _decode(splits, str(folder))


def _unusable_parquet(folder: Path) -> str | None:
    """Name the first parquet file that is damaged or empty: the errors of `datasets` do not."""
    import pyarrow.parquet

    for path in sorted(folder.rglob("*.parquet")):
        try:
            num_rows = pyarrow.parquet.read_metadata(path).num_rows
        except (OSError, ValueError) as error:
            return f"--data.dataset {folder}: {path.relative_to(folder)} is damaged: {_first_line(error)}"
        if num_rows == 0:
            return f"--data.dataset {folder}: {path.relative_to(folder)} is empty"
    return None


def _read_hub(name: str, revision: str | None) -> tuple[Split, Split, tuple[str, ...]]:
    if not _hub_answers():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the import below: use the Hub's own cache or fail at once
    import datasets
    import huggingface_hub.errors

    http_error = getattr(huggingface_hub.errors, "HTTPError", OSError)  # httpx's is no OSError
    with _quiet(datasets):
        try:
            splits = datasets.load_dataset(name, revision=revision)
        except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise UserError(
                f"--data.dataset {name}: the Hub has no such data set or revision: {_first_line(error)}"
            ) from None
        except (OSError, http_error) as error:
            raise HubUnreachableError(
                f"--data.dataset {name}: the Hugging Face Hub cannot be reached and the data set is not cached here "
                f"({_first_line(error)}). Either connect once, name a local copy by --data.dataset FOLDER, or give "
                f"--data.fallback digits."
            ) from None
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            raise UserError(f"--data.dataset {name}: {_first_line(error.__cause__ or error)}") from None
        return _decode(splits, name)


def _hub_answers() -> bool:
    """Ask once, for five seconds: the Hub's client would retry for half a minute before it says that it is offline."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=5).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True  # any answer is an answer
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


@contextmanager
def _quiet(module: Any) -> Iterator[None]:  # noqa: ANN401 - the datasets module, imported late
    if module.are_progress_bars_disabled():
        yield
        return
    module.disable_progress_bars()
    try:
        yield
    finally:
        module.enable_progress_bars()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


# ---- decoding -------------------------------------------------------------------------------------------------------


def _decode(splits: datasets.DatasetDict, source: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Decode the training and the evaluation split; every complaint names the split and the index."""
    test_name = next((name for name in EVALUATION_SPLITS if name in splits), None)
    if "train" not in splits or test_name is None:
        raise UserError(f"{source}: needs the splits train and test, and has {', '.join(splits) or 'none'}")
    image_column, label_column = _columns(splits["train"], source)
    names = _class_names(splits["train"], label_column, f"{source}: train")
    decoded: dict[str, Split] = {}
    size: tuple[int, int] | None = None
    for name in ("train", test_name):
        split = splits[name]
        if len(split) == 0:
            raise UserError(f"{source}: the split {name} is empty")
        missing = {image_column, label_column} - set(split.column_names)
        if missing:
            raise UserError(f"{source}: the split {name} has no column {' or '.join(sorted(missing))}")
        labels = _checked_labels(split[label_column], len(names), f"{source}: {name}")
        images = _decode_images(split, image_column, size, f"{source}: {name}")
        size = (images.shape[3], images.shape[2])
        decoded[name] = Split(images, labels)
    return decoded["train"], decoded[test_name], names


def _columns(split: datasets.Dataset, source: str) -> tuple[str, str]:
    """Find the image and the label column by their types; of several labels, the one with the most classes."""
    import datasets

    images = [name for name, kind in split.features.items() if isinstance(kind, datasets.Image)]
    classes = {name: kind.num_classes for name, kind in split.features.items() if isinstance(kind, datasets.ClassLabel)}
    integers = [
        name for name in ("label", "labels") if getattr(split.features.get(name), "dtype", "").startswith("int")
    ]
    label = max(classes, key=lambda name: classes[name]) if classes else next(iter(integers), None)
    if len(images) != 1 or label is None:
        described = ", ".join(f"{name} ({kind.__class__.__name__})" for name, kind in split.features.items())
        raise UserError(f"{source}: needs one Image column and a ClassLabel column, and has {described or 'none'}")
    return images[0], label


def _class_names(split: datasets.Dataset, label_column: str, where: str) -> tuple[str, ...]:
    names = getattr(split.features[label_column], "names", None)
    if names:
        return tuple(names)
    labels = [-1 if label is None else label for label in split[label_column]]
    largest = max(labels, default=0)
    if largest >= max(len(labels), 1):
        raise UserError(
            f"{where}[{labels.index(largest)}] has label {largest} in a split of {len(labels)} images: "
            "integer labels must count the classes from 0"
        )
    return tuple(str(k) for k in range(max(largest, 0) + 1))


def _checked_labels(labels: Sequence[int | None], num_classes: int, where: str) -> Labels:
    for index, label in enumerate(labels):
        if label is None or not 0 <= label < num_classes:
            raise UserError(f"{where}[{index}] has label {label}; labels must be from 0 to {num_classes - 1}")
    return np.array(labels, dtype=np.int64)


def _decode_images(split: datasets.Dataset, column: str, size: tuple[int, int] | None, where: str) -> Images:
    """Return (N, 3, H, W) uint8; all images must have the given (width, height), or the first one's."""
    import datasets

    encoded = split.cast_column(column, datasets.Image(decode=False))
    size = size or _open(encoded[0][column], f"{where}[0]").size
    if max(size) > LARGEST_SIDE:
        raise UserError(f"{where}[0] is {size[0]}x{size[1]} pixels: at most {LARGEST_SIDE} a side are of use")
    images = np.empty((len(split), 3, size[1], size[0]), np.uint8)

    def decode(item: tuple[int, dict[str, Any] | None]) -> None:
        index, record = item
        images[index] = _pixels(record, size, f"{where}[{index}]").transpose(2, 0, 1)

    records = (record for batch in encoded.iter(batch_size=1000) for record in batch[column])
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the GIL
        for _ in pool.map(decode, enumerate(records)):
            pass
    return images


def _open(record: dict[str, Any] | None, where: str) -> Image.Image:
    """Open an encoded image and read its header only: its size is known before its pixels take memory."""
    try:
        if record is None or (record["bytes"] is None and not record["path"]):
            raise UserError(f"{where} has no image")
        content = record["bytes"] if record["bytes"] is not None else Path(record["path"]).read_bytes()
        return Image.open(io.BytesIO(content))
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - damage makes Pillow's readers raise nearly anything
        raise UserError(f"{where} is not an image that can be read: {_first_line(error)}") from None


def _pixels(record: dict[str, Any] | None, size: tuple[int, int], where: str) -> Images:
    with _open(record, where) as image:
        if image.size != size:
            raise UserError(
                f"{where} is {image.width}x{image.height} pixels, the first training image is {size[0]}x{size[1]}: "
                "all images must have one size"
            )
        if image.mode not in CONVERTIBLE_MODES:
            raise UserError(f"{where} has mode {image.mode}, which has no faithful conversion to 8-bit RGB")
        try:
            if image.format == "PNG":  # decoding ends with the last pixel, before the checksums behind it
                with _open(record, where) as copy:
                    copy.verify()
            return np.asarray(image.convert("RGB"))
        except Exception as error:  # noqa: BLE001 - as above
            raise UserError(f"{where} is damaged: {_first_line(error)}") from None


# ---- the cache ------------------------------------------------------------------------------------------------------


def _folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files: 0.1 s for CIFAR-10's 140 MB."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(files.sha256(path).encode())
    except OSError as error:
        raise UserError(f"--data.dataset {folder} cannot be read: {error}") from None
    return digest.hexdigest()


def _cached(cache: Path, key: str, name: str, read: Callable[[], tuple[Split, Split, tuple[str, ...]]]) -> ImageData:
    """Return what `read` gives, decoding it at most once per machine: the first process writes, the others wait."""
    folder = cache / f"{name.replace('/', '--')}-v{CACHE_FORMAT}-{key[:16]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            data = _load_cache(folder, name)
            if data is None:
                data = _assemble(name, *read())
                _write_cache(folder, data)
                data = _load_cache(folder, name) or data
    except OSError as error:  # without an errno where a disk fills up under numpy
        raise UserError(f"the data cache {cache} cannot be used: {error}. Choose another by --data.cache-dir") from None
    return data


def _write_cache(folder: Path, data: ImageData) -> None:
    """Write beside the final place and rename, so that a killed process leaves no half-written cache."""
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, array in _arrays(data).items():
            np.save(scratch / f"{name}.npy", array)
        meta = {
            "name": data.name,
            "class_names": data.class_names,
            "mean": data.mean,
            "std": data.std,
            "fingerprint": data.fingerprint,
        }
        meta["sha256"] = _seal(meta)
        (scratch / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        files.flush(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load_cache(folder: Path, name: str) -> ImageData | None:
    """Map the cached arrays, or return None where there are none or their hash tells that they are damaged."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        seal = meta.pop("sha256")
        train, test = (
            Split(*(np.load(folder / f"{split}_{kind}.npy", mmap_mode="r") for kind in ("images", "labels")))
            for split in ("train", "test")
        )
        data = ImageData(
            name=name,
            train=train,
            test=test,
            class_names=tuple(meta["class_names"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            fingerprint=meta["fingerprint"],
        )
        intact = seal == _seal(meta) and _fingerprint(train, test, data.class_names) == data.fingerprint
        for split in (train, test):  # a flipped bit of the header can change the byte order alone
            intact &= split.images.dtype == np.uint8 and split.labels.dtype == np.int64
    except Exception as error:  # noqa: BLE001 - whatever damage provokes, the answer is to decode again
        logger.warning("the data cache %s cannot be read (%s)", folder, _first_line(error))
        intact = False
    if not intact:
        logger.warning("the data cache %s is damaged: decoding again", folder)
        return None
    return data


def _seal(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _arrays(data: ImageData) -> dict[str, npt.NDArray[Any]]:
    return {
        "train_images": data.train.images,
        "train_labels": data.train.labels,
        "test_images": data.test.images,
        "test_labels": data.test.labels,
    }


def _assemble(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> ImageData:
    mean, std = _statistics(train.images)
    return ImageData(
        name=name,
        train=train,
        test=test,
        class_names=class_names,
        mean=mean,
        std=std,
        fingerprint=_fingerprint(train, test, class_names),
    )


def _statistics(images: Images) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return each channel's mean and standard deviation in [0, 1], exactly, from the counts of the 256 values."""
    values = np.arange(256)
    means, deviations = [], []
    for channel in range(3):
        counts = np.bincount(np.ascontiguousarray(images[:, channel]).ravel(), minlength=256)
        total, first, second = int(counts.sum()), int(counts @ values), int(counts @ values**2)
        means.append(first / total / 255)
        deviations.append(math.sqrt(total * second - first**2) / total / 255)
    red, green, blue = means
    red_std, green_std, blue_std = (deviation or 1.0 for deviation in deviations)  # a constant channel stays at 0
    return (red, green, blue), (red_std, green_std, blue_std)


def _fingerprint(train: Split, test: Split, class_names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps([class_names, train.images.shape, test.images.shape]).encode())
    for array in (train.images, train.labels, test.images, test.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _limited(data: ImageData, limit: int) -> ImageData:
    """Keep `limit` images of each split, drawn by a fixed hash: the first ones may all be of one class."""

    def subset(split: Split) -> Split:
        chosen = np.sort(seeds.generator(0, "limit").permutation(len(split))[:limit])
        return Split(split.images[chosen], split.labels[chosen])

    train, test = subset(data.train), subset(data.test)
    return replace(data, train=train, test=test, fingerprint=_fingerprint(train, test, data.class_names))
