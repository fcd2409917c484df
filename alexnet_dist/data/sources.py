"""Sources of data sets: the Hugging Face Hub, folders, scikit-learn's digits and synthetic images.

Every rank loads its data set before a process group exists; by the cache, one process of a machine decodes it.
"""

import hashlib
import http.client
import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet_dist import atomic_files, rng
from alexnet_dist.config import DataConfig
from alexnet_dist.data.cache import cached
from alexnet_dist.data.decode import decode
from alexnet_dist.data.image_data import ImageData, Split, assemble, fingerprint
from alexnet_dist.errors import UserError, first_line

logger = logging.getLogger(__name__)

CIFAR10_ON_HUB = "uoft-cs/cifar10"
WITHOUT_FILES = ("digits", "synthetic")  # data sets that are computed, or part of scikit-learn
ANSWER_SECONDS = 5.0  # until a server must have answered


class HubUnreachableError(UserError):
    """Error of a data set that is not on this machine while the Hub cannot be reached."""


def load(config: DataConfig) -> ImageData:
    """Return the data set that the configuration names, decoded or from the cache. Every rank must call it.

    Raises:
        UserError: the data set cannot be had, or is faulty, or does not fit the configuration.
    """
    try:
        data = _load_named(config.dataset, config)
    except HubUnreachableError as error:
        if config.fallback == "none":
            raise
        asked, used = config.dataset, config.fallback
        logger.warning("%s\nTHE FALLBACK IS USED: training on %s instead of %s.", error, used, asked)
        data = replace(_load_named(used, config), fallback_for=asked)
    if config.val_fraction:
        data = _held_out(data, config.val_fraction)
    if config.limit:
        data = _limited(data, config.limit)
    _check_fit(data, config)
    return data


def _check_fit(data: ImageData, config: DataConfig) -> None:
    """Check that there is a global batch of images, and that they are square and no larger than the input.

    Raises:
        UserError: they are not.
    """
    if (count := len(data.train)) < config.batch_size:
        batch = f"one global batch (--data.batch-size {config.batch_size})"
        raise UserError(f"{data.name} has {count} training images, fewer than {batch}")
    height, width = data.train.images.shape[2:]
    if height != width or height > config.image_size:
        limit = f"they must be square and no larger than --data.image-size {config.image_size}"
        raise UserError(f"{data.name} has images of {width}x{height} pixels: {limit}")


def _load_named(name: str, config: DataConfig) -> ImageData:
    """Return the data set of a name: digits, synthetic, cifar10, a folder, or a Hub id."""
    if config.revision and (name in WITHOUT_FILES or is_folder(name)):
        logger.warning("--data.revision is ignored: %s does not come from the Hub", name)
    if name == "digits":
        return _digits()
    if name == "synthetic":
        return _synthetic()
    place = cache_place(config, os.environ)
    if is_folder(name):
        source = Path(name).resolve()
        return cached(place, _folder_digest(source), source.name, lambda: _read_folder(source))
    if (hub_name := hub_id(name)) is None:
        known = "cifar10, digits, synthetic, a folder that exists, or a Hub id (owner/name)"
        raise UserError(f"--data.dataset {name}: not {known}")
    return cached(place, hub_key(hub_name, config.revision), hub_name, lambda: _read_hub(hub_name, config.revision))


def cache_place(config: DataConfig, environment: Mapping[str, str]) -> Path:
    """Return the folder of the data cache, which holds decoded data sets."""
    return config.cache_dir or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet_dist"


def is_folder(name: str) -> bool:
    """Return whether `--data.dataset` stands for a folder: none of that name hides a data set that is built in."""
    return name not in (*WITHOUT_FILES, "cifar10") and os.path.isdir(name)  # noqa: PTH112 - no error for a long name


def hub_id(name: str) -> str | None:
    """Return the Hub id, owner/name, that `--data.dataset` stands for; None if it cannot be one."""
    if name == "cifar10":
        return CIFAR10_ON_HUB
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None


def hub_key(name: str, revision: str | None) -> str:
    """Return a Hub data set's key in the cache: the SHA-256 of its id and revision, in hexadecimal."""
    return hashlib.sha256(f"{name}@{revision or 'main'}".encode()).hexdigest()


# ---- data sets without files ----------------------------------------------------------------------------------------


def _digits() -> ImageData:
    """Return scikit-learn's 1,797 scanned digits, 8x8; a fifth of each class, drawn at random, is for evaluation."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the digits data set needs scikit-learn: pip install 'alexnet_dist[demo]'") from None
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None].repeat(3, axis=1)
    labels = bunch.target.astype(np.int64)
    train, test = _divided(Split(images, labels), np.bincount(labels) // 5, "digits")
    return replace(assemble("digits", train, test, tuple("0123456789")), flips=False)


def _synthetic(num_classes: int = 10, size: int = 32) -> ImageData:
    """Return images whose class is a smooth colour pattern, shifted at random, with noise: easy, but not trivial."""
    drawn = rng.generator(0, "synthetic")
    coarse = drawn.normal(size=(num_classes, 3, 4, 4)).repeat(size // 4, axis=2).repeat(size // 4, axis=3)

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int64) % num_classes
        shifts = drawn.integers(-4, 5, (count, 2))
        clean = np.stack([np.roll(coarse[k], tuple(s), (1, 2)) for k, s in zip(labels, shifts, strict=True)])
        return Split(np.clip(128 + 40 * (clean + drawn.normal(size=clean.shape)), 0, 255).astype(np.uint8), labels)

    return assemble("synthetic", split(4000), split(1000), tuple(f"pattern {k}" for k in range(num_classes)))


# ---- data sets in files ---------------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Return the splits and class names of a folder in Hub or ImageFolder layout, decoded."""
    import datasets

    with _quiet(datasets), tempfile.TemporaryDirectory() as scratch:
        try:
            splits = datasets.load_dataset(str(folder), cache_dir=scratch)
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            layouts = "Hub layout (parquet files) or ImageFolder layout (train/CLASS/*.png, test/CLASS/*.png)"
            fault = f"not a data set in {layouts}: {first_line(error.__cause__ or error)}"
            raise UserError(f"--data.dataset {folder}: {_parquet_fault(folder) or fault}") from None
        return decode(splits, str(folder))


