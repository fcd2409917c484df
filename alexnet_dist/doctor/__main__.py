"""Entry point of `python -m alexnet_dist.doctor`."""

from alexnet_dist.doctor import command

command()
