"""Data sets of the Hugging Face Hub, and local copies of them in parquet files, read by `datasets`, undecoded."""

from __future__ import annotations

import glob
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from alexnet_dist.errors import UserError, first_line, printable
from alexnet_dist.sources import columns, labels, splits
from alexnet_dist.sources.folders import File, key_of
from alexnet_dist.sources.listing import EncodedImages, Labels, Listing, SourceOptions

ANSWER_SECONDS = 5.0  # until a server must have answered
CONVERTED = "refs/convert/parquet"  # branch on which the Hub keeps a parquet copy of sets with loading scripts


class HubUnreachableError(UserError):
    """Error of a data set that is not on this machine while the Hub cannot be reached."""


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


# ---- sets on the Hub ------------------------------------------------------------------------------------------------


def hub_key(name: str, options: SourceOptions) -> str:
    """Return the SHA-256 of a Hub set's id, revision and all options that change what is read, in hexadecimal."""
    chosen = options.choices()
    text = f"{name}@{options.revision or 'main'}" + (repr(chosen) if any(chosen) else "")
    return hashlib.sha256(text.encode()).hexdigest()


def list_hub(name: str, options: SourceOptions, environment: Mapping[str, str]) -> Listing:
    """Return what a Hub data set holds, downloaded or from the Hub's own cache.

    Raises:
        UserError: there is no such set, it is gated, or it does not say what to read; the message names the flag.
    """
    source = f"--data.dataset {name}"
    url = hub(environment)
    if url is None or not answers(url):  # the Hub's client would retry for half a minute
        os.environ["HF_HUB_OFFLINE"] = "1"  # read by the import below: the Hub's own cache is used, or it fails at once
    import datasets
    import huggingface_hub.errors

    unreachable = (OSError, getattr(huggingface_hub.errors, "HTTPError", OSError))  # httpx's is no OSError
    with _quiet(datasets):
        try:
            found, notes = _loaded(name, options)
        except UserError:
            raise
        except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
            raise UserError(f"{source}: {_not_found(error, name)}") from None
        except unreachable as error:
            fault = f"the Hugging Face Hub cannot be reached and the data set is not cached here ({first_line(error)})"
            ways = "Connect once, name a local copy by --data.dataset FOLDER, or give --data.fallback digits."
            raise HubUnreachableError(f"{source}: {fault}. {ways}") from None
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            raise UserError(f"{source}: {_explained(error)}") from None
    return list_tables(found, name, hub_key(name, options), options, notes)


def _loaded(name: str, options: SourceOptions) -> tuple[Any, list[str]]:
    """Return the splits of a Hub set, and notes; of one with a loading script, from its parquet copy."""
    import datasets

    try:
        return datasets.load_dataset(name, options.config, revision=options.revision), []
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    return _converted(name, options), [f"read from the branch {CONVERTED}, as the set is a loading script"]


def _converted(name: str, options: SourceOptions) -> Any:  # noqa: ANN401 - a datasets.DatasetDict
    """Return the splits of a set with a loading script, from the parquet copy that the Hub makes of it.

    Raises:
        UserError: there is no such copy, or it has several configurations.
    """
    import datasets
    import huggingface_hub

    files, fault = [], "is empty"
    try:
        files = huggingface_hub.HfApi().list_repo_files(name, repo_type="dataset", revision=CONVERTED)
    except Exception as error:  # noqa: BLE001 - HTTP libraries and the Hub's client have errors of their own
        fault = f"cannot be read ({first_line(error)})"
    tables: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in files:  # CONFIGURATION/SPLIT/0000.parquet
        if file.endswith(".parquet") and file.count("/") == 2:
            config, split, _ = file.split("/")
            tables[config][split].append(file)
    if not tables:
        script = "the set is a loading script, which `datasets` cannot run, and its parquet copy, the branch"
        way = "download the images and give --data.dataset FOLDER"
        raise UserError(f"--data.dataset {name}: {script} {CONVERTED}, {fault}: {way}")
    config = options.config or (next(iter(tables)) if len(tables) == 1 else "")
    if config not in tables:
        raise UserError(f"--data.dataset {name}: {_pick(sorted(tables))}")
    return datasets.load_dataset(name, revision=CONVERTED, data_files=dict(tables[config]))


