"""Two hundred epochs in one process: memory, descriptors and threads stay where they were."""

import gc
import mmap
import multiprocessing
import statistics
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import psutil
import pytest
import torch
from tiny import records, run

from alexnet_dist.commands import train

WARM_UP = 20  # epochs: caches of the allocator, of oneDNN and of matplotlib
GROWTH = 4.0  # MB of resident memory in 100 epochs, of which the records' own are below 1
WINDOW = 20  # epochs at either end


@dataclass(frozen=True)
class Sample:
    """What a process holds after an epoch."""

    resident: float
    """MB"""
    descriptors: int
    threads: int


def sample(process):
    gc.collect()
    return Sample(process.memory_info().rss / 1e6, process.num_fds(), process.num_threads())


def soak(folder, epochs, leaks, flags):
    """Train and return a sample after each epoch; `leaks` are left behind in each on purpose."""
    torch.set_num_threads(1)
    process, samples, kept = psutil.Process(), [], []
    one_epoch = train.train_one_epoch

    def spy(the_run, *arguments, **keywords):
        one_epoch(the_run, *arguments, **keywords)
        the_run.saver.wait()  # a checkpoint under way has a thread and a file, and so have pictures
        for worker in (the_run.log._drawing, the_run.log._sending):
            done = threading.Event()
            worker.do(done.set)
            assert done.wait(60)
        if "memory" in leaks:
            kept.append(mmap.mmap(-1, 200_000))  # pages of its own: what was freed stays with the process, and would do
            kept[-1].write(b"\1" * 200_000)
        if "descriptor" in leaks:
            kept.append((folder.parent / "leak").open("w"))
        if "thread" in leaks:
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        samples.append(sample(process))

    train.train_one_epoch = spy
    run(folder, "--epochs", str(epochs + 1), *flags)
    return samples[:-1]  # the last epoch draws the curves: matplotlib is 58 MB


def soaked(*arguments):
    """Soak in a process of its own, where no other test's memory counts."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(soak, *arguments).result()


def growth(samples):
    """Return the growth of resident memory in MB per 100 epochs, between the windows' medians."""
    early, late = ([s.resident for s in window] for window in (samples[:WINDOW], samples[-WINDOW:]))
    return 100 * (statistics.median(late) - statistics.median(early)) / (len(samples) - WINDOW)


def findings(samples):
    """Name what grew after the warm-up."""
    settled = samples[WARM_UP:]
    early, late = settled[:WINDOW], settled[-WINDOW:]
    found = [name for name in ("descriptors", "threads") if peak(late, name) > peak(early, name)]
    return [*found, *(["memory"] if growth(settled) > GROWTH else [])]


def peak(samples, name):
    return max(getattr(s, name) for s in samples)


def report(samples):
    print([round(s.resident, 1) for s in samples], [(s.descriptors, s.threads) for s in samples])
    settled = samples[WARM_UP:]
    ends = ", ".join(f"{name} {getattr(settled[0], name)} to {getattr(settled[-1], name)}" for name in vars(settled[0]))
    print(f"{len(samples)} epochs: {ends}; {growth(settled):.2f} MB per 100 epochs")


@pytest.mark.slow
def test_two_hundred_epochs_leave_nothing_behind(tmp_path):
    """With kernel pictures, an evaluation and a checkpoint in each epoch, and W&B offline with its own process."""
    flags = ["--log.trackers", "wandb", "--wandb.mode", "offline", "--log.kernels-every-epochs", "1"]
    samples = soaked(tmp_path / "run", 200, (), flags)
    report(samples)
    assert len(samples) == 200
    assert len([record for record in records(tmp_path / "run") if "kernels/conv1_rel_change" in record]) == 201
    assert not findings(samples)


@pytest.mark.slow
@pytest.mark.parametrize("leak", ["memory", "descriptor", "thread"])
def test_a_leak_is_found(tmp_path, leak):
    """5 files, threads or pieces of 0.2 MB would do in 25 epochs as well: it is the test above that is tested."""
    samples = soaked(tmp_path / "run", 80, (leak,), ["--log.kernels-every-epochs", "1000"])
    report(samples)
    assert [name.removesuffix("s") for name in findings(samples)] == [leak]
