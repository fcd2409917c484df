"""The two loops: `train_epoch` and `evaluate`.

Both return or yield plain numbers and log nothing. Between two yielded records no step waits for the device.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from accelerate.utils import gather_object
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.profiler import record_function

from alexnet_dist import rng
from alexnet_dist.data import augment
from alexnet_dist.distributed.hardware import peak_memory
from alexnet_dist.training.metrics import NonFiniteError, StepWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from accelerate import Accelerator
    from torch import nn

    from alexnet_dist.config import OptimConfig
    from alexnet_dist.data.inputs import Preprocess
    from alexnet_dist.data.loader import Batch
    from alexnet_dist.data.sampler import GlobalBatches
    from alexnet_dist.distributed.hardware import Hardware
    from alexnet_dist.distributed.signals import Interrupts
    from alexnet_dist.distributed.watchdog import Heartbeat
    from alexnet_dist.training.ema import Ema
    from alexnet_dist.training.progress import Progress

Record = dict[str, Any]

MOST_NAMED_IDS = 10  # an error message should fit on a screen


@dataclass(frozen=True)
class Job:
    """The prepared parts of a run that the loops work with."""

    accelerator: Accelerator
    hardware: Hardware
    model: nn.Module
    """As prepared: under DDP where there are several processes."""
    optimizer: Any
    """Accelerate's wrapper."""
    ema: Ema | None
    train_loader: Iterable[Batch]
    order: GlobalBatches
    """Which images the train loader hands out, and when."""
    eval_loader: Iterable[Batch]
    num_eval_images: int
    num_eval_batches: int
    """Of the whole split; a rank may get no share of the last."""
    num_classes: int
    preprocess: Preprocess
    learning_rate: Callable[[int], float]
    optim: OptimConfig
    seed: int
    log_every: int
    save_every: int | None
    last_step: int
    """Where training ends, in the middle of an epoch or not."""
    flops_per_image: int
    interrupts: Interrupts
    heartbeat: Heartbeat
    blocked: torch.Tensor
    """() float32 on the device: 1 from the first non-finite gradient on; the fused optimizer then takes no step."""

    def saves_at(self, progress: Progress) -> bool:
        """Tell whether a checkpoint is due in the middle of an epoch; at its end it waits for the evaluation."""
        return self.save_every is not None and progress.step % self.save_every == 0 and not self.ends_at(progress)

    def is_done(self, progress: Progress) -> bool:
        """Tell whether all steps are taken and the last evaluation is over."""
        return progress.step >= self.last_step and progress.evaluated == progress.step

    def ends_at(self, progress: Progress) -> bool:
        """Tell whether the epoch, or the run, ends with the step just taken."""
        return progress.batch == self.order.num_batches or progress.step == self.last_step


