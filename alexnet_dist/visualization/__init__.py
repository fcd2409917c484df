"""Pictures of a run: kernels before, now and their difference, curves, confusion matrix, sheets of images."""

from alexnet_dist.visualization import kernel_images, plots

__all__ = ["kernel_images", "plots"]
