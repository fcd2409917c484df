"""When a run ends, saves and records: arithmetic on the step, the same on every rank."""

from dataclasses import dataclass

from alexnet_dist.training.progress import Progress


@dataclass(frozen=True)
class Plan:
    """The steps after which something happens."""

    steps_per_epoch: int
    last_step: int
    """Where training ends, in the middle of an epoch or not."""
    record_every: int
    save_every: int | None
    """Steps between two checkpoints in the middle of an epoch; None saves at epochs' ends alone."""

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

    def records_at(self, progress: Progress) -> bool:
        """Tell whether training metrics are due, besides those of an epoch's last step."""
        return progress.step % self.record_every == 0
