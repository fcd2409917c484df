"""What the preflight asks of one machine's devices and processes: small questions, each answered by a `Finding`.

None of them forms a process group, leaves a file behind, or waits without a deadline.
"""

from __future__ import annotations

import queue
import re
import shutil
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import yaml

from alexnet_dist.distributed import hardware, launch_checks
from alexnet_dist.distributed import precision as precisions
from alexnet_dist.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from alexnet_dist.config import Config, RuntimeConfig

T = TypeVar("T")
Level = Literal["ok", "warning", "error"]

DRIVER = Path("/proc/driver/nvidia/version")
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written
SMALL_SHM = 1 << 30  # bytes: NCCL's documentation asks for 1 GB in containers, whose default is 64 MB
# Fields of an Accelerate configuration that hold a word, which an unquoted `no` turns into false.
WORDS = ("compute_environment", "distributed_type", "dynamo_backend", "gpu_ids", "mixed_precision", "rdzv_backend")
FILL_IN = "launch/node.sh gives what is needed"


@dataclass(frozen=True)
class Finding:
    """The answer to one question, with the way out where it is a bad one."""

    level: Level
    what: str
    message: str

    def __str__(self) -> str:
        return f"{self.level:<8} {self.what:<11}  {self.message}"


@dataclass(frozen=True)
class Gpus:
    """The GPUs that torch can use, and what stands between it and those that it cannot."""

    names: tuple[str, ...]
    driver: str | None
    cuda: str | None
    """The version that torch is built for."""
    nccl: str | None
    trouble: str
    """What torch says where it finds none."""


def within(seconds: float, compute: Callable[[], T]) -> T:
    """Compute on a thread that is left behind when time is up.

    Raises:
        TimeoutError: it is. What `compute` raises comes through.
    """
    results: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def work() -> None:
        try:
            results.put((True, compute()))
        except BaseException as error:  # noqa: BLE001 - raised again below
            results.put((False, error))

    threading.Thread(target=work, name="probe", daemon=True).start()
    try:
        succeeded, value = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if not succeeded:
        raise value
    result: T = value
    return result


def counted(number: int, noun: str) -> str:
    """Return `1 process` or `2 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


# ---- devices --------------------------------------------------------------------------------------------------------


def find_gpus() -> Gpus:
    """Ask torch and the driver."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    text = DRIVER.read_text(encoding="utf-8") if DRIVER.exists() else ""
    driver = re.search(r"\d+\.\d+(\.\d+)?", text)
    return Gpus(
        names=tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) if available else (),
        driver=driver[0] if driver else None,
        cuda=torch.version.cuda,
        nccl=nccl_version(),
        trouble=first_line(caught[0].message) if caught and isinstance(caught[0].message, Warning) else "",
    )


def nccl_version() -> str | None:
    """Return the version that torch brings; None where it is built for CPUs."""
    if torch.version.cuda is None:
        return None
    found: tuple[int, ...] = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    return ".".join(map(str, found))


def gpus(found: Gpus, environment: Mapping[str, str], *, use_cpu: bool, processes: int) -> Finding:
    """Compare the GPUs with the processes that this node is to have."""
    what, count = "GPUs", len(found.names)
    built = f"CUDA {found.cuda}, NCCL {found.nccl}" if found.cuda else "torch built without CUDA"
    if use_cpu:
        return Finding("ok", what, f"{count or 'none'}, not used: --runtime.cpu")
    if count and processes > count:
        advice = f"start {count}, one per GPU, or give --runtime.cpu"
        return Finding("error", what, f"{processes} processes on this node and {counted(count, 'GPU')}: {advice}")
    if count:
        kinds = ", ".join(f"{found.names.count(name)} x {name}" for name in dict.fromkeys(found.names))
        return Finding("ok", what, f"{kinds}; driver {found.driver or 'unknown'}, {built}")
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding("warning", what, "hidden by CUDA_VISIBLE_DEVICES: the CPU trains. Unset it to use them")
    if found.driver:
        reason = f" ({found.trouble})" if found.trouble else ""
        return Finding(
            "error",
            what,
            f"there is a driver, {found.driver}, and torch finds no GPU{reason}; {built}: update the driver, install "
            "the torch made for it, or give --runtime.cpu",
        )
    return Finding("ok", what, f"none: the CPU trains; {built}")


