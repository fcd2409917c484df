"""The run folder and what a run writes, sends and prints: records, pictures, W&B, TensorBoard, console."""

from alexnet_dist.tracking.code_version import git_commit
from alexnet_dist.tracking.console import Console
from alexnet_dist.tracking.run_dir import RunDirLock, check_run_dir, choose_run_dir, private_folder
from alexnet_dist.tracking.run_logger import RunLogger
from alexnet_dist.tracking.tracker import Level, Media, MediaFiles, Record, Tracker, Weights
from alexnet_dist.tracking.wandb_tracker import check_login, wandb_mode

__all__ = [
    "Console", "Level", "Media", "MediaFiles", "Record", "RunDirLock", "RunLogger", "Tracker", "Weights",
    "check_login", "check_run_dir", "choose_run_dir", "git_commit", "private_folder", "wandb_mode",
]  # fmt: skip
