"""Processes and devices: the only `Accelerator(...)`, precision, launch checks, signals and the watchdog."""

from alexnet_dist.distributed.hardware import Hardware, peak_memory
from alexnet_dist.distributed.precision import resolve_precision
from alexnet_dist.distributed.signals import Request, RunControl, StoppedError

__all__ = ["Hardware", "Request", "RunControl", "StoppedError", "peak_memory", "resolve_precision"]
