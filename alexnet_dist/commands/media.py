"""What a run shows besides numbers: its first batch, kernels, mistakes, and weights to publish.

Turns arrays into pictures, tables and texts; writes and sends nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from alexnet_dist.data import loader
from alexnet_dist.tracking.tracker import Media, Weights
from alexnet_dist.training import checkpoint, train_loop
from alexnet_dist.visualization import kernel_images, plots

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alexnet_dist.config import Config
    from alexnet_dist.data.image_data import ImageData
    from alexnet_dist.training.metrics import Evaluation
    from alexnet_dist.training.train_loop import Job, Record

MOST_SHOWN = 32  # images of the first batch
INPUT_TILE = 112  # pixels: half of 224


def first_batch(job: Job, dataset: ImageData) -> Media:
    """Draw the first images of training as the network gets them: augmented, enlarged, normalised and back."""
    job.order.set_position(epoch=0)
    batch = loader.gather(dataset.train.images, dataset.train.labels, next(iter(job.order))[:MOST_SHOWN])
    draws = job.preprocess.draws(0)
    shown = job.preprocess.pictures(train_loop.inputs(job, batch, draws)).cpu().numpy()
    labels = [dataset.class_names[label] for label in batch["labels"][: plots.SHEET_COLUMNS].tolist()]
    return Media(
        {"inputs/first_batch": plots.sheet(plots.thumbnail(image, INPUT_TILE) for image in shown)},
        {"inputs/first_batch": f"step 1, first row: {', '.join(labels)}"},
    )


def kernel_media(
    before: kernel_images.Weights, now: kernel_images.Weights, record: Record, *, conv2_kernel: int, enlargement: float
) -> Media:
    """Draw the kernels, with captions that say when."""
    drawn = kernel_images.draw(before, now, conv2_kernel=conv2_kernel, enlargement=enlargement)
    captions = kernel_images.captions(drawn, when=f"epoch {record['epoch']}, step {record['global_step']}")
    return Media(
        {f"kernels/{name}": picture for name, picture in kernel_images.named(drawn).items()},
        {f"kernels/{name}": text for name, text in captions.items()},
        {f"kernels/{layer}_norms": sizes.numpy() for layer, sizes in kernel_images.norms(now).items()},
    )


def evaluation_file(record: Record, evaluation: Evaluation, class_names: Sequence[str]) -> Record:
    """Return the content of evaluation.json: the exact counts and the worst mistakes."""
    return {
        "epoch": record["epoch"],
        "global_step": record["global_step"],
        "class_names": list(class_names),
        "confusion": evaluation.confusion.tolist(),
        "worst": [asdict(mistake) for mistake in evaluation.worst],
    }


def per_class(evaluation: Evaluation, class_names: Sequence[str]) -> Record:
    """Return each class's accuracy under its name; a slash would make a section of its own."""
    shares = zip(class_names, evaluation.per_class, strict=True)
    return {f"per_class/{name.replace('/', '_')}": share for name, share in shares if share is not None}


def mistakes_sheet(dataset: ImageData, evaluation: Evaluation) -> Media:
    """Draw the worst mistakes' thumbnails, in the order of `evaluation.worst`."""
    if not evaluation.worst:
        return Media()
    return Media({"errors": plots.sheet(plots.thumbnail(dataset.test.images[m.id]) for m in evaluation.worst)})


def mistakes_table(dataset: ImageData, evaluation: Evaluation) -> list[Record]:
    """Return the worst mistakes as rows with thumbnails."""
    return [
        {
            "image": plots.thumbnail(dataset.test.images[mistake.id]),
            "id": mistake.id,
            "true class": dataset.class_names[mistake.label],
            "predicted class": dataset.class_names[mistake.predicted],
            "probability": mistake.probability,
            "loss": mistake.loss,
        }
        for mistake in evaluation.worst
    ]


KNOWN = ("dataset", "num_classes", "num_train_images", "num_eval_images", "evaluated_on")
MODEL_CARD = """\
# AlexNet on {dataset}

torchvision's AlexNet with {num_classes} classes, trained by alexnet_dist {version} for {epoch} epochs ({step} steps) on
{num_train_images:,} images of {image_size}x{image_size}. Top-1 on {num_eval_images:,} {evaluated_on} images: {top1}.

```python
import json, safetensors.torch, torchvision

network = torchvision.models.alexnet(num_classes={num_classes})
network.load_state_dict(safetensors.torch.load_file("model.safetensors"))
network.eval()
class_names = json.load(open("class_names.json"))
```

Inputs: RGB enlarged to {image_size}x{image_size} by Pillow's bilinear filter, scaled to [0, 1], then less the mean
{mean} and divided by {std}, per channel.
"""


def weights(path: Path, config: Config, dataset: ImageData, job: Job, *, aliases: Sequence[str]) -> Weights:
    """Describe a checkpoint for those who load it elsewhere."""
    state: dict[str, Any] = checkpoint.read_state(path)
    progress, known = state["progress"], state["facts"]
    top1 = progress["top1"]
    card = MODEL_CARD.format(
        **{key: known[key] for key in KNOWN},
        version=known["versions"]["alexnet_dist"],
        epoch=progress["epoch"],
        step=progress["step"],
        top1="not measured" if top1 is None else f"{top1:.2%}",
        image_size=config.data.image_size,
        mean=job.preprocess.mean,
        std=job.preprocess.std,
    )
    return Weights(
        data_name=dataset.name,
        path=checkpoint.evaluated_weights(path),
        texts={"README.md": card, "class_names.json": json.dumps(dataset.class_names)},
        facts={"epoch": progress["epoch"], "step": progress["step"], "top1": top1},
        aliases=tuple(aliases),
    )
