"""Processes and devices: the only `Accelerator(...)`, precision, launch checks, signals and the watchdog."""

from alexnet_dist.distributed.hardware import Hardware
from alexnet_dist.distributed.precision import resolve_precision
from alexnet_dist.distributed.signals import Request, RunControl, StoppedError

__all__ = ["Hardware", "Request", "RunControl", "StoppedError", "resolve_precision"]
