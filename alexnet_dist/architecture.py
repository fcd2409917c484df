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
LAYERS = {
    "conv1": "features.0", "relu1": "features.1", "pool1": "features.2",
    "conv2": "features.3", "relu2": "features.4", "pool2": "features.5",
    "conv3": "features.6", "relu3": "features.7",
    "conv4": "features.8", "relu4": "features.9",
    "conv5": "features.10", "relu5": "features.11", "pool5": "features.12", "avgpool": "avgpool",
    "fc6": "classifier.1", "relu6": "classifier.2", "fc7": "classifier.4", "relu7": "classifier.5", "logits": HEAD,
}  # fmt: skip
"""The layers by the names of Krizhevsky et al. 2012, with torchvision's, in the order of the forward pass."""
