"""Hardware of a run: cores and threads, the allocator, measured peak FLOP/s and peak memory."""

import contextlib
import ctypes
import operator
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from accelerate import Accelerator

from alexnet_dist.distributed.precision import Precision

MEASURED = 0.1  # seconds that each operation is measured for
LONGEST = 0.25  # seconds that one call of an operation may take
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # parameters of glibc's mallopt, from malloc.h


@dataclass(frozen=True)
class Hardware:
    """The devices of a run."""

    device: str
    """Name of rank 0's GPU, or `CPU`."""
    world_size: int
    threads: int
    """Of each process, on a CPU."""
    precision: Precision
    peak_flops: float
    """Floating-point operations a second in products and convolutions of that precision, measured, over all ranks."""


def keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next step, instead of returning it to the system.

    By default glibc gets every tensor of more than 32 MB from the system and gives it back when it is freed. At batch
    512 a step then touches 780,000 fresh pages, which takes 1.4 of its 3.2 seconds (docs/performance.md). Other C
    libraries have no such call, and are left as they are.
    """
    if sys.platform.startswith("linux") and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def cpu_cores() -> int:
    """Return how many of the host's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_threads(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's share of the host's cores.

    Launchers set OMP_NUM_THREADS=1 unless it is set, which leaves all cores but one idle; any other value is the user's
    and is kept.
    """
    wished = environment.get("OMP_NUM_THREADS", "1")
    if wished.isdigit() and int(wished) > 1:
        return int(wished)
    return max(1, cpu_cores() // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def survey(accelerator: Accelerator, precision: Precision) -> Hardware:
    """Return the devices of the run. Every rank must call it: their peaks are summed."""
    device, num_ranks, threads = accelerator.device, accelerator.num_processes, torch.get_num_threads()
    peak = torch.tensor([peak_flops(device, precision.dtype)], dtype=torch.float64, device=device)
    total = float(accelerator.reduce(peak, "sum").item())
    return Hardware(device_name(device), num_ranks, threads, precision, peak_flops=total)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU's kind; `CPU` for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def processor() -> str:
    """Return the model of the CPU, as the system names it."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "unknown")
    return platform.processor() or platform.machine()


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure what MFU is a share of: the fastest of several matrix products and convolutions of AlexNet's kind.

    Which is fastest depends on the device: with AMX large products, with AVX-512 small ones, and there a step's
    convolutions pass them all. An operation that would take more than `LONGEST` at the best rate so far is left out,
    so that a slow device is done in a second too.

    Args:
        device: where.
        dtype: of the factors and of the result.

    Returns:
        Floating-point operations a second.
    """
    best = 0.0
    for flops, make in sorted(_operations(device, dtype), key=operator.itemgetter(0)):
        if flops <= LONGEST * best or not best:
            best = max(best, flops / _least_seconds(make(), device))
    return best


def _operations(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[int, Callable[[], Callable[[], object]]]]:
    """Yield of each operation its floating-point operations, and what makes its factors and returns the call."""

    def product(size: int) -> Callable[[], object]:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        return partial(torch.mm, left, right, out=torch.empty_like(left))  # fresh memory would count against the peak

    def convolution(batch: int, channels: int, kernels: int, size: int, side: int) -> Callable[[], object]:
        shapes = (batch, channels, side, side), (kernels, channels, size, size)
        images, weights = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
        factors = (factor.contiguous(memory_format=torch.channels_last) for factor in (images, weights))
        return partial(F.conv2d, *factors, padding=size // 2)

    on_gpu = device.type == "cuda"
    for size in (1024, 2048, 4096, *((8192,) if on_gpu else ())):
        yield 2 * size**3, partial(product, size)
    batch = 512 if on_gpu else 16
    for channels, kernels, size, side in ((64, 192, 5, 27), (192, 384, 3, 13), (384, 256, 3, 13)):  # conv2 to conv4
        flops = 2 * batch * channels * kernels * size**2 * side**2
        yield flops, partial(convolution, batch, channels, kernels, size, side)


@torch.inference_mode()
def _least_seconds(compute: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, the least of those that fit into `MEASURED`, after one to warm up."""
    compute()
    seconds: list[float] = []
    while sum(seconds) < MEASURED:
        synchronize(device)
        start = time.perf_counter()
        compute()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was given; on a CPU nothing is waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
