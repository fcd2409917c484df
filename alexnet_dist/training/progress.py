"""The two loops: `train_epoch` and `evaluate`.

Both return or yield plain numbers and log nothing. Between two yielded records no step waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import NoneType
from typing import TYPE_CHECKING, Any

from alexnet_dist.errors import UserError

if TYPE_CHECKING:
    from alexnet_dist.training.metrics import Evaluation
    from alexnet_dist.training.train_loop import Job


Record = dict[str, Any]


@dataclass
class Progress:
    """Where a run stands; together with the weights and the optimizer's state, all that resuming needs."""

    step: int = 0
    """Optimizer steps taken."""
    epoch: int = 0
    """Epochs completed."""
    batch: int = 0
    """Steps taken in the current epoch."""
    loss_sum: float = 0.0
    """Over the current epoch's images so far."""
    samples_seen: int = 0
    epoch_loss: float | None = None
    """Mean training loss of the last epoch."""
    top1: float | None = None
    """Of the last evaluation."""
    top1_flip_tta: float | None = None
    """Likewise, where mirror images were looked at too."""
    best_top1: float | None = None
    best_epoch: int | None = None
    train_seconds: float = 0.0
    """In training steps, without evaluation, saving and logging."""
    epoch_seconds: float = 0.0
    """Of the current epoch, in training steps."""
    wall_seconds: float = 0.0
    """Of the whole run so far, over all its parts."""
    evaluated: int = 0
    """The step after which the last evaluation was."""

    @classmethod
    def of(cls, recorded: object) -> Progress:
        """Take up what a checkpoint recorded.

        Raises:
            UserError: it is no run's progress.
        """
        kinds: dict[str, Any] = {"int": int, "float": (int, float)}
        kinds |= {"int | None": (int, NoneType), "float | None": (int, float, NoneType)}
        names = {each.name: kinds[str(each.type)] for each in fields(cls)}
        if isinstance(recorded, dict) and recorded.keys() <= names.keys():  # a later version may have added some
            wrong = [name for name, value in recorded.items() if not isinstance(value, names[name])]
            if not wrong:
                return cls(**recorded)
        raise UserError("the checkpoint's state.json does not say where its run stood: continue from an earlier one")

    def end_epoch(self, job: Job, evaluation: Evaluation, *, seconds: float) -> Record:
        """Take in an epoch's evaluation; an epoch that was cut short stays the current one.

        Args:
            job: whose epoch it was.
            evaluation: after it.
            seconds: that the evaluation took.
        """
        epoch = self.epoch + 1
        self.epoch_loss = self.loss_sum / (self.batch * job.order.batch_size)
        self.top1, self.top1_flip_tta, self.evaluated = evaluation.top1, evaluation.top1_flip_tta, self.step
        if self.best_top1 is None or evaluation.top1 > self.best_top1:
            self.best_top1, self.best_epoch = evaluation.top1, epoch
        record = {
            "global_step": self.step,
            "epoch": epoch,
            "samples_seen": self.samples_seen,
            "train/epoch_loss": self.epoch_loss,
            "val/loss": evaluation.loss,
            "val/top1": evaluation.top1,
            **({} if evaluation.top5 is None else {"val/top5": evaluation.top5}),
            **({} if self.top1_flip_tta is None else {"val/top1_flip_tta": self.top1_flip_tta}),
            "val/num_images": evaluation.num_images,
            "best/top1": self.best_top1,
            "perf/epoch_seconds": self.epoch_seconds + seconds,
        }
        if self.batch == job.order.num_batches:
            self.epoch, self.batch, self.loss_sum, self.epoch_seconds = epoch, 0, 0.0, 0.0
        return record
