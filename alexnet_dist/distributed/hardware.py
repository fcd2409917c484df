"""Hardware of a run: cores and threads, the allocator, measured peak FLOP/s and peak memory."""

import contextlib
import ctypes
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from alexnet_dist.distributed.precision import Precision

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
    """Floating-point operations a second in matrix products of that precision, measured, over all ranks."""


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
    peak = torch.tensor([matmul_flops(device, precision.dtype)], dtype=torch.float64, device=device)
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


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure a square matrix product, the best of those that fit into half a second, after one to warm up.

    Args:
        device: where.
        dtype: of the factors and of the product.

    Returns:
        Floating-point operations a second.
    """
    size = 8192 if device.type == "cuda" else 4096  # 137 GFLOP: 0.1 s with AMX on two cores, where 1024 shows a third
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.mm(left, right)
    seconds: list[float] = []
    while sum(seconds) < 0.5:
        synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)  # fresh memory would count against the peak
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was given; on a CPU nothing is waited for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
