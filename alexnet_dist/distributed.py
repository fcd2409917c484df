"""Processes and devices: the only `Accelerator(...)`, precision, threads, and the facts of a run's hardware.

Everything that can be refused is refused before a process group exists.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import psutil
import torch
import torch.distributed as dist  # noqa: TID251 - where Accelerate's way of forming the group fails
from accelerate import Accelerator
from accelerate.utils import (
    DataLoaderConfiguration,
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)

from alexnet_dist.config import Config, RuntimeConfig, UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_FOR_FIRST = 30.0  # seconds, for a machine's first process to print its error
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # parameters of glibc's mallopt, from malloc.h


@dataclass(frozen=True)
class Precision:
    """The type of the network's arithmetic; weights, optimizer state and loss are float32 in any case."""

    name: str
    """fp32, bf16 or fp16."""
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]


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


def check_launch(config: Config) -> None:
    """Refuse a launch that cannot do what was asked, without starting anything.

    A launcher that would start this process again, with the same answer, is ended too.

    Raises:
        UserError: fewer processes than asked for, processes without devices of their own, restarts that would not find
            the run again, or a global batch that the processes cannot share equally.
    """
    try:
        check_processes(config, os.environ)
    except UserError:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            if os.environ["LOCAL_RANK"] != "0":
                time.sleep(WAIT_FOR_FIRST)  # it ends the launcher, and the launcher this one
            atexit.register(os.kill, os.getppid(), signal.SIGTERM)  # once the error is printed
        raise
    _warn_of_sizes(config.data.batch_size, accumulate=config.optim.accumulate)


def check_processes(config: Config, environment: Mapping[str, str]) -> None:
    """Compare what a launcher set, or will set, with what the run needs.

    Raises:
        UserError: as `check_launch` does.
    """
    started_by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    if started_by_accelerate and "WORLD_SIZE" not in environment and "MASTER_PORT" in environment:
        raise UserError(
            "`accelerate launch` was asked for several processes and started this one alone, as it does with --cpu or "
            "without --multi_gpu. Start CPU processes by `CPU_RANKS=N launch/node.sh`; if one is meant, give "
            "--num_processes 1 and unset MASTER_PORT"
        )
    world_size = int(environment.get("WORLD_SIZE", "1"))
    if world_size > 1 and not config.runtime.cpu and not torch.cuda.is_available():
        raise UserError(
            f"the launcher started {world_size} processes and there is no GPU: they would train independently. "
            "Give --runtime.cpu for CPU processes that train together, or start one process"
        )
    if config.out_dir is None and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UserError("--max_restarts needs --out-dir: without it each restart would begin a new run")
    share = world_size * config.optim.accumulate
    batch_size = config.data.batch_size
    if batch_size % share:
        lower, upper = batch_size // share * share, -(-batch_size // share) * share
        nearest = f"{lower} or {upper}" if lower else f"{upper}"
        parts = f" times --optim.accumulate {config.optim.accumulate}" if config.optim.accumulate > 1 else ""
        raise UserError(
            f"--data.batch-size {batch_size} is the global batch and does not divide by {world_size} processes{parts}: "
            f"the nearest values that do are {nearest}"
        )


def _warn_of_sizes(batch_size: int, *, accumulate: int) -> None:
    """Say which sizes a run whose machines may leave and come back would end at, before it is at one."""
    fewest, colon, most = os.environ.get("PET_NNODES", "").partition(":")  # of launch/multinode.sh
    if not colon:
        return
    share = int(os.environ["LOCAL_WORLD_SIZE"]) * accumulate
    odd = [str(nodes) for nodes in range(int(fewest), int(most) + 1) if batch_size % (nodes * share)]
    if odd:
        logger.warning(
            "--data.batch-size %d does not divide by the processes of %s machines: with so many the run ends",
            batch_size,
            ", ".join(odd),
        )


def make_accelerator(config: Config) -> tuple[Accelerator, Precision]:
    """Form the process group and return the one Accelerator. Every rank must call it.

    Raises:
        UserError: the processes did not find each other, or the launcher set what belongs to the configuration.
    """
    use_cpu = config.runtime.cpu or not torch.cuda.is_available()
    if use_cpu:
        torch.set_num_threads(cpu_threads())
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # every batch has one shape, so its search is paid once
        torch.set_float32_matmul_precision("high")  # TF32, for --runtime.precision fp32
    precision = resolve_precision(config.runtime, use_cpu=use_cpu)
    timeout = timedelta(seconds=config.runtime.timeout_seconds)
    if interface := gloo_interface():
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    started = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if _has_launchers_store() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
            _join_again("gloo" if use_cpu else "nccl", timeout=timeout)
        accelerator = _form(config, precision, timeout=timeout)
    except RuntimeError as error:
        if started == 1:
            raise
        raise UserError(
            f"the {started} processes have not found each other within {timeout.total_seconds():.0f} s "
            f"({first_line(error)}): see what the other machines print, and whether a firewall lies between them"
        ) from error
    if started != accelerator.num_processes:
        raise UserError(
            f"the launcher started {started} processes and Accelerate formed a group of {accelerator.num_processes}: "
            "they would train independently. On CPUs give --runtime.cpu and start with "
            "`accelerate launch --multi_gpu --num_processes N`; on GPUs start one process per GPU"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError("the launcher sets gradient accumulation steps: leave that out and give --optim.accumulate")
    return accelerator, precision


def _form(config: Config, precision: Precision, *, timeout: timedelta) -> Accelerator:
    hooks = {"none": "NO", "bf16": "BF16", "fp16": "FP16"}
    return Accelerator(
        cpu=config.runtime.cpu or torch.backends.mps.is_available(),  # Apple's GPUs lack float64, which sums losses
        mixed_precision="no" if precision.name == "fp32" else precision.name,
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, even_batches=False, dispatch_batches=False, non_blocking=True
        ),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=True,  # saves a copy of the 228 MB of gradients
                static_graph=config.optim.accumulate == 1,  # no_sync changes which steps reduce
                comm_hook=DDPCommunicationHookType[hooks[config.runtime.comm_hook]],
            ),
            InitProcessGroupKwargs(timeout=timeout),
        ],
    )


