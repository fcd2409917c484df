"""The process group: the only `Accelerator(...)`, and collectives in which an error of one rank reaches all."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist  # noqa: TID251 - a group in a store that outlives restarts
from accelerate import Accelerator, DataLoaderConfiguration, state, utils

from alexnet_dist.config import Config
from alexnet_dist.distributed.hardware import cpu_threads, keep_freed_memory
from alexnet_dist.distributed.meeting import finding_each_other
from alexnet_dist.distributed.precision import Precision, resolve_precision
from alexnet_dist.distributed.topology import gloo_interface
from alexnet_dist.errors import UserError

T = TypeVar("T")


def make_accelerator(config: Config, store: Any = None) -> tuple[Accelerator, Precision]:  # noqa: ANN401 - as `meeting` has it
    """Form the process group and return the one Accelerator. Every rank must call it.

    Args:
        config: precision, device, and what Accelerate needs.
        store: at which the ranks have met; None leaves that to Accelerate.

    Raises:
        UserError: the processes did not find each other, or the launcher set what belongs to the configuration.
    """
    # ---- the device
    use_cpu = config.runtime.cpu or not torch.cuda.is_available()
    if use_cpu:
        torch.set_num_threads(cpu_threads())
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = True  # every batch has one shape, so its search is paid once
        torch.set_float32_matmul_precision("high")  # TF32, for --runtime.precision fp32
    precision = resolve_precision(config.runtime, use_cpu=use_cpu)
    timeout = timedelta(seconds=config.runtime.timeout_seconds)

    # ---- the group
    if interface := gloo_interface():
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    started = int(os.environ.get("WORLD_SIZE", "1"))
    with finding_each_other(timeout):
        if store is not None:  # else Accelerate forms the group; it uses the one that it finds
            backend, rank = "gloo" if use_cpu else "nccl", int(os.environ["RANK"])
            dist.init_process_group(backend, store=store, rank=rank, world_size=started, timeout=timeout)
        accelerator = _form(config, precision, timeout=timeout)

    # ---- what the launcher made of it
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
    loaders = DataLoaderConfiguration(split_batches=True, even_batches=False, dispatch_batches=False, non_blocking=True)
    return Accelerator(
        cpu=config.runtime.cpu or torch.backends.mps.is_available(),  # Apple's GPUs lack float64, which sums losses
        mixed_precision="no" if precision.name == "fp32" else precision.name,
        dataloader_config=loaders,
        kwargs_handlers=[
            utils.DistributedDataParallelKwargs(
                gradient_as_bucket_view=True,  # saves a copy of the 228 MB of gradients
                static_graph=config.optim.accumulate == 1,  # no_sync changes which steps reduce
                comm_hook=utils.DDPCommunicationHookType(config.runtime.comm_hook.replace("none", "no")),
            ),
            utils.InitProcessGroupKwargs(timeout=timeout),
        ],
    )


def end(accelerator: Accelerator) -> None:
    """Leave the process group and forget Accelerate's state, so that this process can train again, as in a notebook."""
    accelerator.end_training()
    state.AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - its own way for notebooks; none is public


def on_all(compute: Callable[[], None]) -> None:
    """Compute on every rank, which must call it.

    Raises:
        UserError: on every rank, where `compute` raises it on one: it may lie on a host that nobody looks at.
    """
    outcomes = utils.gather_object([_outcome(compute)])
    if first := next((outcome for outcome in outcomes if isinstance(outcome, UserError)), None):
        raise first


def from_main(accelerator: Accelerator, compute: Callable[[], T]) -> T:
    """Compute on rank 0 and return the result on all. Every rank must call it.

    Raises:
        UserError: on every rank, where `compute` raises it on rank 0: no rank is left waiting.
    """
    box = [_outcome(compute) if accelerator.is_main_process else None]
    (result,) = utils.broadcast_object_list(box)
    if isinstance(result, UserError):
        raise result
    return result  # type: ignore[no-any-return] # what rank 0 computed


def _outcome(compute: Callable[[], T]) -> T | UserError:
    """Return the result, or the user's mistake in its place."""
    try:
        return compute()
    except UserError as error:
        return error
