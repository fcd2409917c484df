"""What `--data.dataset` stands for, a folder, a file or a Hub id, and the listing of it."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from alexnet_dist.config import DataConfig
from alexnet_dist.errors import UserError, printable
from alexnet_dist.sources import archives, hub, tars
from alexnet_dist.sources.folders import File, Folder, image_files, key_of, scan
from alexnet_dist.sources.layout import Place, list_tree
from alexnet_dist.sources.listing import Listing, SourceOptions
from alexnet_dist.text import shortened

logger = logging.getLogger(__name__)

CIFAR10_ON_HUB = "uoft-cs/cifar10"
FORMAT = 3  # version of the files of prepared data sets
SAVED_TO_DISK = ("dataset_dict.json", "state.json")  # what `save_to_disk` of `datasets` writes
WITHOUT_FILES = ("digits", "synthetic")  # data sets that are computed, or part of scikit-learn


def cache_place(config: DataConfig, environment: Mapping[str, str]) -> Path:
    """Return the folder of the data cache, which holds prepared data sets."""
    return config.cache_dir or Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet_dist"


def options_of(config: DataConfig, environment: Mapping[str, str]) -> SourceOptions:
    """Return the options of a configuration that name parts of a source."""
    named = {name: getattr(config, name) for name in SourceOptions.__dataclass_fields__ if name != "cache"}
    return SourceOptions(cache=cache_place(config, environment), **named)


def folder_of(cache: Path, key: str, name: str) -> Path:
    """Return the folder of a prepared data set within the cache; its stores of photographs lie beside it."""
    name = os.fsdecode(shortened(name).encode())  # under LC_ALL=C, the same bytes as elsewhere
    return cache / f"{name.replace('/', '--')}-v{FORMAT}-{key[:16]}"


def is_prepared(folder: Path) -> bool:
    """Return whether a data set was prepared, as an array or as photographs, by the folder that `folder_of` gives."""
    places = [folder, *folder.parent.glob(f"{glob.escape(folder.name)}-*")]
    return any((place / "meta.json").exists() for place in places)


def is_local(name: str) -> bool:
    """Return whether `--data.dataset` is a folder or a file: none of that name hides a set that is built in."""
    return name not in (*WITHOUT_FILES, "cifar10") and os.path.exists(name)  # noqa: PTH110 - no error for a long name


def is_folder(name: str) -> bool:
    """Return whether `--data.dataset` is a folder: none of that name hides a set that is built in."""
    return is_local(name) and os.path.isdir(name)  # noqa: PTH112


def hub_id(name: str) -> str | None:
    """Return the Hub id, owner/name, that `--data.dataset` stands for; None if it cannot be one."""
    if name == "cifar10":
        return CIFAR10_ON_HUB
    return name if name.isascii() and name.count("/") == 1 and not name.startswith((".", "/", "~")) else None


class Source(NamedTuple):
    """A data set that was found, and how it is listed."""

    name: str
    """Of the data set: a folder's or a file's name, a Hub id."""
    key: str
    """`Listing.key`. Of tars, parquet files and Hub sets it is known before they are listed, which takes longer: 40 us
    for each member of a tar."""
    listing: Callable[[], Listing]
    """Returns what it holds; no image is decoded. Raises a UserError if it cannot be listed."""


def locate(dataset: str, options: SourceOptions, environment: Mapping[str, str]) -> Source:
    """Return what `--data.dataset` stands for; a folder is walked once.

    Args:
        dataset: a folder, an archive (.zip, .tar, .npz), cifar10, or a Hub id.
        options: what cannot be guessed.
        environment: with the variables of the Hub's client.

    Raises:
        UserError: there is no such data set, or it cannot be listed.
    """
    if is_local(dataset):
        if options.revision:
            logger.warning("--data.revision is ignored: %s does not come from the Hub", printable(dataset))
        return (
            _locate_folder(dataset, options) if is_folder(dataset) else _listed(_list_file(dataset, options), dataset)
        )
    if (name := hub_id(dataset)) is None:
        known = "cifar10, digits, synthetic, a folder that exists, a .zip, .tar or .npz, or a Hub id (owner/name)"
        raise UserError(f"--data.dataset {printable(dataset)}: not {known}")
    return Source(name, hub.hub_key(name, options), partial(hub.list_hub, name, options, environment))


def list_images(dataset: str, options: SourceOptions, environment: Mapping[str, str]) -> Listing:
    """Return what `--data.dataset` holds. Arguments and errors as of `locate`."""
    return locate(dataset, options, environment).listing()


def _locate_folder(path: str, options: SourceOptions) -> Source:
    """Return a folder of parquet files, of tars, or of class folders of images."""
    root = os.path.realpath(path)
    tree = scan(root)
    tables, shards = _telling(tree)
    if not (tables or shards):
        return _listed(list_tree(tree, Place(root), options, partial(image_files, root)), path)
    read = partial(hub.list_local, root, tables, options) if tables else partial(tars.list_tars, root, shards, options)
    return Source(_name(path), key_of(tables or shards, options), read)


def _listed(listing: Listing, path: str) -> Source:
    """Return a local source that had to be listed for its key."""
    return Source(_name(path), listing.key, lambda: listing)


def _name(path: str) -> str:
    """Return the name of a folder or file, links followed, fit to print."""
    return printable(os.path.basename(os.path.realpath(path)))  # noqa: PTH119


def _telling(tree: Folder) -> tuple[list[File], list[File]]:
    """Return the files of a copy of a Hub set, none if it has no table, and the tars."""
    files = sorted(file for folder in tree.walk() for file in folder.telling)
    has_tables = any(file.path.endswith(".parquet") or file.path in SAVED_TO_DISK for file in files)
    copied = [file for file in files if file.path.endswith((".parquet", ".arrow", "README.md", ".json"))]
    return copied if has_tables else [], [file for file in files if file.path.endswith(".tar")]


def _list_file(path: str, options: SourceOptions) -> Listing:
    """Return what a file holds, by its suffix."""
    file = Path(path).resolve()
    end = file.suffix.lower()
    if end == ".npz":
        return archives.list_npz(str(file), options)
    if end == ".zip":
        return archives.list_zip(str(file), options)
    if end == ".tar":
        info = file.stat()
        return tars.list_tars(str(file.parent), [File(file.name, info.st_size, info.st_mtime_ns)], options)
    known = "a .zip, .npz or .tar, or the folder of images or of parquet files"
    raise UserError(f"--data.dataset {printable(path)}: not a data set by its suffix, {end or 'none'}: give {known}")