def gloo_interface() -> str | None:
    """Return the network interface over which gloo should connect the ranks; None leaves the choice to it.

    By itself it takes the interface of the host's name, which Debian gives a loopback address: other machines would be
    told to connect to themselves. Where all ranks are on this machine, loopback is right, as gloo's connections are
    neither authenticated nor encrypted; else it is the interface that leads to rank 0.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "LOCAL_WORLD_SIZE" not in os.environ or "GLOO_SOCKET_IFNAME" in os.environ:
        return None
    if world_size == int(os.environ["LOCAL_WORLD_SIZE"]):
        return _loopback()
    found = interface_towards(os.environ["MASTER_ADDR"])
    return None if found == _loopback() else found


def _loopback() -> str | None:
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


def interface_towards(host: str) -> str | None:
    """Return the network interface by which a packet to a host would leave, or None for an unknown host."""
    try:
        address = _own_address(host)
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    names = [name for name, addresses in interfaces if any(found.address == address for found in addresses)]
    return next((name for name in names if name != _loopback()), names[0] if names else None)


def _own_address(host: str) -> str:
    """Return the address under which a host sees this one; nothing is sent."""
    family, *_, target = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        way.connect(target)
        return str(way.getsockname()[0])


def _has_launchers_store() -> bool:
    """Tell whether the key-value store is the launcher's, which outlives restarts, and not rank 0's own."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _join_again(backend: str, *, timeout: timedelta) -> None:
    """Form the process group after a restart of the launcher, under keys that the dead processes did not write.

    Torch's own rendezvous takes it that each restart has a new store (`_create_c10d_store`), but `accelerate launch`
    keeps one for all: ranks would connect to addresses on which nobody listens any more, and fail several times.
    Accelerate uses the group that it finds. launch/multinode.sh has a new store for each restart: launchers on several
    machines count restarts differently.
    """
    attempt, rank, world_size = (int(os.environ[name]) for name in ("TORCHELASTIC_RESTART_COUNT", "RANK", "WORLD_SIZE"))
    store = dist.TCPStore(  # type: ignore[attr-defined] # missing from its list of names
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout
    )
    own = dist.PrefixStore(f"alexnet_dist/attempt_{attempt}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=own, rank=rank, world_size=world_size, timeout=timeout)


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


def resolve_precision(config: RuntimeConfig, *, use_cpu: bool) -> Precision:
    """Decide the precision and say why.

    A launcher's "no" is taken for no choice: `accelerate launch` passes it whenever nobody chose.

    Raises:
        UserError: fp16 without a GPU, where Accelerate would silently compute in float32.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if config.precision != "auto":
        precision = Precision(config.precision, "asked for by --runtime.precision")
    elif launcher in ("bf16", "fp16"):
        precision = Precision(launcher, "the launcher's choice")
    elif use_cpu:
        precision = _best_on_cpu()
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        precision = Precision("bf16", "this GPU computes in it")
    else:
        precision = Precision("fp16", "this GPU has no bf16")
    if precision.name == "fp16" and use_cpu:
        raise UserError(f"fp16 ({precision.reason}) needs a GPU: choose --runtime.precision bf16 or fp32")
    return precision


def _best_on_cpu() -> Precision:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch
    for key, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")):
        if capabilities.get(key):
            return Precision("bf16", f"this CPU has {name}")
    return Precision("fp32", "this CPU has no bf16 instructions")


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


def on_all(compute: Callable[[], None]) -> None:
    """Compute on every rank, which must call it.

    Raises:
        UserError: on every rank, where `compute` raises it on one: it may lie on a host that nobody looks at.
    """
    fault = None
    try:
        compute()
    except UserError as error:
        fault = str(error)
    if first := next((text for text in gather_object([fault]) if text), None):
        raise UserError(first)


def from_main(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """Compute on rank 0 and return the result on all. Every rank must call it.

    Raises:
        UserError: on every rank, where `compute` raises it on rank 0: no rank is left waiting.
    """
    box: list[T | UserError | None] = [None]
    if accelerator.is_main_process:
        try:
            box[0] = compute()
        except UserError as error:
            box[0] = error
    broadcast_object_list(box)
    result = box[0]
    if isinstance(result, UserError):
        raise result
    return result  # type: ignore[return-value] # what rank 0 computed
