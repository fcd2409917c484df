"""Images enlarged by Pillow."""

import numpy as np
import torch
from PIL import Image


def pillow(images: np.ndarray, size: int) -> np.ndarray:
    """Resize (N, H, W, C) or (N, H, W) uint8 with Pillow."""
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    )


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)
