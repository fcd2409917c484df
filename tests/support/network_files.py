"""Network files as a run leaves them, with random weights: for commands that use a network, without a training."""

import torch
from tiny import tiny_alexnet

from alexnet_dist.data import InputSpec
from alexnet_dist.models import weights

NAMES = tuple(f"class {number}" for number in range(10))
SMALL = InputSpec(64, 32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
"""Inputs of the tiny network: small images are enlarged from 32 to 64."""
PHOTOS = InputSpec(64, None, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), fit="crop")


def network_file(path, spec=SMALL, *, make=tiny_alexnet):
    """Write a network file and return its path."""
    torch.manual_seed(0)
    metadata = {"schema": weights.SCHEMA, "class_names": NAMES, "input": spec.to_json()}
    weights.write(path, make(num_classes=len(NAMES)).state_dict(), metadata)
    return path
