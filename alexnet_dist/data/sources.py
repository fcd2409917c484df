"""Named data sets, wherever they come from, as uint8 arrays.

All of it happens before a process group exists, on every rank: the cache lets one process of a machine decode.
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

from alexnet_dist import atomic_files, rng
from alexnet_dist.config import DataConfig
from alexnet_dist.data.cache import cached
from alexnet_dist.data.decode import decode
from alexnet_dist.data.image_data import ImageData, Split, assemble, fingerprint
from alexnet_dist.errors import UserError, first_line

logger = logging.getLogger(__name__)

CIFAR10_ON_HUB = "uoft-cs/cifar10"
ANSWER_SECONDS = 5.0  # for a server to say anything at all


class HubUnreachableError(UserError):
    """The data set is neither on this machine nor to be had over the network."""


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
    if config.val_fraction:
        data = _held_out(data, config.val_fraction)
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
    place = cache_place(config, os.environ)
    if name == "cifar10":
        name = CIFAR10_ON_HUB
    elif _is_folder(name):
        source = Path(name).resolve()
        return cached(place, _folder_digest(source), source.name, lambda: _read_folder(source))
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"--data.dataset {name}: not cifar10, digits, synthetic, a folder that exists, or a Hub id (owner/name)"
        )
    return cached(place, hub_key(name, config.revision), name, lambda: _read_hub(name, config.revision))


def cache_place(config: DataConfig, environment: Mapping[str, str]) -> Path:
    """Return the folder that holds decoded data sets."""
    return config.cache_dir or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet_dist"


def hub_key(name: str, revision: str | None) -> str:
    """Return by what the cache knows a data set of the Hub: SHA-256 in hex of its id and revision."""
    return hashlib.sha256(f"{name}@{revision or 'main'}".encode()).hexdigest()


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
    order = rng.generator(0, "digits").permutation(len(labels))
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        of_digit = order[labels[order] == digit]
        is_test[of_digit[: len(of_digit) // 5]] = True
    names = tuple(str(digit) for digit in range(10))
    train, test = (Split(images[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    return replace(assemble("digits", train, test, names), flips=False)


def _synthetic(num_classes: int = 10, size: int = 32) -> ImageData:
    """Return images whose class is a smooth colour pattern, shifted at random under noise: easy, but not trivial."""
    drawn = rng.generator(0, "synthetic")
    coarse = drawn.normal(size=(num_classes, 3, 4, 4)).repeat(size // 4, axis=2).repeat(size // 4, axis=3)

    def split(count: int) -> Split:
        labels = np.arange(count, dtype=np.int64) % num_classes
        shifts = drawn.integers(-4, 5, (count, 2))
        clean = np.stack([np.roll(coarse[k], tuple(s), (1, 2)) for k, s in zip(labels, shifts, strict=True)])
        return Split(np.clip(128 + 40 * (clean + drawn.normal(size=clean.shape)), 0, 255).astype(np.uint8), labels)

    return assemble("synthetic", split(4000), split(1000), tuple(f"pattern {k}" for k in range(num_classes)))


def _read_folder(folder: Path) -> tuple[Split, Split, tuple[str, ...]]:
    import datasets

    with _quiet(datasets), tempfile.TemporaryDirectory() as scratch:
        try:
            splits = datasets.load_dataset(str(folder), cache_dir=scratch)
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            raise UserError(
                _unusable_parquet(folder)
                or f"--data.dataset {folder}: not a data set in Hub layout (parquet files) or ImageFolder layout "
                f"(train/CLASS/*.png, test/CLASS/*.png): {first_line(error.__cause__ or error)}"
            ) from None
        return decode(splits, str(folder))


def _unusable_parquet(folder: Path) -> str | None:
    """Name the first parquet file that is damaged or empty: the errors of `datasets` do not."""
    import pyarrow.parquet

    for path in sorted(folder.rglob("*.parquet")):
        try:
            num_rows = pyarrow.parquet.read_metadata(path).num_rows
        except (OSError, ValueError) as error:
            return f"--data.dataset {folder}: {path.relative_to(folder)} is damaged: {first_line(error)}"
        if num_rows == 0:
            return f"--data.dataset {folder}: {path.relative_to(folder)} is empty"
    return None


def _read_hub(name: str, revision: str | None) -> tuple[Split, Split, tuple[str, ...]]:
    url = hub(os.environ)
    if url is None or not answers(url):  # its client would retry for half a minute before it says so
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the import below: use the Hub's own cache or fail at once
    import datasets
    import huggingface_hub.errors

    http_error = getattr(huggingface_hub.errors, "HTTPError", OSError)  # httpx's is no OSError
    with _quiet(datasets):
        try:
            splits = datasets.load_dataset(name, revision=revision)
        except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise UserError(
                f"--data.dataset {name}: the Hub has no such data set or revision: {first_line(error)}"
            ) from None
        except (OSError, http_error) as error:
            raise HubUnreachableError(
                f"--data.dataset {name}: the Hugging Face Hub cannot be reached and the data set is not cached here "
                f"({first_line(error)}). Either connect once, name a local copy by --data.dataset FOLDER, or give "
                f"--data.fallback digits."
            ) from None
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            raise UserError(f"--data.dataset {name}: {first_line(error.__cause__ or error)}") from None
        return decode(splits, name)


def hub(environment: Mapping[str, str]) -> str | None:
    """Return the Hub's address, unless the environment says to stay away from it; `datasets` reads the same names."""
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    return None if offline else environment.get("HF_ENDPOINT", "https://huggingface.co")


def answers(url: str, *, seconds: float = ANSWER_SECONDS) -> bool:
    """Tell whether a server answers at all; nothing is sent that says who asks."""
    try:
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - the user's own address
        urllib.request.urlopen(request, timeout=seconds).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True  # any answer is one
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


def _folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files: 0.1 s for CIFAR-10's 140 MB."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            digest.update(atomic_files.sha256(path).encode())
    except OSError as error:
        raise UserError(f"--data.dataset {folder} cannot be read: {error}") from None
    return digest.hexdigest()


def _held_out(data: ImageData, fraction: float) -> ImageData:
    """Evaluate on a share of each class's training images, drawn by a fixed hash, instead of the test split."""
    order = rng.generator(0, "held out").permutation(len(data.train))
    is_held_out = np.zeros(len(order), bool)
    for label in range(len(data.class_names)):
        of_class = order[data.train.labels[order] == label]
        is_held_out[of_class[: round(fraction * len(of_class))]] = True
    if is_held_out.all() or not is_held_out.any():
        raise UserError(f"--data.val-fraction {fraction} leaves no image of {data.name} on one side: choose another")
    train, held_out = (
        Split(data.train.images[chosen], data.train.labels[chosen]) for chosen in (~is_held_out, is_held_out)
    )
    held = assemble(data.name, train, held_out, data.class_names)
    return replace(held, flips=data.flips, fallback_for=data.fallback_for, evaluated_on="held-out")


def _limited(data: ImageData, limit: int) -> ImageData:
    """Keep `limit` images of each split, drawn by a fixed hash: the first ones may all be of one class."""

    def subset(split: Split) -> Split:
        chosen = np.sort(rng.generator(0, "limit").permutation(len(split))[:limit])
        return Split(split.images[chosen], split.labels[chosen])

    train, test = subset(data.train), subset(data.test)
    return replace(data, train=train, test=test, fingerprint=fingerprint(train, test, data.class_names))
