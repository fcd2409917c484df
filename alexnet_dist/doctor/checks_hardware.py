"""Checks of one machine's devices, processes and launcher configuration; each returns a `CheckResult`.

No check forms a process group, leaves a file behind, or waits without a deadline.
"""

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from alexnet_dist.config import Config, RuntimeConfig
from alexnet_dist.distributed import hardware, launch_checks, resolve_precision
from alexnet_dist.doctor.check_result import CheckResult, error, ok, warning
from alexnet_dist.errors import UserError, first_line

DRIVER = Path("/proc/driver/nvidia/version")
SMALL_SHM = 1 << 30  # bytes; NCCL's documentation asks for 1 GB in containers, whose default is 64 MB
# Fields of an Accelerate configuration whose values are words; YAML reads an unquoted `no` as false.
WORDS = ("compute_environment", "distributed_type", "dynamo_backend", "gpu_ids", "mixed_precision", "rdzv_backend")


@dataclass(frozen=True)
class Gpus:
    """GPUs that torch can use, and the driver and CUDA versions that explain why it finds none."""

    names: tuple[str, ...]
    driver: str | None
    cuda: str | None
    """CUDA version of torch's build; None for a CPU build."""
    nccl: str | None
    """NCCL version of torch's build; None for a CPU build."""
    trouble: str
    """torch's warning when it finds no GPU; empty without one."""


def counted(number: int, noun: str) -> str:
    """Return `1 process` or `2 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


# ---- devices --------------------------------------------------------------------------------------------------------


def find_gpus() -> Gpus:
    """Return the GPUs of this node, by torch and the driver; a warning of torch is caught."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    driver = re.search(r"\d+\.\d+(\.\d+)?", DRIVER.read_text(encoding="utf-8") if DRIVER.exists() else "")
    names = tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) if available else ()
    trouble = next((first_line(found.message) for found in caught if isinstance(found.message, Warning)), "")
    return Gpus(names, driver[0] if driver else None, torch.version.cuda, nccl_version(), trouble)


def nccl_version() -> str | None:
    """Return the NCCL version of torch's build; None for a CPU build."""
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None  # type: ignore[no-untyped-call]


def gpus(found: Gpus, environment: Mapping[str, str], *, use_cpu: bool, processes: int) -> CheckResult:
    """Check that each process of this node has a GPU, or that a CPU is asked for."""
    what, count = "GPUs", len(found.names)
    built = f"CUDA {found.cuda}, NCCL {found.nccl}" if found.cuda else "torch built without CUDA"
    if use_cpu:
        return ok(what, f"{count or 'none'}, not used: --runtime.cpu")
    if count and processes > count:
        remedy = f"start {count}, one per GPU, or give --runtime.cpu"
        return error(what, f"{processes} processes on this node and {counted(count, 'GPU')}: {remedy}")
    if count:
        kinds = ", ".join(f"{found.names.count(name)} x {name}" for name in dict.fromkeys(found.names))
        return ok(what, f"{kinds}; driver {found.driver or 'unknown'}, {built}")
    if environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return warning(what, "hidden by CUDA_VISIBLE_DEVICES: the CPU trains. Unset it to use them")
    if found.driver:
        fault = f"there is a driver, {found.driver}, and torch finds no GPU{found.trouble and f' ({found.trouble})'}"
        return error(what, f"{fault}; {built}: update the driver, install the torch made for it, or give --runtime.cpu")
    return ok(what, f"none: the CPU trains; {built}")


def precision(config: RuntimeConfig, *, use_cpu: bool) -> CheckResult:
    """Check the compute dtype: an error if it is impossible, a warning if a GPU has no bf16."""
    try:
        chosen = resolve_precision(config, use_cpu=use_cpu)
    except UserError as fault:
        return error("precision", str(fault))
    if chosen.name == "fp16" and config.precision == "auto":
        return warning("precision", f"fp16 ({chosen.reason}): if the loss becomes NaN, lower --optim.lr")
    return ok("precision", f"{chosen.name} ({chosen.reason})")