def _not_found(error: Exception, name: str) -> str:
    """Return the message for a set that the Hub does not give: gated, or not there."""
    chain = [error, error.__cause__, error.__context__]
    if any("gated" in f"{type(link).__name__} {link}".lower() for link in chain):
        page = f"https://huggingface.co/datasets/{name}"
        return f"the set is gated: accept its terms at {page}, then log in by `hf auth login` or give HF_TOKEN"
    return f"the Hub has no such data set or revision: {first_line(error)}"


def _explained(error: BaseException) -> str:
    """Return one line for an error of `datasets`, with the flag where one helps."""
    text = str(error)
    if "Config name is missing" in text or "BuilderConfig" in text:
        listed = re.search(r"(?:configs|Available): \[(.*?)\]", text)
        return _pick(re.findall(r"'([^']*)'", listed[1]) if listed else [])
    if empty := re.search(r'Instruction "(.*?)" corresponds to no data', text):
        return f"the split {empty[1]} is empty"
    if "scripts are no longer supported" in text:
        return f"a loading script cannot be run: its parquet copy may be on the Hub, --data.revision {CONVERTED}"
    return first_line(error.__cause__ or error)


def _pick(configurations: Sequence[str]) -> str:
    """Return the message for a set of several configurations, with all their names."""
    return f"choose a configuration by --data.config: {', '.join(configurations)}"


# ---- local copies ---------------------------------------------------------------------------------------------------


def list_local(folder: str, files: Sequence[File], options: SourceOptions) -> Listing:
    """Return what a local folder of parquet files holds, or one that `save_to_disk` wrote.

    Args:
        folder: its absolute path.
        files: its parquet files, or those of `save_to_disk`, and README.md; sorted.
        options: the Arrow copy that `datasets` makes of parquet files goes to their cache, in `arrow/`.

    Raises:
        UserError: a file is damaged, or the folder does not say what to read.
    """
    import datasets

    source = f"--data.dataset {printable(folder)}"
    key = key_of(files, options)
    with _quiet(datasets):
        try:
            if any(file.path in ("dataset_dict.json", "state.json") for file in files):
                found = datasets.load_from_disk(folder)
                found = found if isinstance(found, dict) else {"train": found}
            else:
                tables = [file.path for file in files if file.path.endswith(".parquet")]
                builder = _local_splits(folder, tables, options, str(arrow_copy(options, key)))
                _check_class_names(chain.from_iterable(builder.config.data_files.values()))
                builder.download_and_prepare()
                found = builder.as_dataset()
        except Exception as error:  # noqa: BLE001 - Arrow, YAML and each reader have errors of their own
            fault = _parquet_fault(folder, files) or _explained(error)
            raise UserError(f"{source}: {fault}") from None
    if any(split.info.builder_name == "imagefolder" for split in found.values()):
        both = f"parquet files ({files[0].path}) and image files"
        raise UserError(f"{source}: holds {both}: give the folder of one of them as --data.dataset")
    return list_tables(found, folder, key, options, [])


def arrow_copy(options: SourceOptions, key: str) -> Path:
    """Return the folder of the copy that `datasets` makes of local parquet files, needed until images are prepared."""
    return options.cache / "arrow" / key[:16]


def _local_splits(folder: str, tables: Sequence[str], options: SourceOptions, cache: str) -> Any:  # noqa: ANN401
    """Return what reads the splits of a folder, by its dataset card and file names: a builder of `datasets`."""
    import datasets

    script = os.path.join(folder, f"{os.path.basename(folder)}.py")  # noqa: PTH118, PTH119
    if not glob.has_magic(folder) and not os.path.exists(script):  # noqa: PTH110
        return datasets.load_dataset_builder(folder, options.config, cache_dir=cache)
    by_split: dict[str, list[str]] = defaultdict(list)  # `datasets` takes [1] in a path for a pattern
    for path in tables:
        by_split[splits.split_word(path) or "train"].append(glob.escape(os.path.join(folder, path)))  # noqa: PTH118
    return datasets.load_dataset_builder("parquet", data_files=dict(by_split), cache_dir=cache)


