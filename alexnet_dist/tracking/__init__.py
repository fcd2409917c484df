"""The run folder and what a run writes, sends and prints: records, pictures, W&B, TensorBoard, console."""

from alexnet_dist.tracking.code_version import git_commit
from alexnet_dist.tracking.console import Console
from alexnet_dist.tracking.run_logger import RunLogger
from alexnet_dist.tracking.tracker import Media, Record, Weights

__all__ = ["Console", "Media", "Record", "RunLogger", "Weights", "git_commit"]
