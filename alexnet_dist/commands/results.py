"""What a run leaves besides its checkpoints: an evaluation's records and pictures, and the evidence of a NaN."""

from collections.abc import Callable
from typing import Any

import torch

from alexnet_dist.commands import media, run_summary, train_setup
from alexnet_dist.commands.train_setup import TrainRun
from alexnet_dist.config import to_dict
from alexnet_dist.tracking import run_dir
from alexnet_dist.training import Evaluation, Metrics, NonFiniteError, Progress, checkpoint
from alexnet_dist.visualization import kernel_images, plots


def report_epoch(run: TrainRun, record: Metrics, evaluation: Evaluation) -> Callable[[], None]:
    """Record an epoch's results and, when they are due, its pictures and tables.

    Returns:
        What prints the epoch's line, to be called when the epoch's checkpoint is on the disk.
    """
    log, names = run.log, run.dataset.class_names
    record |= media.per_class(evaluation, names)
    is_last = record["global_step"] == run.plan.last_step
    if log.enabled and (is_last or record["epoch"] % run.config.log.kernels_every_epochs == 0):
        before, now = run.kernels_before, kernel_images.snapshot(run.context.network)
        record |= {f"kernels/{name}": number for name, number in kernel_images.numbers(before, now).items()}
        spec = run.context.inputs.spec
        chosen, ratio = run.config.log.conv2_kernel, spec.image_size / spec.loaded_size
        log.show(record, lambda: media.kernel_media(before, now, record, conv2_kernel=chosen, enlargement=ratio))
        log.confusion(record, evaluation.confusion, names)
        log.write("evaluation.json", media.evaluation_file(record, evaluation, names))
        log.show(record, lambda: media.answer_sheets(run.dataset, evaluation), send=False)
        if is_last:
            log.table(record, "errors", lambda: media.mistakes_table(run.dataset, evaluation))
    log.log(record)
    words = ""
    if log.enabled and (collapse := evaluation.collapse()):
        moved = kernel_images.moved(run.kernels_before, kernel_images.snapshot(run.context.network))
        words = run_summary.collapse_words(collapse, record, num_classes=len(names), moved=moved)
        log.alert("Nothing learned", words, level="WARN")

    def tell() -> None:
        run.console.print(run_summary.epoch_line(record, epochs=run.config.epochs, split=run.dataset.evaluated_on))
        if words:
            run.console.warn(f"THE NETWORK HAS LEARNED NOTHING: {words}")

    return tell


def draw(run: TrainRun, evaluation: Evaluation) -> None:
    """Draw the curves and the confusion matrix."""
    if run.log.enabled:
        folder = run_dir.private_folder(run.log.folder, "figures")
        split, names = run.dataset.evaluated_on, run.dataset.class_names
        plots.save_curves(run.log.records, folder, num_classes=len(names), split=split)
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
