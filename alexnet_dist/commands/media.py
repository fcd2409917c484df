"""Pictures, captions and tables of a run: its first batch, kernels and answers. Writes and sends nothing."""

from collections.abc import Sequence
from dataclasses import asdict

import torch

from alexnet_dist.data import Batch, ImageData, Inputs
from alexnet_dist.tracking import Media, Record
from alexnet_dist.training import Evaluation
from alexnet_dist.visualization import kernel_images, plots

MOST_SHOWN = 32
"""Images of the first batch that are drawn."""
INPUT_TILE = 112
"""Side of each in pixels: half of 224."""


def first_batch(batch: Batch, inputs: Inputs, class_names: Sequence[str]) -> Media:
    """Draw images of training's first batch as the network gets them: augmented, enlarged, normalised and back."""
    draws = inputs.draws(0, torch.device("cpu"))
    shown = inputs.pictures(inputs.augmented(batch, draws)).permute(0, 2, 3, 1).cpu().numpy()
    labels = [class_names[label] for label in batch["labels"][: plots.SHEET_COLUMNS].tolist()]
    return Media(
        {"inputs/first_batch": plots.sheet(plots.thumbnail(image, INPUT_TILE) for image in shown)},
        {"inputs/first_batch": f"step 1, first row: {', '.join(labels)}"},
    )


def kernel_media(
    before: kernel_images.Weights, now: kernel_images.Weights, record: Record, *, conv2_kernel: int
) -> Media:
    """Draw the kernels, with captions that say when."""
    drawn = kernel_images.draw(before, now, conv2_kernel=conv2_kernel)
    captions = kernel_images.captions(drawn, when=f"epoch {record['epoch']}, step {record['global_step']}")
    return Media(
        {f"kernels/{name}": picture for name, picture in kernel_images.named(drawn).items()},
        {f"kernels/{name}": text for name, text in captions.items()},
        {f"kernels/{layer}_norms": sizes.numpy() for layer, sizes in kernel_images.norms(now).items()},
    )


def evaluation_file(record: Record, evaluation: Evaluation, class_names: Sequence[str]) -> Record:
    """Return the content of evaluation.json: the exact counts, and the answers that are shown."""
    return {
        "epoch": record["epoch"],
        "global_step": record["global_step"],
        "class_names": list(class_names),
        "confusion": evaluation.confusion.tolist(),
        "worst": [asdict(mistake) for mistake in evaluation.worst],
        "best": [asdict(answer) for answer in evaluation.best],
    }


def per_class(evaluation: Evaluation, class_names: Sequence[str]) -> Record:
    """Return each class's accuracy under its name; a slash would make a section of its own."""
    shares = zip(class_names, evaluation.per_class, strict=True)
    return {f"per_class/{name.replace('/', '_')}": share for name, share in shares if share is not None}


def answer_sheets(dataset: ImageData, evaluation: Evaluation) -> Media:
    """Draw the thumbnails of wrong and right answers, in the order of `evaluation.worst` and `evaluation.best`."""
    shown = {"errors": evaluation.worst, "right": evaluation.best}
    return Media(
        {
            name: plots.sheet(plots.thumbnail(dataset.test.picture(answer.id)) for answer in answers)
            for name, answers in shown.items()
            if answers
        }
    )


def mistakes_table(dataset: ImageData, evaluation: Evaluation) -> list[Record]:
    """Return the worst mistakes as rows with thumbnails."""
    return [
        {
            "image": plots.thumbnail(dataset.test.picture(mistake.id)),
            "id": mistake.id,
            "true class": dataset.class_names[mistake.label],
            "predicted class": dataset.class_names[mistake.predicted],
            "probability": mistake.probability,
            "loss": mistake.loss,
        }
        for mistake in evaluation.worst
    ]
