"""Pictures of a run: kernels before, now and their difference, curves, confusion matrix, sheets of images."""
