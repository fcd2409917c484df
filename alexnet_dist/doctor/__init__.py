"""Preflight: checks of hardware, storage, network and of all nodes against each other, before a launch."""

from alexnet_dist.doctor.cli import command

__all__ = ["command"]
