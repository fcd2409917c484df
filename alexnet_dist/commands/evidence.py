"""What a non-finite step can be computed again from: weights, images, random numbers and losses."""

from typing import Any

import torch

from alexnet_dist.config import Config, to_dict
from alexnet_dist.data import GlobalBatches, ImageData, loader
from alexnet_dist.tracking import RunLogger
from alexnet_dist.training import NonFiniteError, Progress, TrainContext, checkpoint


def keep(
    context: TrainContext,
    error: NonFiniteError,
    *,
    config: Config,
    dataset: ImageData,
    log: RunLogger,
    order: GlobalBatches,
    progress: Progress,
) -> None:
    """Write `non_finite/step_<step>/` into the run folder, on rank 0."""
    if not log.enabled:
        return
    ids, losses = (list(column) for column in zip(*error.images, strict=True))
    partner = order.partner_table()
    indices = ids if partner is None else [[image, int(partner[image])] for image in ids]
    batch: dict[str, Any] = {**loader.gather(dataset.train.images, dataset.train.labels, indices)}
    batch["losses"] = torch.tensor(losses)
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
        "config": to_dict(config),
    }
    folder = log.folder / "non_finite" / f"step_{error.step:08d}"
    checkpoint.save_evidence(folder, model=context.network, batch=batch, report=report)
