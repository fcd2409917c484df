"""The training loop: `train_epoch` takes optimizer steps and yields their metrics.

It knows nothing about signals, checkpoints or trackers. Between two records no step waits for the device.
"""

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.profiler import record_function

from alexnet_dist import rng
from alexnet_dist.config import OptimConfig
from alexnet_dist.data import Batch, Inputs, augment
from alexnet_dist.training.lr_schedule import LearningRate
from alexnet_dist.training.metrics import Metrics, NonFiniteError, StepWindow
from alexnet_dist.training.progress import Progress
from alexnet_dist.training.step_clock import StepClock, peak_memory

MOST_NAMED_IDS = 10  # an error message should fit on a screen


@dataclass(frozen=True)
class TrainContext:
    """What every optimizer step works with."""

    accelerator: Accelerator
    model: nn.Module
    """As prepared by Accelerate: under DDP where there are several processes."""
    optimizer: Any
    """Accelerate's wrapper; `.optimizer` is torch's."""
    ema: nn.Module | None
    """EMA: an exponential moving average of the weights, which evaluation measures; None without."""
    inputs: Inputs
    learning_rate: LearningRate
    config: OptimConfig
    """Label smoothing, gradient clipping, accumulation and the decay of the average are read from it."""
    seed: int
    flops_per_image: int
    """Floating-point operations of a forward and a backward pass."""
    peak_flops: float
    """Floating-point operations a second in products and convolutions, measured, over all ranks; for the MFU."""

    @property
    def network(self) -> nn.Module:
        """The raw module, without DDP's wrapper."""
        return cast("nn.Module", self.accelerator.unwrap_model(self.model))


def train_epoch(
    context: TrainContext, loader: Collection[Batch], progress: Progress, *, wants_record: Callable[[], bool]
) -> Iterator[Metrics | None]:
    """Take an optimizer step for each batch of the loader. Every rank must exhaust it.

    Args:
        context: network, optimizer and what belongs to them.
        loader: this rank's shares of the global batches that are left of the epoch, or of the run.
        progress: where the run stands; brought up to date before each yield.
        wants_record: called once after each step on every rank; True asks for a record now.

    Yields:
        Once for each step: None, or the means since the last record, equal on all ranks. The last step has a record.
        Where the loader ends before it, the steps since the last record have one after them.

    Raises:
        NonFiniteError: on every rank; the weights are those before the step that it names.
    """
    device = context.accelerator.device
    context.model.train()
    draws = context.inputs.draws(progress.epoch, device)
    window, clock, last_step = StepWindow(), StepClock(device), progress.step + len(loader)
    for batch in clock.timed(loader):
        lr = context.learning_rate(progress.step)
        window.append(train_step(context, batch, draws, step=progress.step, lr=lr))
        clock.end_step()
        progress.step += 1
        progress.batch += 1
        if wants_record() or progress.step == last_step:
            record = {**_report(context, window, clock, progress), "train/lr": lr}
            window = StepWindow()
            yield record
            clock.restart()  # logging and saving are no part of training's time
        else:
            yield None
    if window:
        yield {**_report(context, window, clock, progress), "train/lr": lr}


