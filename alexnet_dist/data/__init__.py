"""Data sets, their cache, the order of images, the loader, and the steps from a stored image to an input."""

from alexnet_dist.data.augment import Augment
from alexnet_dist.data.image_data import ImageData, Split
from alexnet_dist.data.inputs import Inputs, InputSpec
from alexnet_dist.data.loader import Batch, make_loader
from alexnet_dist.data.sampler import GlobalBatches
from alexnet_dist.data.sources import load

__all__ = ["Augment", "Batch", "GlobalBatches", "ImageData", "InputSpec", "Inputs", "Split", "load", "make_loader"]
