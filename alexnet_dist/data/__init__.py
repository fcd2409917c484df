"""Data sets, their stores, the order of images, the loaders, and the steps from a stored image to an input."""

from alexnet_dist.data.augment import Augment
from alexnet_dist.data.image_data import ImageData, Split
from alexnet_dist.data.inputs import Inputs, InputSpec
from alexnet_dist.data.load import load, load_any, threads_of
from alexnet_dist.data.loader import Batch, make_loader
from alexnet_dist.data.photo_loader import PhotoLoader
from alexnet_dist.data.photographs import Photographs
from alexnet_dist.data.sampler import GlobalBatches

__all__ = [
    "Augment", "Batch", "GlobalBatches", "ImageData", "InputSpec", "Inputs", "PhotoLoader", "Photographs", "Split",
    "load", "load_any", "make_loader", "threads_of",
]  # fmt: skip
