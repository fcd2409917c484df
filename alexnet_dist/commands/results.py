"""What a run leaves besides its checkpoints: an evaluation's records and pictures, and the evidence of a NaN."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from alexnet_dist import atomic_files
from alexnet_dist.commands import media, run_summary, train_setup
from alexnet_dist.commands.train_setup import TrainRun
from alexnet_dist.config import to_dict
from alexnet_dist.errors import UserError
from alexnet_dist.models import weights
from alexnet_dist.tracking import run_dir
from alexnet_dist.training import Evaluation, Metrics, NonFiniteError, Progress, checkpoint
from alexnet_dist.visualization import kernel_images, plots

logger = logging.getLogger(__name__)

BEST = "best_kernels.safetensors"
"""File of `figures/`: the kernels of the best epoch so far while it has no pictures, and its `epoch` and `global_step`.
They are drawn at the end of the run: pictures that a tracker has cannot be taken back when a better epoch comes."""
PLACE = ("epoch", "global_step")


def report_epoch(run: TrainRun, progress: Progress, record: Metrics, evaluation: Evaluation) -> Callable[[], None]:
    """Record an epoch's results and, when they are due, its pictures and tables.

    Returns:
        What prints the epoch's line, to be called when the epoch's checkpoint is on the disk.
    """
    log, names = run.log, run.dataset.class_names
    record |= media.per_class(evaluation, names)
    if log.enabled:
        now = kernel_images.snapshot(run.context.network)
        numbers = kernel_images.numbers(run.kernels_before, now)
        record |= {f"kernels/{name}": number for name, number in numbers.items()}
        is_last = record["global_step"] == run.plan.last_step
        is_drawn = is_last or run.plan.draws_at(record["epoch"])
        if progress.best_epoch == record["epoch"] and run.plan.draw_every is None:
            _keep_best(log.folder, record, now, is_drawn=is_drawn)
        if is_last:
            _show_best(run, progress)
        if is_drawn:
            _show(run, record, now, evaluation)
        if is_last:
            log.table(record, "errors", lambda: media.mistakes_table(run.dataset, evaluation))
    log.log(record)
    words = ""
    if log.enabled and (collapse := evaluation.collapse()):
        moved = kernel_images.moved(run.kernels_before, now)
        words = run_summary.collapse_words(collapse, record, num_classes=len(names), moved=moved)
        log.alert("Nothing learned", words, level="WARN")

    def tell() -> None:
        run.console.print(run_summary.epoch_line(record, epochs=run.config.epochs, split=run.dataset.evaluated_on))
        if words:
            run.console.warn(f"THE NETWORK HAS LEARNED NOTHING: {words}")

    return tell


def _show(run: TrainRun, record: Metrics, now: kernel_images.Weights, evaluation: Evaluation) -> None:
    """Draw and send an epoch's pictures and its confusion matrix, and write evaluation.json."""
    log, names = run.log, run.dataset.class_names
    _show_kernels(run, record, now)
    log.confusion(record, evaluation.confusion, names)
    log.write("evaluation.json", media.evaluation_file(record, evaluation, names))
    log.show(record, lambda: media.answer_sheets(run.dataset, evaluation), send=False)


def _show_kernels(run: TrainRun, record: Metrics, now: kernel_images.Weights) -> None:
    before, chosen = run.kernels_before, run.config.log.conv2_kernel
    run.log.show(record, lambda: media.kernel_media(before, now, record, conv2_kernel=chosen))


def _keep_best(folder: Path, record: Metrics, now: kernel_images.Weights, *, is_drawn: bool) -> None:
    """Keep the kernels of the best epoch so far in place of those kept before; nothing where it has pictures."""
    try:
        path = run_dir.private_folder(folder, "figures") / BEST
        if is_drawn:
            path.unlink(missing_ok=True)
        else:
            with atomic_files.whole(path) as scratch:
                weights.write(scratch, now | {key: torch.tensor(record[key]) for key in PLACE}, metadata=None)
    except OSError as error:
        logger.warning("the best epoch may get no pictures: %s", error)


def _show_best(run: TrainRun, progress: Progress) -> None:
    """Draw and send the pictures of the best epoch, where its kernels were kept."""
    path = run.log.folder / "figures" / BEST
    with contextlib.suppress(OSError, UserError):
        kept, _ = weights.read_any(path, named_by="the best epoch's kernels,")
        path.unlink()
        record = {key: int(kept.pop(key)) for key in PLACE}
        if record["epoch"] == progress.best_epoch:  # else of an epoch after the checkpoint that the run went on from
            _show_kernels(run, record, kept)


def draw(run: TrainRun, evaluation: Evaluation) -> None:
    """Draw the curves and the confusion matrix."""
    if run.log.enabled:
        folder = run_dir.private_folder(run.log.folder, "figures")
        split, names = run.dataset.evaluated_on, run.dataset.class_names
        records = run_dir.records(run.log.folder / "metrics.jsonl")
        plots.save_curves(records, folder, num_classes=len(names), split=split)
        plots.save_confusion(evaluation.confusion, names, folder / "confusion.png")


def keep_evidence(run: TrainRun, progress: Progress, error: NonFiniteError) -> None:
    """Write into `non_finite/` what a non-finite step can be computed again from: weights, images, random numbers."""
    if not run.log.enabled:
        return
    context = run.context
    ids, losses = (list(column) for column in zip(*error.images, strict=True))
    partner = run.loaders.order.partner_table()
    indices = ids if partner is None else [[image, int(partner[image])] for image in ids]
    images = train_setup.gather(run.config, run.dataset, indices, epoch=progress.epoch)
    batch: dict[str, Any] = {**images, "losses": torch.tensor(losses)}
    draws = context.inputs.draws(progress.epoch, torch.device("cpu"))
    if draws is not None:
        batch["draws"] = draws[batch["ids"]]
        if partner is not None:
            batch["partner_draws"] = draws[batch["partner_ids"]]
    report = {
        "error": str(error),
        "step": error.step,
        "epoch": progress.epoch + 1,
        "learning_rate": context.learning_rate(error.step - 1),
        "world_size": context.accelerator.num_processes,
        "config": to_dict(run.config),
    }
    folder = run.log.folder / "non_finite" / f"step_{error.step:08d}"
    checkpoint.save_evidence(folder, model=context.network, batch=batch, report=report)
