"""TensorBoardTracker: event files in the run folder, written by Accelerate's tracker."""

from pathlib import Path

import numpy as np
from PIL import Image

from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_dir
from alexnet_dist.tracking.tracker import Media, Record, Tracker


class TensorBoardTracker(Tracker):
    """Tracker that writes TensorBoard's event files into the run folder's `tensorboard/`.

    Args:
        folder: the run folder.
        first_step: step that the run continues from; records of later steps are hidden.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from accelerate.tracking import TensorBoardTracker as Events

        run_dir.private_folder(folder, "tensorboard")
        self._events = Events("tensorboard", folder, purge_step=first_step + 1)
        try:
            self._events.start()
        except ImportError:
            raise UserError("--log.trackers tensorboard needs the package: pip install tensorboard") from None
        self.where = f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'}"

    def log(self, record: Record) -> None:
        """Write a record's numbers at its step."""
        numbers = {key: x for key, x in record.items() if isinstance(x, int | float) and key != "global_step"}
        self._events.log(numbers, step=record["global_step"])

    def show(self, record: Record, media: Media) -> None:
        """Write pictures and histograms; TensorBoard has no captions."""
        step = record["global_step"]
        images = {name: np.asarray(Image.open(path))[None] for name, path in media.pictures.items()}
        self._events.log_images(images, step=step, dataformats="NHWC")
        for name, values in media.histograms.items():
            self._events.tracker.add_histogram(name, values, step)

    def summary(self, summary: Record) -> None:
        """Write the run's results as text."""
        self._events.log({"summary": "\n".join(f"    {key}: {value}" for key, value in summary.items())})

    def close(self, exit_code: int) -> None:  # noqa: ARG002 - event files hold no exit code
        """Flush the event file."""
        self._events.finish()