def cpu_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Return the number of cores that a container may use; None without a limit."""
    try:
        quota, period = path.read_text(encoding="utf-8").split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # "max 100000" too
        return None


def threads(environment: Mapping[str, str], *, use_cpu: bool, quota: float | None, processes: int) -> CheckResult:
    """Check that the threads of this node's processes are no more than its cores.

    Args:
        environment: with OMP_NUM_THREADS, if it is set.
        use_cpu: whether the processes compute on the CPU; a process on a GPU keeps one core busy.
        quota: number of cores that the container may use; None without a limit.
        processes: number of processes of this node.
    """
    cores, wished = hardware.cpu_cores(), environment.get("OMP_NUM_THREADS")
    of_cores, of_processes = counted(cores, "core"), counted(processes, "process")
    if not use_cpu:
        return ok("threads", f"{of_cores} for {of_processes} on GPUs")
    each = hardware.cpu_threads({**environment, "LOCAL_WORLD_SIZE": str(processes)})
    usable = cores if quota is None else min(cores, max(1, int(quota)))
    plan = f"{each} for each of {of_processes} on {of_cores}"
    if wished is not None and not wished.isdigit():
        return warning("threads", f"OMP_NUM_THREADS={wished} is no number and is ignored: unset it. {plan}")
    if each * processes <= usable:
        return ok("threads", plan)
    limited = usable < cores
    if wished == str(each) and each > 1:
        remedy = f"Set OMP_NUM_THREADS={max(2, usable // processes)}" if limited else "Unset OMP_NUM_THREADS"
    else:
        remedy = f"Raise its limit, or pin it by taskset -c 0-{usable - 1}" if limited else "Start fewer processes"
    share = f", of which the container may use {quota:g}" if limited else ""
    return warning("threads", f"{plan}{share}: they wait for each other. {remedy}")


def shared_memory(path: Path = Path("/dev/shm"), *, gpu_processes: int) -> CheckResult | None:  # noqa: S108 - is read
    """Check the size of /dev/shm, which NCCL uses between processes of a node; None for fewer than two on GPUs."""
    if gpu_processes < 2 or not path.is_dir():
        return None
    if (size := shutil.disk_usage(path).total) < SMALL_SHM:
        remedy = "start the container with --shm-size=1g or --ipc=host"
        return warning("shared mem", f"{path} has {size / 1e6:,.0f} MB, and NCCL may need 1 GB: {remedy}")
    return ok("shared mem", f"{path} has {size / 1e9:.1f} GB")


# ---- processes ------------------------------------------------------------------------------------------------------


def world(environment: Mapping[str, str], config: Config, *, asked: int | None, nodes: int) -> CheckResult:
    """Check the world size: the launcher forms as many processes as asked for, and the global batch divides by them.

    Args:
        environment: of this process, with the variables of its launcher, if any.
        config: of the run.
        asked: number of processes on all nodes, by `--num-processes`; None without it.
        nodes: number of nodes.
    """
    started = environment.get("WORLD_SIZE")
    launched = started is not None or "ACCELERATE_MIXED_PRECISION" in environment
    formed = int(started or 1) if launched else asked or nodes
    if started is not None and not {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        return error("world", f"WORLD_SIZE={started} is left over from another launch: unset it")
    if asked is not None and formed != asked:
        fault = f"{asked} processes were asked for and the launcher started {formed}"
        cause = "`accelerate launch --cpu` and MULTI_CPU start one whatever --num_processes says"
        remedy = f"`--multi_gpu --num_processes {asked}` and --runtime.cpu, as CPU_RANKS={asked} launch/node.sh does"
        return error("world", f"{fault}: {cause}. For CPU processes give {remedy}")
    if formed % nodes:
        return error("world", f"{formed} processes on {nodes} nodes: --num-processes counts those of all")
    try:
        launch_checks.check_processes(config, {**environment, "WORLD_SIZE": str(formed)})
    except UserError as refusal:
        return error("world", str(refusal))
    share = f"{config.data.batch_size // formed} images of each batch for each"
    return ok("world", f"{counted(formed, 'process')} on {counted(nodes, 'node')}, {share}")


def fewer_nodes(config: Config, *, processes: int, least: int, most: int) -> CheckResult | None:
    """Check that the global batch divides when nodes leave; None if it does, or if none may leave."""
    per_node, share = processes // most, config.optim.accumulate
    stuck = [nodes for nodes in range(least, most) if config.data.batch_size % (nodes * per_node * share)]
    if not stuck:
        return None
    fault = f"--data.batch-size {config.data.batch_size} does not divide, and the run would stop"
    remedy = "choose a batch that divides by every number of processes"
    return warning("world", f"with {' or '.join(map(str, stuck))} of {most} nodes {fault}: {remedy}")


def slurm(environment: Mapping[str, str], *, nodes: int) -> CheckResult | None:
    """Check that the SLURM job step has one launcher on each node; None outside SLURM."""
    if "SLURM_JOB_ID" not in environment:
        return None
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    allotted = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or "1")
    if tasks > allotted:
        return error("SLURM", f"srun started {tasks} tasks on {counted(allotted, 'node')}: give --ntasks-per-node=1")
    if allotted != nodes:
        remedy = "pass --nnodes $SLURM_NNODES, and start one launcher on each node by srun"
        return error("SLURM", f"the step has {counted(allotted, 'node')} and the launch {nodes}: {remedy}")
    return ok("SLURM", f"{counted(nodes, 'node')}, one launcher each")


# ---- Accelerate's configuration -------------------------------------------------------------------------------------


def accelerate_default(environment: Mapping[str, str]) -> Path:
    """Return the path of the file that `accelerate launch` reads if no other is named."""
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "accelerate" / "default_config.yaml"


def accelerate_file(path: Path | None, default: Path, *, config: Config, asked: int | None, gpus: int) -> CheckResult:
    """Check the Accelerate configuration for mistakes at which Accelerate gives no error.

    Args:
        path: the file that the launch names; None without one.
        default: the file that Accelerate reads if `path` is None.
        config: of the run.
        asked: number of processes by `--num-processes`, which overrides the file's; None without it.
        gpus: number of GPUs of this node.
    """
    if path is None and not default.is_file():
        return ok("accelerate", "no configuration file; its flags decide")
    fault = _fault_in_launcher(path or default, config=config, asked=asked, gpus=gpus)
    if path is None:
        message = f"`accelerate launch` reads {default} unless --config_file names another: name one, or delete it"
        return warning("accelerate", message + (f". That file is not right either: {fault}" if fault else ""))
    return error("accelerate", f"{path}: {fault}") if fault else ok("accelerate", f"{path}")


def _fault_in_launcher(path: Path, *, config: Config, asked: int | None, gpus: int) -> str | None:
    """Return the first fault of an Accelerate configuration, with its remedy; None without a fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        return f"it cannot be read: {' '.join(str(fault).split())}"
    if not isinstance(content, dict):
        return "it holds no mapping: write one by `accelerate config`"
    if key := next((word for word in WORDS if isinstance(content.get(word), bool)), None):
        return f'{key} is an unquoted no, which YAML reads as false: write {key}: "no"'
    if "distributed_type" not in content:
        return 'distributed_type is missing: write distributed_type: "MULTI_GPU", or "NO" for one process'
    processes = asked or content.get("num_processes")
    return _fault_in_kind(str(content["distributed_type"]), processes, use_cpu=config.runtime.cpu, gpus=gpus)


def _fault_in_kind(kind: str, processes: object, *, use_cpu: bool, gpus: int) -> str | None:
    """Return the fault of a `distributed_type` with this number of processes and GPUs; None without a fault."""
    if processes is None and kind != "NO":
        return "num_processes is missing, and no value means all GPUs: give --num_processes, as launch/node.sh does"
    if kind == "MULTI_CPU" or (kind == "NO" and isinstance(processes, int) and processes > 1):
        remedy = f"write MULTI_GPU, and on CPUs give --runtime.cpu, as CPU_RANKS={processes} launch/node.sh does"
        return f"{kind} starts one process and not {processes}: {remedy}"
    if kind == "MULTI_GPU" and not gpus and not use_cpu and processes != 1:
        return "MULTI_GPU on a machine without GPUs starts unconnected copies: give --runtime.cpu, or start one process"
    return None
