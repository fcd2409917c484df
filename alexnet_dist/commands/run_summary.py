"""A run in words: its facts, the run card, the line of each epoch, summary.json and the result card.

Turns values into words and dicts; measures, prints and writes nothing.
"""

import math
import platform

import accelerate
import torch

from alexnet_dist import __version__
from alexnet_dist.commands.train_setup import TrainRun
from alexnet_dist.config import Config, DataConfig, ModelConfig, OptimConfig
from alexnet_dist.data import ImageData, Inputs, augment
from alexnet_dist.distributed import Hardware, topology
from alexnet_dist.distributed.hardware import processor
from alexnet_dist.models import num_parameters
from alexnet_dist.text import duration
from alexnet_dist.tracking import Record, git_commit
from alexnet_dist.training import Plan, Progress, TrainContext

COLLAPSE_ADVICE = (
    "So ended the lecture's recorded run (10.000 %). In the first epochs it may pass; if it stays, try a lower "
    "--optim.lr or a longer --optim.warmup-epochs, and look at the labels"
)
NOTHING_MOVED = (
    "No kernel has moved since the start: the optimizer does not hold this network's parameters (a layer was replaced "
    "after it was built?), or the learning rate is too small to change a number"
)
GUESSING = 0.005  # nats: the lecture's recorded loss, 2.304, is this close to ln 10


def facts(config: Config, dataset: ImageData, context: TrainContext, plan: Plan, hardware: Hardware) -> Record:
    """Return what describes a run besides its configuration, ready for JSON."""
    return {
        "num_parameters": num_parameters(context.network),
        "num_train_images": len(dataset.train),
        "num_eval_images": len(dataset.test),
        "evaluated_on": dataset.evaluated_on,
        "num_classes": len(dataset.class_names),
        "dataset": dataset.name,
        "fallback_for": dataset.fallback_for,
        "fingerprint": dataset.fingerprint,
        "world_size": hardware.world_size,
        "global_batch_size": config.data.batch_size,
        "steps_per_epoch": plan.steps_per_epoch,
        "precision": hardware.precision.name,
        "device": hardware.device,
        "processor": processor(),
        "cpu_threads": hardware.threads,
        "peak_tflops": hardware.peak_flops / 1e12,
        "flops_per_image": context.flops_per_image,
        "versions": {
            "alexnet_dist": __version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
        },
        "git_commit": git_commit(),
    }


def tags(facts: Record) -> list[str]:
    """Return what the run is filed under beside its configuration."""
    num = facts["world_size"]
    return [facts["dataset"], facts["precision"], "1 process" if num == 1 else f"{num} processes"]


def run_card(run: TrainRun, progress: Progress, hardware: Hardware) -> dict[str, str]:
    """Return the rows that are shown before training starts."""
    config, facts, plan = run.config, run.log.facts, run.plan
    batch_size, spec = config.data.batch_size, run.context.inputs.spec
    processes = "1 process" if hardware.world_size == 1 else f"{hardware.world_size} processes (DDP)"
    threads = f", {hardware.threads} threads each" if hardware.device == "CPU" else ""
    stands_in = f" (FALLBACK for {facts['fallback_for']})" if facts["fallback_for"] else ""
    parts = f" in {config.optim.accumulate} parts" if config.optim.accumulate > 1 else ""
    begin = f"continues after step {progress.step}" if progress.step else "begins"
    left_over = facts["num_train_images"] % batch_size
    return {
        "data": f"{facts['dataset']}{stands_in}: {facts['num_train_images']:,} training and "
        f"{facts['num_eval_images']:,} {facts['evaluated_on']} images, {facts['num_classes']} classes",
        **{f"data, note {number}": note for number, note in enumerate(run.dataset.notes, 1)},
        "input": (f"{spec.stored_size}x{spec.stored_size}" if spec.fit == "enlarge" else "photographs")
        + f" -> {config.data.image_size}x{config.data.image_size}, "
        + ("normalised, " if config.data.normalize else "in [0, 1], ")
        + _augmentation(config.data, run.context.inputs),
        "network": f"AlexNet, {facts['num_parameters']:,} parameters" + _conv1(config.model),
        "hardware": f"{processes} on {hardware.device}{threads}, products and convolutions "
        f"at up to {hardware.peak_flops / 1e12:.2f} TFLOP/s in all",
        **({"hosts": topology.words(facts)} if hardware.world_size > 1 else {}),
        "precision": f"{hardware.precision.name} ({hardware.precision.reason})",
        "batch": f"{batch_size} in all, {batch_size // hardware.world_size} per process{parts}",
        "steps": f"{plan.steps_per_epoch} an epoch, {config.epochs} epochs"
        + (f", stopping after step {plan.last_step}" if plan.last_step < config.epochs * plan.steps_per_epoch else "")
        + (f"; {left_over} images of each epoch's order do not fill a batch" if left_over else ""),
        "optimizer": _optimizer(config.optim)
        + f", lr {run.context.learning_rate.peak_lr:g} {config.optim.schedule}"
        + (f", evaluates an average of weights ({config.optim.ema:g})" if config.optim.ema else ""),
        "tracking": run.log.tracking,
        "run folder": f"{config.out_dir} ({begin})",
    }


