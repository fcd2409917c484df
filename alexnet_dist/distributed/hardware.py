"""Processes and devices: the only `Accelerator(...)`, precision, threads, and the facts of a run's hardware.

Everything that can be refused is refused before a process group exists.
"""

import ctypes
import logging
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator

from alexnet_dist.distributed.precision import Precision

logger = logging.getLogger(__name__)

T = TypeVar("T")

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # parameters of glibc's mallopt, from malloc.h


@dataclass(frozen=True)
class Hardware:
    """What a run computes on."""

    device: str
    device_type: str
    world_size: int
    threads: int
    precision: Precision
    peak_flops: float
    """Floating-point operations a second in matrix products of that precision, measured, over all ranks."""


def keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next step, instead of returning it to the system.

    By default glibc gets every tensor of more than 32 MB from the system and gives it back when it is freed. At batch
    512 a step then touches 780,000 fresh pages, which takes 1.4 of its 3.2 seconds (docs/performance.md). Other C
    libraries have no such call, and are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
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
    """Return what the run computes on. Every rank must call it: their peaks are summed."""
    device = accelerator.device
    peak = torch.tensor([matmul_flops(device, precision.dtype)], dtype=torch.float64, device=device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Hardware(
        device=name,
        device_type=device.type,
        world_size=accelerator.num_processes,
        threads=torch.get_num_threads(),
        precision=precision,
        peak_flops=float(accelerator.reduce(peak, "sum").item()),
    )


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
    best, spent = float("inf"), 0.0
    while spent < 0.5:
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)  # fresh memory would count against the peak
        _wait(device)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that this rank's tensors have taken on a GPU, or that its process has on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most  # Linux counts in KiB


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
