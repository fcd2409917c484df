"""AlexNet's own facts, in one place: key names, sizes, and the layers whose kernels are shown. Imports nothing.

Source: torchvision.models.alexnet (Krizhevsky, arXiv:1404.5997, one column).
"""

Channels = tuple[float, float, float]
"""(red, green, blue)"""

HEAD = "classifier.6"
"""The layer whose outputs are the classes; its key in the state dict is followed by `.weight` and `.bias`."""
SMALLEST_IMAGE = 63
"""Pixels a side: `AlexNet_Weights.IMAGENET1K_V1.meta["min_size"]`; below it a feature map vanishes."""
SHOWN_LAYERS = {"conv1": "features.0.weight", "conv2": "features.3.weight"}
"""The layers whose kernels are drawn, with their keys: (64, 3, 11, 11) and (192, 64, 5, 5)."""
NUM_CONV2_KERNELS = 192
NUM_PARAMETERS = 57_044_810
"""With a head of ten classes; a thousand classes have 7 % more."""
IMAGENET_CLASSES = 1000
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Per channel, in [0, 1]: what `AlexNet_Weights.IMAGENET1K_V1.transforms()` subtracts and divides by."""
