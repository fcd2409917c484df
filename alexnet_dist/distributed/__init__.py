"""Processes and devices: the only `Accelerator(...)`, precision, launch checks, signals and the watchdog."""

from alexnet_dist.distributed.accelerator import from_main, make_accelerator, on_all
from alexnet_dist.distributed.hardware import Hardware, peak_memory
from alexnet_dist.distributed.launch_checks import check_launch
from alexnet_dist.distributed.precision import Precision, resolve_precision
from alexnet_dist.distributed.run_control import RunControl
from alexnet_dist.distributed.signals import Request, StoppedError
from alexnet_dist.distributed.watchdog import LostRankError

__all__ = [
    "Hardware", "LostRankError", "Precision", "Request", "RunControl", "StoppedError", "check_launch", "from_main",
    "make_accelerator", "on_all", "peak_memory", "resolve_precision",
]  # fmt: skip