def precision(config: RuntimeConfig, *, use_cpu: bool) -> Finding:
    """Say in which type the network computes, and whether that is bf16."""
    try:
        chosen = precisions.resolve_precision(config, use_cpu=use_cpu)
    except UserError as error:
        return Finding("error", "precision", str(error))
    if chosen.name == "fp16" and config.precision == "auto":
        return Finding("warning", "precision", f"fp16 ({chosen.reason}): if the loss becomes NaN, lower --optim.lr")
    return Finding("ok", "precision", f"{chosen.name} ({chosen.reason})")


def cpu_quota(path: Path = CPU_QUOTA) -> float | None:
    """Return how many cores a container may use; None where that is not limited."""
    try:
        quota, period = path.read_text(encoding="utf-8").split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # "max 100000" too
        return None


def threads(environment: Mapping[str, str], *, use_cpu: bool, quota: float | None, processes: int) -> Finding:
    """Compare the threads that this node's processes will have with its cores.

    Args:
        environment: with OMP_NUM_THREADS, and LOCAL_WORLD_SIZE as a launcher sets it.
        use_cpu: whether they compute there; a GPU's process keeps one core busy.
        quota: cores that the container may use, where that is limited.
        processes: of this node.
    """
    cores, wished = hardware.cpu_cores(), environment.get("OMP_NUM_THREADS")
    if not use_cpu:
        return Finding("ok", "threads", f"{counted(cores, 'core')} for {counted(processes, 'process')} on GPUs")
    each = hardware.cpu_threads(environment)
    usable = cores if quota is None else min(cores, max(1, int(quota)))
    plan = f"{each} for each of {counted(processes, 'process')} on {counted(cores, 'core')}"
    if wished is not None and not wished.isdigit():
        return Finding("warning", "threads", f"OMP_NUM_THREADS={wished} is no number and is ignored: unset it. {plan}")
    if each * processes <= usable:
        return Finding("ok", "threads", plan)
    if usable < cores:
        plan += f", of which the container may use {quota:g}"
    if wished == str(each) and each > 1:
        way_out = "unset OMP_NUM_THREADS" if usable == cores else f"set OMP_NUM_THREADS={max(2, usable // processes)}"
    else:
        way_out = (
            "start fewer processes" if usable == cores else f"raise its limit, or pin it by taskset -c 0-{usable - 1}"
        )
    return Finding("warning", "threads", f"{plan}: they wait for each other. {way_out[0].upper()}{way_out[1:]}")


def shared_memory(path: Path = SHM, *, gpu_processes: int) -> Finding | None:
    """Look at /dev/shm where NCCL uses it: between processes of one node. The loader has no workers that would."""
    if gpu_processes < 2 or not path.is_dir():
        return None
    size = shutil.disk_usage(path).total
    if size < SMALL_SHM:
        way_out = "start the container with --shm-size=1g or --ipc=host"
        return Finding("warning", "shared mem", f"{path} has {size / 1e6:,.0f} MB, and NCCL may need 1 GB: {way_out}")
    return Finding("ok", "shared mem", f"{path} has {size / 1e9:.1f} GB")


# ---- processes ------------------------------------------------------------------------------------------------------


def world(environment: Mapping[str, str], config: Config, *, asked: int | None, nodes: int) -> Finding:
    """Compare the processes that were asked for with those that a launcher started, or will.

    Args:
        environment: of this process; a launcher above it has left its marks there.
        config: of the run.
        asked: processes on all nodes; None where nobody said.
        nodes: how many.
    """
    started = environment.get("WORLD_SIZE")
    launched = started is not None or "ACCELERATE_MIXED_PRECISION" in environment
    formed = int(started or 1) if launched else asked or nodes
    if started is not None and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return Finding("error", "world", f"WORLD_SIZE={started} is left over from another launch: unset it")
    if asked is not None and formed != asked:
        return Finding(
            "error",
            "world",
            f"{asked} processes were asked for and the launcher started {formed}: `accelerate launch --cpu` and "
            "MULTI_CPU start one whatever --num_processes says. For CPU processes give `--multi_gpu --num_processes "
            f"{asked}` and --runtime.cpu, as CPU_RANKS={asked} launch/node.sh does",
        )
    if formed % nodes:
        return Finding("error", "world", f"{formed} processes on {nodes} nodes: --num-processes counts those of all")
    try:
        launch_checks.check_processes(config, {**environment, "WORLD_SIZE": str(formed)})
    except UserError as error:
        return Finding("error", "world", str(error))
    share = config.data.batch_size // formed
    return Finding(
        "ok",
        "world",
        f"{counted(formed, 'process')} on {counted(nodes, 'node')}, {share} images of each batch for each",
    )


