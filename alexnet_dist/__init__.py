"""Train torchvision's AlexNet on many GPUs, exactly and fast."""

__version__ = "0.1.0"
