"""AlexNet: the network, its layers rewritten for speed, its starting weights and its file format."""

from alexnet_dist.models.alexnet import num_parameters
from alexnet_dist.models.weights import StartingWeights

__all__ = ["StartingWeights", "num_parameters"]
