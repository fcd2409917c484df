"""Loading: the data set that a configuration names, prepared once on each node and opened by every rank.

Small squares of one size become one array (`cache.py`), all else photographs in a store (`photographs.py`).
"""

import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet_dist import rng, sources
from alexnet_dist.config import DataConfig
from alexnet_dist.data import built_in, cache, photographs
from alexnet_dist.data.decode import SizesDifferError, decode_all, header
from alexnet_dist.data.image_data import ImageData, Images, Split, divided, fingerprint
from alexnet_dist.data.photographs import Photographs
from alexnet_dist.errors import UserError
from alexnet_dist.sources import ArrayImages, EncodedImages, HubUnreachableError, Listing, SourceOptions

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of the training images that evaluate where a source has no split for that."""


def load(config: DataConfig) -> ImageData:
    """Return the data set that the configuration names, prepared before or now. Every rank must call it.

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
    elif not len(data.test):
        data = _held_out(data, HELD_OUT)
        told = f"{data.name} has no evaluation split with labels: {len(data.test)} of its training images are held out"
        logger.warning("%s. Choose another share by --data.val-fraction", told.upper())
        data = replace(data, notes=(*data.notes, told))
    if config.limit:
        data = _limited(data, config.limit)
    if (count := len(data.train)) < config.batch_size:
        batch = f"one global batch (--data.batch-size {config.batch_size})"
        raise UserError(f"{data.name} has {count} training images, fewer than {batch}")
    return data


def _load_named(name: str, config: DataConfig) -> ImageData:
    """Return the data set of a name: digits, synthetic, cifar10, a path, or a Hub id."""
    if name in sources.WITHOUT_FILES:
        if config.revision:
            logger.warning("--data.revision is ignored: %s does not come from the Hub", name)
        if config.fit == "crop" or config.store in ("pixels", "encoded"):
            raise UserError(f"--data.dataset {name} is an array of small images: leave --data.fit and --data.store out")
        return built_in.digits() if name == "digits" else built_in.synthetic()
    options = SourceOptions(
        cache=sources.cache_place(config, os.environ),
        config=config.config,
        revision=config.revision,
        train_split=config.train_split,
        eval_split=config.eval_split,
        image_column=config.image_column,
        label_column=config.label_column,
    )
    return Preparation(sources.find(name, options, os.environ), config, options.cache).open()
