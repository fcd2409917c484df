"""The prepare command: list a data set, prepare it in this node's cache, and say what is there. Needs no GPU."""

import time
from collections.abc import Sequence

import numpy as np

from alexnet_dist.config import DataConfig, parse
from alexnet_dist.data import ImageData, Photographs, load
from alexnet_dist.errors import EXIT_DONE
from alexnet_dist.text import duration
from alexnet_dist.tracking import Console


def main(argv: Sequence[str], *, prog: str) -> int:
    """Prepare the data set that the command line names and return the exit code; options are those of train.

    Raises:
        UserError: the command line is wrong, or the data set cannot be prepared.
    """
    config = parse(argv, prog=prog).data
    started = time.perf_counter()
    dataset = load(config)
    Console(enabled=True).card("prepared", card(dataset, config, seconds=time.perf_counter() - started))
    return EXIT_DONE


def card(dataset: ImageData, config: DataConfig, *, seconds: float) -> dict[str, str]:
    """Return the rows that are shown: counts, classes, sizes, where the images are kept, and notes.

    Args:
        dataset: prepared.
        config: that named it.
        seconds: that listing and preparing took.
    """
    train, test = dataset.train, dataset.test
    counts = np.bincount(train.labels, minlength=len(dataset.class_names))
    rows = {
        "data": f"{dataset.name}: {len(train):,} training and {len(test):,} {dataset.evaluated_on} images",
        "classes": f"{len(counts)}, of {counts.min():,} to {counts.max():,} training images",
    }
    if isinstance(train, Photographs):
        sides = np.minimum(train.heights, train.widths)
        rows["sizes"] = (
            f"short sides of {sides.min()} to {sides.max()} pixels as stored, median {int(np.median(sides))}"
        )
        rows["store"] = f"{train.store} in {train.folder.parent}"
    else:
        height, width, _ = train.picture(0).shape
        rows["sizes"], rows["store"] = f"{width}x{height}, enlarged to {config.image_size}", "array"
    notes = {f"note {number}": note for number, note in enumerate(dataset.notes, 1)}
    return rows | notes | {"fingerprint": dataset.fingerprint, "time": duration(seconds)}