def _parquet_fault(folder: Path) -> str | None:
    """Return the first damaged or empty parquet file, which errors of `datasets` do not name, and its fault."""
    import pyarrow.parquet

    for path in sorted(folder.rglob("*.parquet")):
        try:
            num_rows = pyarrow.parquet.read_metadata(path).num_rows
        except (OSError, ValueError) as error:
            return f"{path.relative_to(folder)} is damaged: {first_line(error)}"
        if num_rows == 0:
            return f"{path.relative_to(folder)} is empty"
    return None


def _read_hub(name: str, revision: str | None) -> tuple[Split, Split, tuple[str, ...]]:
    """Return the splits and class names of a Hub data set, downloaded or from the Hub's own cache, decoded."""
    url = hub(os.environ)
    if url is None or not answers(url):  # the Hub's client would retry for half a minute
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the import below: the Hub's own cache is used, or it fails at once
    import datasets
    import huggingface_hub.errors

    http_error = getattr(huggingface_hub.errors, "HTTPError", OSError)  # httpx's is no OSError
    with _quiet(datasets):
        try:
            splits = datasets.load_dataset(name, revision=revision)
        except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            fault = f"the Hub has no such data set or revision: {first_line(error)}"
            raise UserError(f"--data.dataset {name}: {fault}") from None
        except (OSError, http_error) as error:
            fault = f"the Hugging Face Hub cannot be reached and the data set is not cached here ({first_line(error)})"
            ways = "Connect once, name a local copy by --data.dataset FOLDER, or give --data.fallback digits."
            raise HubUnreachableError(f"--data.dataset {name}: {fault}. {ways}") from None
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            raise UserError(f"--data.dataset {name}: {first_line(error.__cause__ or error)}") from None
        return decode(splits, name)


def hub(environment: Mapping[str, str]) -> str | None:
    """Return the Hub's address; None if HF_HUB_OFFLINE is set. `datasets` reads the same variables."""
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    return None if offline else environment.get("HF_ENDPOINT", "https://huggingface.co")


def answers(url: str, *, seconds: float = ANSWER_SECONDS) -> bool:
    """Return whether a server answers a HEAD request, with whatever status; no key or token is sent."""
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the user's own address
        urllib.request.urlopen(request, timeout=seconds).close()  # noqa: S310
    except (OSError, ValueError, http.client.HTTPException) as error:
        return isinstance(error, urllib.error.HTTPError)  # an answer, with the status of an error
    return True


@contextmanager
def _quiet(module: Any) -> Iterator[None]:  # noqa: ANN401 - the datasets module, imported late
    """Switch the progress bars of `datasets` off within the block; bars that were off before stay off."""
    were_off = module.are_progress_bars_disabled()
    module.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            module.enable_progress_bars()


def _folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of a folder's files, in hexadecimal: 0.1 s for 140 MB.

    Raises:
        UserError: a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(atomic_files.sha256(path).encode())
    except OSError as error:
        raise UserError(f"--data.dataset {folder} cannot be read: {error}") from None
    return digest.hexdigest()


# ---- parts of data sets ---------------------------------------------------------------------------------------------


def _held_out(data: ImageData, fraction: float) -> ImageData:
    """Return a data set whose evaluation split is a share of each class's training images instead of the test split.

    Raises:
        UserError: one of the splits would be empty.
    """
    train, held_out = _divided(data.train, np.rint(fraction * np.bincount(data.train.labels)).astype(int), "held out")
    if not len(train) or not len(held_out):
        raise UserError(f"--data.val-fraction {fraction} leaves no image of {data.name} on one side: choose another")
    held = assemble(data.name, train, held_out, data.class_names)
    return replace(held, flips=data.flips, fallback_for=data.fallback_for, evaluated_on="held-out")


def _divided(split: Split, counts: npt.NDArray[np.int64], purpose: str) -> tuple[Split, Split]:
    """Return the rest of a split, and `counts[k]` images of each class k, drawn by a fixed permutation.

    Args:
        split: images and labels, whose order both parts keep.
        counts: (C,), at most the number of images of each class.
        purpose: of the permutation: "digits" or "held out".
    """
    order = rng.generator(0, purpose).permutation(len(split))
    drawn = np.zeros(len(split), bool)
    for label, count in enumerate(counts):
        drawn[order[split.labels[order] == label][:count]] = True
    return split.take(~drawn), split.take(drawn)


def _limited(data: ImageData, limit: int) -> ImageData:
    """Return a data set with `limit` images of each split, drawn at random: the first may all be of one class."""
    train, test = (
        split.take(np.sort(rng.generator(0, "limit").permutation(len(split))[:limit]))
        for split in (data.train, data.test)
    )
    return replace(data, train=train, test=test, fingerprint=fingerprint(train, test, data.class_names))
