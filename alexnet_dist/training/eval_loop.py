"""The two loops: `train_epoch` and `evaluate`.

Both return or yield plain numbers and log nothing. Between two yielded records no step waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from accelerate.utils import gather_object

from alexnet_dist.distributed.signals import Wish
from alexnet_dist.training.metrics import EvalCounts, Evaluation, worst_of

if TYPE_CHECKING:
    from alexnet_dist.training.train_loop import Job


Record = dict[str, Any]

MOST_MISTAKES = 64  # a page of thumbnails


@torch.no_grad()
def evaluate(job: Job, *, mirrored: bool = False) -> Evaluation | None:
    """Count every test image exactly once, at any world size. Every rank must call it; all get the same result.

    Measures the average of the weights where the run keeps one. Returns None if the run was asked to end meanwhile.

    Args:
        job: whose network and test images.
        mirrored: look at each image's mirror image too, for `Evaluation.top1_flip_tta`.
    """
    module = job.accelerator.unwrap_model(job.model) if job.ema is None else job.ema.model
    module.eval()
    counts = EvalCounts(job.num_classes, job.accelerator.device)
    shares = iter(job.eval_loader)
    for _ in range(job.num_eval_batches):
        if batch := next(shares, None):
            with job.accelerator.autocast():
                logits = module(job.preprocess(batch["images"])).float()
                if mirrored:
                    reflection = module(job.preprocess(batch["images"].flip(-1))).float()
                    counts.add_mirrored(logits, reflection, batch["labels"])
            losses = F.cross_entropy(logits, batch["labels"], reduction="none")
            counts.add(logits, batch["labels"], losses, batch["ids"])
        job.heartbeat.beat()
        if job.interrupts.agree() is Wish.STOP:
            return None
    confusion = job.accelerator.reduce(counts.confusion, "sum").view(job.num_classes, job.num_classes).cpu().numpy()
    loss_sum = float(job.accelerator.reduce(counts.loss_sum, "sum").item())
    evaluation = Evaluation(
        loss=loss_sum / job.num_eval_images,
        confusion=confusion,
        num_top5=int(job.accelerator.reduce(counts.num_top5, "sum").item()),
        worst=worst_of(gather_object(counts.worst(MOST_MISTAKES)), MOST_MISTAKES),
        num_mirrored=int(job.accelerator.reduce(counts.num_mirrored, "sum").item()) if mirrored else None,
    )
    assert evaluation.num_images == job.num_eval_images, "an image was left out or counted twice"
    return evaluation
