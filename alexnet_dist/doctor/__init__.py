"""Preflight: checks of hardware, storage, network and of all nodes against each other, before a launch."""

from alexnet_dist.doctor.check_result import CheckResult
from alexnet_dist.doctor.cli import command, main

__all__ = ["CheckResult", "command", "main"]