def _conv1(config: ModelConfig) -> str:
    """Say how conv1's random weights are drawn, where that is not as usual."""
    scaled = config.conv1_init_scale != 1 and not config.pretrained and config.weights is None
    return f", conv1's initial weights times {config.conv1_init_scale:g}" if scaled else ""


def _optimizer(config: OptimConfig) -> str:
    """Name the optimizer, and the layers that Muon takes."""
    return f"{config.name} ({config.muon_layers})" if config.name == "muon" else config.name


def collapse_words(collapse: str, record: Record, *, num_classes: int, moved: bool) -> str:
    """Say what a collapse looks like and what to do about it.

    Args:
        collapse: in what way nothing was learned (`Evaluation.collapse`).
        record: of the epoch.
        num_classes: of the data set.
        moved: whether training has changed any kernel.
    """
    if not moved:
        return f"{collapse}. {NOTHING_MOVED}"
    loss = record["train/epoch_loss"]
    guesses = abs(loss - math.log(num_classes)) < GUESSING
    detail = f", and the training loss, {loss:.4f}, is that of guessing, ln {num_classes}" if guesses else ""
    return f"{collapse}{detail}. {COLLAPSE_ADVICE}"


def _augmentation(config: DataConfig, inputs: Inputs) -> str:
    """Return what is done to training images; a cutout or a shift of small images may be less than a pixel."""
    does, fit = inputs.augment, inputs.spec.fit
    if does is None:
        return "as stored" if fit == "enlarge" else "centre crops"
    least = config.resized_crop if fit == "enlarge" else config.crop_scale
    crops = f"random resized crops from {least:g} of the area" if least else "cropped"
    moves = [crops] * (least is not None or augment.max_shift(does.source_size) > 0) + ["mirrored"] * does.flips
    cutout = config.cutout if round(does.cutout * does.source_size) else None
    more = {"cutout": cutout, "mixup": config.mixup, "cutmix": config.cutmix, "colours": config.pca_color}
    words = [" and ".join(moves), *(f"{name} {value:g}" for name, value in more.items() if value)]
    return ", ".join(filter(None, words)) or "as stored"


def epoch_line(record: Record, *, epochs: int, split: str) -> str:
    """Return the lecture's line: training loss, accuracy in percent on the split that is evaluated, seconds."""
    return (
        f"epoch {record['epoch']}/{epochs}  training loss {record['train/epoch_loss']:.4f}  "
        f"{split} loss {record['val/loss']:.4f}  {split} accuracy {record['val/top1']:.3%}  "
        f"{duration(record['perf/epoch_seconds'])}"
    )


def summary(facts: Record, progress: Progress, *, status: str) -> Record:
    """Return the content of summary.json."""
    return {
        "status": status,
        "best_top1": progress.best_top1,
        "best_epoch": progress.best_epoch,
        "final_top1": progress.top1,
        "final_top1_flip_tta": progress.top1_flip_tta,
        "final_train_loss": progress.epoch_loss,
        "epochs": progress.epoch,
        "global_step": progress.step,
        "images_per_second": progress.samples_seen / progress.train_seconds if progress.train_seconds else None,
        "wall_seconds": progress.wall_seconds,
        **facts,
    }


def summary_sentence(summary: Record) -> str:
    """Return a finished run's result as a sentence."""
    return (
        f"{summary['dataset']}: top-1 {summary['final_top1'] or 0:.2%} after {summary['global_step']} steps, "
        f"{summary['best_top1'] or 0:.2%} at best (epoch {summary['best_epoch']}), {duration(summary['wall_seconds'])}"
    )


def result_card(summary: Record, progress: Progress, config: Config, tracking: str) -> dict[str, str]:
    """Return the rows that are shown at the end."""
    mfu = summary["images_per_second"] * summary["flops_per_image"] / summary["peak_tflops"] / 1e12
    return {
        "status": summary["status"],
        "top-1": f"{progress.top1 or 0:.3%} at the end, "
        f"{progress.best_top1 or 0:.3%} at best (epoch {progress.best_epoch})"
        + (f"; {progress.top1_flip_tta:.3%} with flip TTA" if progress.top1_flip_tta is not None else ""),
        "time": f"{duration(progress.wall_seconds)} for {progress.step} steps",
        "speed": f"{summary['images_per_second']:,.0f} images/s while training, MFU {mfu:.2f}"
        + (": above 1, as the peak measured at the start is too low" if mfu > 1 else ""),
        "tracking": tracking,
        "files": f"{config.out_dir}: report.html, metrics.jsonl, summary.json, figures/, checkpoints/",
    }