def train_step(
    context: TrainContext, batch: Batch, draws: torch.Tensor | None, *, step: int, lr: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take one optimizer step. Every rank must call it.

    Args:
        context: network, optimizer and what belongs to them.
        batch: this rank's share of a global batch.
        draws: the epoch's table of augmentation, `Inputs.draws`.
        step: optimizer steps taken before, the position of dropout's random numbers.
        lr: learning rate.

    Returns:
        On the device: losses (B,) float32 and ids (B,) int64 of the images, and the gradient's norm () float32.
    """
    accelerator, parts = context.accelerator, context.config.accumulate
    for group in context.optimizer.param_groups:
        group["lr"] = lr
    losses = []
    for part, piece in enumerate(_parts(batch, parts)):
        with record_function("input"):
            network_input = context.inputs.augmented(piece, draws)
        torch.manual_seed(rng.integer(context.seed, "dropout", step, accelerator.process_index, part))
        is_last = part == parts - 1
        with nullcontext() if is_last else accelerator.no_sync(context.model):
            with record_function("forward"):
                loss = _losses(context.model(network_input).float(), piece, draws, context.config.label_smoothing)
            with record_function("backward"):
                accelerator.backward(loss.sum() / len(batch["ids"]))
        losses.append(loss.detach())
    with record_function("optimizer"):
        norm = _clip(context)
        context.optimizer.step()
        context.optimizer.zero_grad()
        _average(context)
    return torch.cat(losses), batch["ids"], norm


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """Cut a batch into equal parts."""
    for pieces in zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True):  # type: ignore[attr-defined]
        yield dict(zip(batch, pieces, strict=True))  # type: ignore[misc]


def _losses(logits: torch.Tensor, batch: Batch, draws: torch.Tensor | None, smoothing: float) -> torch.Tensor:
    """Return each image's loss (B,): where it is a mixture, that of both labels by their shares."""
    losses = F.cross_entropy(logits, batch["labels"], reduction="none", label_smoothing=smoothing)
    if draws is None or "partner_labels" not in batch:
        return losses
    partners = F.cross_entropy(logits, batch["partner_labels"], reduction="none", label_smoothing=smoothing)
    return partners.lerp(losses, augment.shares(draws[batch["ids"]]))


def _clip(context: TrainContext) -> torch.Tensor:
    """Return the gradient's norm, clip it if asked, and block the optimizer from the first that is not finite.

    After DDP's all-reduce a NaN on one rank is in every rank's gradient, so all block at the same step without a
    message. Fused optimizers read `found_inf`, () float32, on the device and take no step where it is 1 (the protocol
    of torch.amp.GradScaler), so nothing waits. With fp16 the scaler itself skips such steps: an overflow there is a
    matter of scale.
    """
    context.accelerator.unscale_gradients()
    parameters = list(context.model.parameters())
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if context.config.clip_norm is not None:
        clip_grads_with_norm_(parameters, context.config.clip_norm, norm)
    if context.accelerator.scaler is None:
        blocked = context.optimizer.optimizer.found_inf
        torch.maximum(blocked, (~torch.isfinite(norm)).float(), out=blocked)
    return norm


def _average(context: TrainContext) -> None:
    """Move the average of the weights, where there is one, towards those of now; waits for nothing."""
    if context.ema is not None:
        move = get_ema_multi_avg_fn(context.config.ema)  # type: ignore[no-untyped-call]
        move(list(context.ema.parameters()), list(context.network.parameters()), None)


def _report(context: TrainContext, window: StepWindow, clock: StepClock, progress: Progress) -> Metrics:
    """Return the means of the window over all ranks, and bring `progress` up to date. Every rank must call it."""
    accelerator = context.accelerator
    sums = accelerator.reduce(window.loss_sums(), "sum")
    losses, norms = torch.stack([sums, torch.stack([norm for _, _, norm in window]).double()]).tolist()  # waits
    seconds = time.perf_counter() - clock.started
    _check_finite(accelerator, window, losses, norms, first_step=progress.step - len(window) + 1)
    num_images = window.num_images * accelerator.num_processes
    progress.loss_sum += math.fsum(losses)
    progress.samples_seen += num_images
    progress.train_seconds += seconds
    progress.epoch_seconds += seconds
    rate = num_images / seconds
    times, scaler = clock.step_ms(), accelerator.scaler
    return {
        "global_step": progress.step,
        "epoch": progress.epoch + 1,
        "samples_seen": progress.samples_seen,
        "train/loss": math.fsum(losses) / num_images,
        "train/grad_norm": math.fsum(norms) / len(norms),
        "optim/weight_norm": get_total_norm(list(context.model.parameters())).item(),
        **({} if scaler is None else {"optim/loss_scale": scaler.get_scale()}),
        "perf/images_per_second": rate,
        "perf/step_ms": 1000 * seconds / len(window),
        "perf/step_ms_p50": float(np.percentile(times, 50)),
        "perf/step_ms_p95": float(np.percentile(times, 95)),
        "perf/data_wait_pct": 100 * clock.waited / seconds,
        "perf/mfu": rate * context.flops_per_image / context.peak_flops,
        "perf/memory_gib": peak_memory(accelerator.device) / 2**30,
    }


def _check_finite(
    accelerator: Accelerator, window: StepWindow, losses: list[float], norms: list[float], *, first_step: int
) -> None:
    """Raise NonFiniteError for the window's first step with a NaN. Every rank must call it."""
    scaled = accelerator.scaler is not None  # then an infinite norm is an overflow that the scaler deals with
    for index, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
        if math.isfinite(loss) and (scaled or math.isfinite(norm)):
            continue
        images = gather_object(window.images(index))
        suspects = sorted(image for image, its_loss in images if not math.isfinite(its_loss))
        what = "loss" if suspects else "gradient"
        ids = suspects or sorted(image for image, _ in images)
        more = f" and {len(ids) - MOST_NAMED_IDS} more" if len(ids) > MOST_NAMED_IDS else ""
        raise NonFiniteError(
            f"the {what} of step {first_step + index} is not finite (images {ids[:MOST_NAMED_IDS]}{more} of the "
            "training split). The weights are those before that step. Try a lower --optim.lr, a longer "
            "--optim.warmup-epochs, or --optim.clip-norm",
            step=first_step + index,
            images=images,
        )
