"""What is recorded, printed and drawn of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexnet_dist.commands import media, run_summary
from alexnet_dist.tracking import run_dir
from alexnet_dist.visualization import kernel_images, plots

if TYPE_CHECKING:
    from alexnet_dist.commands.train import TrainRun
    from alexnet_dist.training.metrics import Evaluation, Metrics


def report_epoch(run: TrainRun, record: Metrics, evaluation: Evaluation) -> None:
    """Record an epoch's results and, when they are due, its pictures and tables."""
    log, names = run.log, run.dataset.class_names
    record |= media.per_class(evaluation, names)
    is_last = record["global_step"] == run.plan.last_step
    if log.enabled and (is_last or record["epoch"] % run.config.log.kernels_every_epochs == 0):
        before, now = run.kernels_before, kernel_images.snapshot(run.context.network)
        record |= {f"kernels/{name}": number for name, number in kernel_images.numbers(before, now).items()}
        chosen, spec = run.config.log.conv2_kernel, run.context.inputs.spec
        enlargement = spec.image_size / spec.stored_size
        log.show(
            record,
            lambda: media.kernel_media(before, now, record, conv2_kernel=chosen, enlargement=enlargement),
        )
        log.confusion(record, evaluation.confusion, names)
        log.write("evaluation.json", media.evaluation_file(record, evaluation, names))
        log.show(record, lambda: media.mistakes_sheet(run.dataset, evaluation), send=False)
        if is_last:
            log.table(record, "errors", lambda: media.mistakes_table(run.dataset, evaluation))
    log.log(record)
    run.console.print(run_summary.epoch_line(record, epochs=run.config.epochs, split=run.dataset.evaluated_on))
    if log.enabled and (collapse := evaluation.collapse()):
        moved = kernel_images.moved(run.kernels_before, kernel_images.snapshot(run.context.network))
        words = run_summary.collapse_words(collapse, record, num_classes=len(names), moved=moved)
        log.alert("Nothing learned", words, level="WARN")
        run.console.warn(f"THE NETWORK HAS LEARNED NOTHING: {words}")


def draw(run: TrainRun, evaluation: Evaluation) -> None:
    """Draw the curves and the confusion matrix."""
    if run.log.enabled:
        folder = run_dir.private_folder(run.log.folder, "figures")
        split, names = run.dataset.evaluated_on, run.dataset.class_names
        plots.save_curves(run.log.records, folder, num_classes=len(names), split=split)
        plots.save_confusion(evaluation.confusion, names, folder / "confusion.png")
