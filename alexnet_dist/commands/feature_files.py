"""Feature files: safetensors files of their full size from the beginning, into whose rows batches are written.

Memory holds no more than a batch, and several ranks write into the same files. Names are those that were asked for when
all is written, and begin with a dot until then.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist import atomic_files
from alexnet_dist.data.image_data import Labels
from alexnet_dist.errors import UserError
from alexnet_dist.models import weights

SHARD_BYTES = 1_000_000_000
SHARD_ROWS = 100_000  # names of pictures are in the header, of which safetensors reads 100 MB
CODES = {"int64": "I64", "float32": "F32", "float16": "F16"}
"""Names of dtypes in safetensors files."""

Columns = dict[str, np.dtype[Any]]
"""The tensors of a file by name: dtype and shape of a row."""


@dataclass(frozen=True)
class Shard:
    """One file, or one of several.

    A safetensors file is the length of its header, the header as JSON, padded by blanks, and the tensors one after
    another: https://huggingface.co/docs/safetensors.
    """

    path: Path
    """The name that it gets."""
    ids: range
    """Of its pictures, a row each."""
    columns: Columns
    begin: int
    """Bytes before the tensors."""

    @property
    def scratch(self) -> Path:
        """The name until all is written."""
        return self.path.with_name(f".{self.path.name}.writing")

    def start(self, name: str | None, rows: int) -> int:
        """Return where a tensor begins in a file of so many rows; where the file ends for None."""
        before = takewhile(lambda column: column != name, self.columns)
        return self.begin + rows * sum(self.columns[column].itemsize for column in before)

    def write(self, ids: range, found: dict[str, torch.Tensor]) -> None:
        """Write what layers returned for pictures, (B, ...) of each layer, into their rows."""
        with self.scratch.open("r+b") as file:
            for name, rows in found.items():
                column = self.columns[name]
                file.seek(self.start(name, len(self.ids)) + (ids[0] - self.ids[0]) * column.itemsize)
                file.write(rows.float().cpu().contiguous().numpy().astype(column.base, copy=False).data)

    def complete(self, ids: npt.NDArray[np.int64], labels: Labels | None, facts: dict[str, Any]) -> None:
        """Take out the rows of other pictures, and write header, ids and labels.

        Args:
            ids: of the pictures that stay, in ascending order.
            labels: of these; None where there are none.
            facts: of the header.
        """
        with self.scratch.open("r+b") as file:
            for name, column in self.columns.items() if len(ids) < len(self.ids) else ():
                old, new = self.start(name, len(self.ids)), self.start(name, len(ids))
                for row, index in enumerate(ids.tolist()):  # each moves to the front, over nothing that is still needed
                    file.seek(old + (index - self.ids[0]) * column.itemsize)
                    content = file.read(column.itemsize)
                    file.seek(new + row * column.itemsize)
                    file.write(content)
            file.truncate(self.start(None, len(ids)))
            file.seek(0)
            file.write((self.begin - 8).to_bytes(8, "little"))
            file.write(header(self.columns, len(ids), facts).ljust(self.begin - 8))
            file.write(ids.data)
            file.write(b"" if labels is None else labels.data)
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class FeatureFiles:
    """All files of a command."""

    out: Path
    """The file's name where there is one; of several, the name without numbers."""
    shards: list[Shard]
    labels: Labels | None
    """Of all pictures; None where there are none."""
    names: Sequence[str] | None
    """Of all pictures; None where they have none."""
    facts: dict[str, Any]
    """What each header says beside names."""

    @property
    def index(self) -> Path:
        """The file that lists several files."""
        return self.out.with_name(f"{self.out.name}.index.json")

    def batches(self, size: int) -> list[tuple[Shard, range]]:
        """Return the ids of batches with the files of their rows; no batch lies in two files."""
        return [(one, one.ids[at : at + size]) for one in self.shards for at in range(0, len(one.ids), size)]

    def reserve(self) -> None:
        """Make all files in their full size.

        Raises:
            UserError: there is such a file, or the disk is too small.
        """
        if taken := [path for path in (self.out, self.index) if path.exists()]:
            raise UserError(f"--out {taken[0]} exists: name another file, or remove that one")
        sizes = [one.start(None, len(one.ids)) for one in self.shards]
        with self.telling():
            free = shutil.disk_usage(self.out.parent).free
            if sum(sizes) > free:
                lack = f"{sum(sizes) / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} are free"
                raise UserError(f"--out {self.out}: {lack}; fewer layers, or --dtype fp16, need less")
            for one, size in zip(self.shards, sizes, strict=True):
                with one.scratch.open("wb") as file:
                    file.truncate(size)

    def finish(self, broken: Collection[int]) -> None:
        """Complete the files and give them their names; the index of several comes last.

        Args:
            broken: ids of the pictures that are left out.

        Raises:
            UserError: they cannot be written.
        """
        with self.telling():
            rows = {}
            for one in self.shards:
                ids = np.array([index for index in one.ids if index not in broken], np.int64)
                one.complete(ids, None if self.labels is None else self.labels[ids], self.facts_of(ids.tolist()))
                rows[one.path.name] = len(ids)
            for one in self.shards:
                one.scratch.replace(one.path)
            if len(rows) > 1:
                columns = self.shards[0].columns
                size = sum(rows.values()) * sum(column.itemsize for column in columns.values())
                entries = {"metadata": {"total_size": size}, "weight_map": {name: [*rows] for name in columns}}
                text = json.dumps(entries | {"rows": rows}, indent=2)
                atomic_files.write_text(self.index, text, mode=weights.FOR_ALL)

    def clear(self) -> None:
        """Remove what is left of files that were not finished."""
        for one in self.shards:
            one.scratch.unlink(missing_ok=True)

    def facts_of(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the facts of a file's header."""
        return self.facts if self.names is None else self.facts | {"names": [self.names[index] for index in ids]}

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Turn what a disk objects to into one line."""
        try:
            yield
        except OSError as error:
            raise UserError(f"--out {self.out} cannot be written: {error.strerror or error}") from None


def plan(  # noqa: PLR0917 - each has a type of its own
    out: Path,
    columns: Columns,
    count: int,
    labels: Labels | None,
    names: Sequence[str] | None,
    facts: dict[str, Any],
    *,
    rows: int | None,
) -> FeatureFiles:
    """Return the files for so many pictures, none of which exists yet.

    Args:
        out: name of the file where there is one.
        columns: the tensors: `ids`, `labels` where there are any, and layers.
        count: number of pictures.
        labels: of all pictures.
        names: of all pictures.
        facts: what each header says beside names.
        rows: of a file, at most; None for as many as fit into `SHARD_BYTES`.
    """
    rows = rows or max(1, min(SHARD_ROWS, SHARD_BYTES // sum(column.itemsize for column in columns.values())))
    parts = [range(count)[start : start + rows] for start in range(0, count, rows)]
    files = FeatureFiles(out, [], labels, names, facts)
    for number, ids in enumerate(parts, 1):
        name = out.name if len(parts) == 1 else f"{out.stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        length = len(header(columns, len(ids), files.facts_of(ids)))  # with fewer rows it is not longer
        files.shards.append(Shard(out.with_name(name), ids, columns, 8 + -(-length // 8) * 8))
    return files


def header(columns: Columns, rows: int, facts: dict[str, Any]) -> bytes:
    """Return the header of a file with so many rows in each tensor and facts among its metadata."""
    entries, end = {}, 0
    for name, column in columns.items():
        begin, end = end, end + rows * column.itemsize
        entries[name] = {"dtype": CODES[column.base.name], "shape": [rows, *column.shape], "data_offsets": [begin, end]}
    return json.dumps({"__metadata__": {weights.METADATA_KEY: json.dumps(facts)}, **entries}).encode()
