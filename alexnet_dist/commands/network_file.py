"""The metadata of a network file, and its publication as an artifact of the trackers."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexnet_dist.commands import model_card
from alexnet_dist.config import Config, DataConfig
from alexnet_dist.data import ImageData, InputSpec
from alexnet_dist.models import weights
from alexnet_dist.tracking import Record, RunLogger, Weights
from alexnet_dist.training import Progress, checkpoint

logger = logging.getLogger(__name__)

CHOICES = ("config", "train_split", "eval_split", "image_column", "label_column", "val_fraction", "limit")
"""Options of a data set that decide which of its images evaluate, besides its name and revision."""


def metadata(
    config: Config, dataset: ImageData, spec: InputSpec, facts: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    """Return what a checkpoint's network file says of itself; between two evaluations it claims no result.

    Args:
        config: of the run.
        dataset: that it trains on.
        spec: of the network's inputs.
        facts: of the run (`run_summary.facts`).
        progress: where it stands.
    """
    plain = DataConfig()
    return {
        "schema": weights.SCHEMA,
        "architecture": "torchvision.models.alexnet",
        "class_names": list(dataset.class_names),
        "input": spec.to_json(),
        "data": {
            "name": dataset.name,
            "revision": config.data.revision,
            "fingerprint": dataset.fingerprint,
            "split": dataset.evaluated_on,
            "num_train_images": len(dataset.train),
            "num_eval_images": len(dataset.test),
            "options": {key: value for key in CHOICES if (value := getattr(config.data, key)) != getattr(plain, key)},
        },
        "training": {
            "epoch": progress.epoch,
            "step": progress.step,
            "precision": facts["precision"],
            "batch_size": facts["global_batch_size"],
        },
        "hardware": {
            "device": facts["device"],
            "processor": facts["processor"],
            "threads": facts["cpu_threads"],
            "ranks": facts["world_size"],
        },
        "result": result(progress, facts, num_images=len(dataset.test), ema=config.optim.ema is not None),
        "versions": {**facts["versions"], "git_commit": facts["git_commit"]},
    }


def result(progress: Progress, facts: dict[str, Any], *, num_images: int, ema: bool) -> dict[str, Any] | None:
    """Return the accuracy that a network file claims; None where its weights were not evaluated."""
    if progress.top1 is None or progress.evaluated != progress.step:
        return None
    return {
        "correct": round(progress.top1 * num_images),
        "total": num_images,
        "precision": facts["precision"],
        "epoch": progress.epoch,
        "step": progress.step,
        "ema": ema,
    }


# ---- publication -----------------------------------------------------------------------------------------------------


def publish_best_and_last(log: RunLogger) -> None:
    """Send the network of the best checkpoint and of the last one to the trackers."""
    found = checkpoint.checkpoints(log.folder / "checkpoints")
    best, last = checkpoint.best_of(found), found[-1]
    for path in dict.fromkeys([best or last, last]):
        aliases = [alias for alias, one in (("best", best), ("latest", last)) if one == path]
        publish(log, path, aliases=aliases)


def publish_epoch(config: Config, log: RunLogger, path: Path, state: dict[str, Any]) -> None:
    """Send the network of a checkpoint that was written at an epoch's end, if all are to be sent."""
    progress = state["progress"]
    if config.wandb.artifacts == "all" and progress["batch"] == 0:
        publish(log, path, aliases=["latest", *["best"] * (progress["best_epoch"] == progress["epoch"])])


def publish(log: RunLogger, path: Path, *, aliases: Sequence[str]) -> None:
    """Send a checkpoint's network to the trackers, with a card for those who load it elsewhere.

    Args:
        log: of the run.
        path: the checkpoint.
        aliases: `best`, `latest`.
    """
    config = path / checkpoint.CONFIG
    described = weights.parse_metadata(config.read_text(encoding="utf-8") if config.exists() else None)
    if described is None:
        logger.warning("%s is not published: it has no %s, as in version 0.1", path, checkpoint.CONFIG)
        return
    found = described["result"]
    top1 = None if found is None else found["correct"] / found["total"]
    texts = {"README.md": model_card.card(described), "class_names.json": json.dumps(described["class_names"])}
    facts: Record = {key: described["training"][key] for key in ("epoch", "step")} | {"top1": top1}
    log.publish(Weights(log.facts["dataset"], checkpoint.evaluated_weights(path), texts, facts, tuple(aliases)))