class _Clock:
    """Seconds since the last record, how many of them went into waiting for data, and how long each step took."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self.started, self.waited = time.perf_counter(), 0.0
        self._marks = [self._mark()]

    def end_step(self) -> None:
        self._marks.append(self._mark())

    def _mark(self) -> Any:  # noqa: ANN401 - a moment of the host, or one of the device, behind which the host runs ahead
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # torch has no types there
        event.record()
        return event

    def step_ms(self) -> list[float]:
        """Return each step's milliseconds; on a GPU, after it has been waited for."""
        steps = pairwise(self._marks)
        return [a.elapsed_time(b) for a, b in steps] if self._on_gpu else [1000 * (b - a) for a, b in steps]

    def timed(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        iterator = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


def train_epoch(job: Job, progress: Progress) -> Iterator[Record | None]:
    """Train from where `progress` stands to the end of the epoch. Every rank must exhaust it.

    Yields:
        Once per optimizer step, `progress` being up to date: None, or every `log_every` steps, at the last step and
        where a checkpoint is due or asked for, the means since the last record, equal on all ranks.

    Raises:
        NonFiniteError: on every rank; the weights are those before the step that it names.
    """
    if progress.step == job.last_step:  # the run was stopped between its last step and the evaluation
        return
    job.model.train()
    draws = job.preprocess.draws(progress.epoch)
    draws = draws if draws is None else draws.to(job.accelerator.device)
    job.order.set_position(epoch=progress.epoch, batch=progress.batch)
    window, clock = StepWindow(), _Clock(job.accelerator.device)
    for batch in clock.timed(job.train_loader):
        lr = job.learning_rate(progress.step)
        job.heartbeat.beat()
        window.add(*_train_step(job, batch, draws, step=progress.step, lr=lr))
        clock.end_step()
        progress.step += 1
        progress.batch += 1
        saves = bool(job.interrupts.agree()) or job.saves_at(progress)
        if saves or job.ends_at(progress) or progress.step % job.log_every == 0:
            record = {**_report(job, window, clock, progress), "train/lr": lr}
            window = StepWindow()
            clock.restart()
            yield record
            if saves:
                clock.restart()  # logging is part of training's time, a checkpoint is not
        else:
            yield None
        if progress.step == job.last_step:
            return


def _train_step(
    job: Job, batch: Batch, draws: torch.Tensor | None, *, step: int, lr: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take one optimizer step; return per-image losses (B,), ids (B,) and the gradient's norm (), on the device."""
    for group in job.optimizer.param_groups:
        group["lr"] = lr
    share = len(batch["ids"])
    losses = []
    for part, piece in enumerate(_parts(batch, job.optim.accumulate)):
        with record_function("input"):
            network_input = inputs(job, piece, draws)
        torch.manual_seed(rng.integer(job.seed, "dropout", step, job.accelerator.process_index, part))
        is_last = part == job.optim.accumulate - 1
        with nullcontext() if is_last else job.accelerator.no_sync(job.model):
            with record_function("forward"):
                loss = _losses(job, job.model(network_input).float(), piece, draws)
            job.heartbeat.beat()
            with record_function("backward"):
                job.accelerator.backward(loss.sum() / share)
        losses.append(loss.detach())
    with record_function("optimizer"):
        norm = _clip(job)
        job.optimizer.step()
        job.optimizer.zero_grad()
        if job.ema is not None:
            job.ema.update(job.accelerator.unwrap_model(job.model))
    return torch.cat(losses), batch["ids"], norm


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """Cut a batch into equal parts."""
    for pieces in zip(*(tensor.chunk(count) for tensor in batch.values()), strict=True):  # type: ignore[attr-defined]
        yield dict(zip(batch, pieces, strict=True))  # type: ignore[misc]


def inputs(job: Job, batch: Batch, draws: torch.Tensor | None) -> torch.Tensor:
    """Return the network's input, mixed with the partners' images where the batch has partners."""
    if draws is None:
        return job.preprocess(batch["images"])
    if "partner_ids" not in batch:
        return job.preprocess(batch["images"], draws[batch["ids"]])
    return job.preprocess(batch["images"], draws[batch["ids"]], (batch["partner_images"], draws[batch["partner_ids"]]))


def _losses(job: Job, logits: torch.Tensor, batch: Batch, draws: torch.Tensor | None) -> torch.Tensor:
    """Return each image's loss (B,): where it is a mixture, that of both labels by their shares."""
    smoothing = job.optim.label_smoothing
    losses = F.cross_entropy(logits, batch["labels"], reduction="none", label_smoothing=smoothing)
    if draws is None or "partner_labels" not in batch:
        return losses
    partners = F.cross_entropy(logits, batch["partner_labels"], reduction="none", label_smoothing=smoothing)
    return partners.lerp(losses, augment.shares(draws[batch["ids"]]))


def _clip(job: Job) -> torch.Tensor:
    """Return the gradient's norm, clip it if asked, and block the optimizer from the first that is not finite.

    After DDP's all-reduce a NaN on one rank is in every rank's gradient, so all block at the same step without a
    message. Fused optimizers read `found_inf` on the device (the protocol of torch.amp.GradScaler), so nothing waits.
    With fp16 the scaler itself skips such steps: an overflow there is a matter of scale.
    """
    job.accelerator.unscale_gradients()
    parameters = list(job.model.parameters())
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if job.optim.clip_norm is not None:
        clip_grads_with_norm_(parameters, job.optim.clip_norm, norm)
    if job.accelerator.scaler is None:
        torch.maximum(job.blocked, (~torch.isfinite(norm)).float(), out=job.blocked)
        job.optimizer.optimizer.found_inf = job.blocked
    return norm


def _report(job: Job, window: StepWindow, clock: _Clock, progress: Progress) -> Record:
    """Sum the window over ranks, fetch it at once, and bring `progress` up to date. Every rank must call it."""
    sums = job.accelerator.reduce(window.loss_sums(), "sum")
    losses, norms = torch.stack([sums, torch.stack(window.gradient_norms).double()]).tolist()  # waits for the device
    seconds = time.perf_counter() - clock.started
    _check_finite(job, window, losses, norms, first_step=progress.step - len(window) + 1)
    num_images = len(window) * job.order.batch_size
    progress.loss_sum += math.fsum(losses)
    progress.samples_seen += num_images
    progress.train_seconds += seconds
    progress.epoch_seconds += seconds
    rate = num_images / seconds
    times = clock.step_ms()
    scaler = job.accelerator.scaler
    return {
        "global_step": progress.step,
        "epoch": progress.epoch + 1,
        "samples_seen": progress.samples_seen,
        "train/loss": math.fsum(losses) / num_images,
        "train/grad_norm": math.fsum(norms) / len(norms),
        "optim/weight_norm": get_total_norm(list(job.model.parameters())).item(),
        **({} if scaler is None else {"optim/loss_scale": scaler.get_scale()}),
        "perf/images_per_second": rate,
        "perf/step_ms": 1000 * seconds / len(window),
        "perf/step_ms_p50": float(np.percentile(times, 50)),
        "perf/step_ms_p95": float(np.percentile(times, 95)),
        "perf/data_wait_pct": 100 * clock.waited / seconds,
        "perf/mfu": rate * job.flops_per_image / job.hardware.peak_flops,
        "perf/memory_gib": peak_memory(job.accelerator.device) / 2**30,
    }


def _check_finite(job: Job, window: StepWindow, losses: list[float], norms: list[float], *, first_step: int) -> None:
    scaled = job.accelerator.scaler is not None  # then an infinite norm is an overflow that the scaler deals with
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