def _check_class_names(files: Iterable[str]) -> None:
    """Check that parquet files number the classes of a ClassLabel column alike: `datasets` reads all as the first one.

    Raises:
        UserError: two files do not.
    """
    import datasets
    import pyarrow.parquet

    first: dict[str, list[str]] = {}
    for path in (path for path in files if path.endswith(".parquet")):
        for column, feature in datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path)).items():
            names = getattr(feature, "names", None)
            if names and names != first.setdefault(column, names):
                both = f"{splits.few(names)}, and {splits.few(first[column])} in files before it"
                raise UserError(f"{printable(path)} has the classes {both}: write all files with one ClassLabel")


def _parquet_fault(folder: str, files: Sequence[File]) -> str | None:
    """Return the first damaged or empty parquet file, which errors of `datasets` do not name, and its fault."""
    import pyarrow.parquet

    for path in (file.path for file in files if file.path.endswith(".parquet")):
        try:
            num_rows = pyarrow.parquet.read_metadata(Path(folder) / path).num_rows
        except (OSError, ValueError) as error:
            return f"{printable(path)} is damaged: {first_line(error)}"
        if num_rows == 0:
            return f"{printable(path)} is empty"
    return None


# ---- tables ---------------------------------------------------------------------------------------------------------


class ArrowImages(EncodedImages):
    """Encoded images in a column of a memory-mapped Arrow table.

    Args:
        column: (N,) of records with `bytes` and `path`, or of bytes.
        labels: (N,) int64.
        place: name of the set and split, for error messages.
    """

    def __init__(self, column: Any, labels: Labels, place: str) -> None:  # noqa: ANN401 - a pyarrow.ChunkedArray
        super().__init__(labels)
        self._column, self._place = column, place

    def _record(self, index: int) -> tuple[bytes | None, str | None]:
        """Return the bytes and the path of an image."""
        record = self._column[index].as_py()
        return (
            (record, None) if isinstance(record, bytes) else ((record or {}).get("bytes"), (record or {}).get("path"))
        )

    def read(self, index: int) -> bytes:
        """Return the bytes in the table, or the content of the file that the table names."""
        content, path = self._record(index)
        if content is None and not path:
            raise UserError(f"{self.where(index)} has no image")
        try:
            return content if content is not None else Path(path or "").read_bytes()
        except OSError as error:
            raise UserError(f"{self.where(index)} cannot be read: {first_line(error)}") from None

    def where(self, index: int) -> str:
        """Return `SET: train[4] (FILE)`, the file's name where the table has it."""
        _, path = self._record(index)
        return f"{self._place}[{index}]" + (f" ({printable(path)})" if path else "")


def list_tables(found: Mapping[str, Any], name: str, key: str, options: SourceOptions, notes: list[str]) -> Listing:
    """Return the listing of a `datasets.DatasetDict`.

    Args:
        found: tables by split.
        name: of the set: a Hub id, or an absolute path.
        key: of the listing.
        options: with the names of splits and columns, if they are given.
        notes: that come first.

    Raises:
        UserError: a split, a column or a label is missing or wrong.
    """
    source = f"--data.dataset {printable(name)}"
    first = next((split for split in (options.train_split, *splits.TRAINING) if split in found), None)
    chosen = columns.choose(found[first or next(iter(found))].features, options, source)

    def values(split: str) -> Sequence[Any]:
        if len(found[split]) == 0:
            raise UserError(f"{source}: the split {split} is empty: choose by --data.train-split, --data.eval-split")
        where = f"{source}: the split {split}"
        its_labels = labels.values(_column(found[split], chosen.label, where))
        own = getattr(found[split].features[chosen.label], "names", None)
        return labels.translated(its_labels, own, chosen.class_names, where)

    def images(split: str, numbers: Labels) -> ArrowImages:
        column = _column(found[split], chosen.image, f"{source}: the split {split}")
        return ArrowImages(column, numbers, f"{source}: {split}")

    short = printable(os.path.basename(name)) if os.path.isabs(name) else name  # noqa: PTH117, PTH119
    origin = labels.Origin(short, source, key, (*notes, *chosen.notes))
    return labels.assemble(origin, list(found), values, images, options, class_names=chosen.class_names)


def _column(table: Any, name: str, where: str) -> Any:  # noqa: ANN401 - a datasets.Dataset, a pyarrow.ChunkedArray
    """Return a column of a table, as it is stored."""
    if name not in table.features:
        raise UserError(f"{where} has no column {name}")
    return table.data.column(name)
