"""Processes that load one data set beside each other: one decodes it, and a killed writer does no harm."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from deadlines import Deadline
from image_sets import LOADING, assert_equal_data, in_memory, random_images
from ranks import run_ranks

from alexnet_dist.config import DataConfig
from alexnet_dist.data import load as load_data

# what damaged files provoke from Pillow beside the error; the package's own warnings stay visible
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.*"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:PIL.*"),
]


def die_while_writing(dataset, cache):
    def killed(path, array):
        Path(path).write_bytes(array.tobytes()[:10])
        os.kill(os.getpid(), signal.SIGKILL)

    np.save = killed
    load_data(DataConfig(dataset=dataset, cache_dir=Path(cache), batch_size=1))


def test_a_killed_writer_does_no_harm(good, load, tmp_path):
    """SIGKILL leaves no time to tidy up: its lock is free, and what it left is never taken for a cache."""
    with pytest.raises(AssertionError, match=r"ranks \[0\] died with \[-9\]"):
        run_ranks(die_while_writing, str(good), str(tmp_path / "cache"), world_size=1, within=60)
    assert list((tmp_path / "cache").glob(".writing-*")), "it was not killed where it should"
    loaded = load(good)
    np.testing.assert_array_equal(loaded.train.images, random_images(5).transpose(0, 3, 1, 2))
    assert isinstance(loaded.train.images, np.memmap)


def load_counted(dataset, cache, log):
    """Load as one of two processes that start together; each split that is decoded leaves a line in the log."""
    original = LOADING.decode_all

    def counted(*arguments):
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)  # the other has every chance to decode, too
        return original(*arguments)

    LOADING.decode_all = counted
    Path(f"{log}.{os.environ['RANK']}").touch()
    end = Deadline(60)
    while not (Path(f"{log}.0").exists() and Path(f"{log}.1").exists()):
        assert not end.has_passed(), "the other process did not start"
        time.sleep(0.005)
    loaded = load_data(DataConfig(dataset=dataset, cache_dir=Path(cache), batch_size=1))
    return in_memory(loaded), type(loaded.train.images).__name__


def test_of_two_processes_one_decodes(good, tmp_path):
    log = tmp_path / "decoded"
    (first, first_type), (second, second_type) = run_ranks(
        load_counted, str(good), str(tmp_path / "cache"), str(log), world_size=2, within=60
    )
    decoded = log.read_text().splitlines()
    assert (len(decoded), len(set(decoded))) == (2, 1), "one of them decodes both splits"
    assert_equal_data(first, second)
    np.testing.assert_array_equal(first.train.images, random_images(5).transpose(0, 3, 1, 2))
    assert (first_type, second_type) == ("memmap", "memmap")