def fewer_nodes(config: Config, *, processes: int, least: int, most: int) -> Finding | None:
    """Look whether the batch can be shared when nodes leave; None where none may, or where it always can."""
    per_node, share = processes // most, config.optim.accumulate
    stuck = [nodes for nodes in range(least, most) if config.data.batch_size % (nodes * per_node * share)]
    if not stuck:
        return None
    return Finding(
        "warning",
        "world",
        f"with {' or '.join(map(str, stuck))} of {most} nodes --data.batch-size {config.data.batch_size} does not "
        "divide, and the run would stop: choose a batch that divides by every number of processes",
    )


def slurm(environment: Mapping[str, str], *, nodes: int) -> Finding | None:
    """Compare the job step with the nodes that were named; None outside SLURM."""
    if "SLURM_JOB_ID" not in environment:
        return None
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    allotted = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or "1")
    if tasks > allotted:
        message = (
            f"srun started {tasks} tasks on {counted(allotted, 'node')}: one launcher per node, --ntasks-per-node=1"
        )
        return Finding("error", "SLURM", message)
    if allotted != nodes:
        advice = "pass --nnodes $SLURM_NNODES, and start one launcher on each node by srun"
        return Finding("error", "SLURM", f"the step has {counted(allotted, 'node')} and the launch {nodes}: {advice}")
    return Finding("ok", "SLURM", f"{counted(nodes, 'node')}, one launcher each")


def accelerate_default(environment: Mapping[str, str]) -> Path:
    """Return the file that `accelerate launch` reads when none is named."""
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "accelerate" / "default_config.yaml"


def accelerate_file(path: Path | None, default: Path, *, config: Config, asked: int | None, gpus: int) -> Finding:
    """Look for what Accelerate misreads in its configuration without saying so.

    Args:
        path: the file that the launch names, if any.
        default: the one that Accelerate takes otherwise.
        config: of the run.
        asked: processes that the launch names, which stand above the file's.
        gpus: of this node.
    """
    what = "accelerate"
    if path is None and not default.is_file():
        return Finding("ok", what, "no configuration file; its flags decide")
    chosen = path or default
    fault = _fault_in_launcher(chosen, config=config, asked=asked, gpus=gpus)
    if path is None:
        return Finding(
            "warning",
            what,
            f"`accelerate launch` reads {default} unless --config_file names another: name one, or delete it"
            + (f". That file is not right either: {fault}" if fault else ""),
        )
    return Finding("error", what, f"{path}: {fault}") if fault else Finding("ok", what, f"{path}")


def _fault_in_launcher(path: Path, *, config: Config, asked: int | None, gpus: int) -> str | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return f"it cannot be read: {' '.join(str(error).split())}"
    if not isinstance(content, dict):
        return "it holds no mapping: write one by `accelerate config`"
    for key in WORDS:
        if isinstance(content.get(key), bool):
            return f'{key} is an unquoted no, which YAML reads as false: write {key}: "no"'
    if "distributed_type" not in content:
        return 'distributed_type is missing: write distributed_type: "MULTI_GPU", or "NO" for one process'
    processes = asked or content.get("num_processes")
    return _fault_in_kind(str(content["distributed_type"]), processes, use_cpu=config.runtime.cpu, gpus=gpus)


def _fault_in_kind(kind: str, processes: object, *, use_cpu: bool, gpus: int) -> str | None:
    if processes is None and kind != "NO":
        return f"num_processes is missing, and it has no value for all GPUs: give --num_processes; {FILL_IN}"
    if kind == "MULTI_CPU" or (kind == "NO" and isinstance(processes, int) and processes > 1):
        return (
            f"{kind} starts one process and not {processes}: write MULTI_GPU, and give --runtime.cpu where there are "
            f"no GPUs; CPU_RANKS={processes} {FILL_IN}"
        )
    if kind == "MULTI_GPU" and not gpus and not use_cpu and processes != 1:
        return "MULTI_GPU on a machine without GPUs starts unconnected copies: give --runtime.cpu, or start one process"
    return None
