"""The evaluation loop: `evaluate` counts every image of a split exactly once, at any world size."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from alexnet_dist.data import Batch, Inputs
from alexnet_dist.training.metrics import EvalCounts, Evaluation


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[Batch], inputs: Inputs, accelerator: Accelerator, *, flip_tta: bool = False
) -> Evaluation:
    """Return a network's accuracy, loss and confusion matrix on a split. Every rank must call it; all get the same.

    Args:
        model: from inputs to logits (B, C); the raw module, as DDP's wrapper would wait for ranks without images. It is
            left in evaluation mode.
        loader: this rank's shares of the split: stored images, labels and ids, on the accelerator's device.
        inputs: from stored images to the model's inputs.
        accelerator: whose ranks evaluate together, under its autocast.
        flip_tta: look at each image's mirror image too, for `Evaluation.top1_flip_tta`.
    """
    model.eval()
    counts = EvalCounts()
    for batch in loader:
        images = batch["images"]
        with accelerator.autocast():
            logits = model(inputs(images)).float()
            mirrored = model(inputs(images.flip(-1))).float() if flip_tta else None
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        counts.add(logits, batch["labels"], losses, batch["ids"], mirrored=mirrored)
    return Evaluation.of_ranks(gather_object([counts.totals()]))
