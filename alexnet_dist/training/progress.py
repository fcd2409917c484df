"""Where a run stands, as a checkpoint records it, and when it ends, saves and records: arithmetic on the step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import NoneType
from typing import Any

from alexnet_dist.errors import UserError
from alexnet_dist.training.metrics import Evaluation, Metrics


@dataclass
class Progress:
    """Where a run stands: with the weights and the optimizer's state, all that a resumed run needs."""

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
    """Of the last evaluation with flip TTA, which the run's last one has."""
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
        """Return what a checkpoint's state.json records under `progress`.

        Raises:
            UserError: it is no run's progress.
        """
        kinds: dict[type, Any] = {int: int, float: int | float, NoneType: int | float | None}
        defaults = asdict(cls())
        recorded = recorded if isinstance(recorded, dict) else {"": None}
        wrong = recorded.keys() - defaults.keys()  # some may be missing: a later version may have added them
        if wrong or not all(isinstance(value, kinds[type(defaults[name])]) for name, value in recorded.items()):
            message = "the checkpoint's state.json does not say where its run stood: continue from an earlier one"
            raise UserError(message)
        return cls(**recorded)

    def end_epoch(self, evaluation: Evaluation, plan: Plan, *, seconds: float, batch_size: int) -> Metrics:
        """Take in the evaluation at an epoch's end and return its record; an epoch cut short stays the current one.

        Args:
            evaluation: of the weights of now.
            plan: of the run, for the steps of a whole epoch.
            seconds: that the evaluation took.
            batch_size: global batch.
        """
        epoch, num_images = self.epoch + 1, self.batch * batch_size
        self.epoch_loss = self.loss_sum / num_images
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
        if self.batch == plan.steps_per_epoch:
            self.epoch, self.batch, self.loss_sum, self.epoch_seconds = epoch, 0, 0.0, 0.0
        return record


ALL_DRAWN = 30
"""Epochs, from the first on, of which each gets pictures."""


@dataclass(frozen=True)
class Plan:
    """The steps after which something happens, the same on every rank."""

    steps_per_epoch: int
    last_step: int
    """Where training ends, in the middle of an epoch or not."""
    record_every: int
    save_every: int | None
    """Steps between two checkpoints in the middle of an epoch; None saves at epochs' ends alone."""
    draw_every: int | None = None
    """Epochs between two sets of pictures; None is the rule of `draws_at`, with the best epoch's at the end."""

    def epoch_end(self, progress: Progress) -> int:
        """Return the batch before which the current epoch ends: its last, or where the run's last step cuts it."""
        return min(self.steps_per_epoch, progress.batch + self.last_step - progress.step)

    def is_done(self, progress: Progress) -> bool:
        """Tell whether all steps are taken and the last evaluation is over."""
        return progress.step >= self.last_step and progress.evaluated == progress.step

    def saves_at(self, progress: Progress) -> bool:
        """Tell whether a checkpoint is due in the middle of an epoch; at its end the checkpoint follows evaluation."""
        is_epoch_end = progress.batch == self.epoch_end(progress)
        return self.save_every is not None and progress.step % self.save_every == 0 and not is_epoch_end

    def draws_at(self, epoch: int) -> bool:
        """Tell whether an epoch, counted from 1, gets pictures: each up to 30, every 2nd up to 60, every 4th up to 120.

        So on: ten times as many epochs have about 50 more sets. It depends on nothing but the epoch.
        """
        every = self.draw_every or 1 << ((epoch - 1) // ALL_DRAWN).bit_length()
        return epoch % every == 0

    def records_at(self, progress: Progress) -> bool:
        """Tell whether training metrics are due, besides those of an epoch's last step."""
        return progress.step % self.record_every == 0
