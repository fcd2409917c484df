"""Weights & Biases and TensorBoard: where records go besides the run folder. The only place that imports wandb.

A tracker takes the same numbers under the same keys as metrics.jsonl, and pictures and tables besides. Rank 0 alone has
trackers; runlog.py calls them on a thread, where a failure or a hang of theirs is no matter of the run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from alexnet_dist.errors import UserError
from alexnet_dist.tracking.tracker import Media, Record, Tracker

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Picture = npt.NDArray[np.uint8]

logger = logging.getLogger(__name__)


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


class TensorBoardTracker(Tracker):
    """Event files in the run folder's `tensorboard/`, by Accelerate's tracker.

    Args:
        folder: the run folder.
        first_step: records of later steps, from before a resume, are hidden.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        from accelerate.tracking import TensorBoardTracker as Events

        self._events = Events("tensorboard", folder, purge_step=first_step + 1)
        try:
            self._events.start()
        except ImportError:
            raise UserError("--log.trackers tensorboard needs the package: pip install tensorboard") from None
        self.where = f"TensorBoard: tensorboard --logdir {folder / 'tensorboard'}"

    def log(self, record: Record) -> None:
        """Take a record of numbers; its step is the axis."""
        numbers = {key: x for key, x in record.items() if isinstance(x, int | float) and key != "global_step"}
        self._events.log(numbers, step=record["global_step"])

    def show(self, record: Record, media: Media) -> None:
        """Take pictures and histograms; TensorBoard has no captions."""
        step = record["global_step"]
        pictures = {name: picture[None] for name, picture in media.pictures.items()}
        self._events.log_images(pictures, step=step, dataformats="NHWC")
        for name, values in media.histograms.items():
            self._events.tracker.add_histogram(name, values, step)

    def summary(self, summary: Record) -> None:
        """Note the results as text."""
        self._events.log({"summary": "\n".join(f"    {key}: {value}" for key, value in summary.items())})

    def close(self, exit_code: int) -> None:
        """Flush the event file."""
        del exit_code
        self._events.finish()
