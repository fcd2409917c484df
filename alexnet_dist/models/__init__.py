"""AlexNet: the network, its layers rewritten for speed, its starting weights and its file format."""

from alexnet_dist.models.alexnet import build, num_parameters, plain, training_flops
from alexnet_dist.models.weights import NetworkFile, StartingWeights, read, starting_weights, write

__all__ = [
    "NetworkFile", "StartingWeights", "build", "num_parameters", "plain", "read", "starting_weights",
    "training_flops", "write",
]  # fmt: skip
