"""From stored uint8 images to the network's input, on the device: augment, enlarge exactly, normalise.

Augmentation works on the small image, where it is cheap (`augment.py`); enlargement is Pillow's bilinear resize to the
bit; the result is written once, in the type and layout that conv1 reads. Knows nothing about processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from alexnet_dist.data import augment
from alexnet_dist.data.resize import enlarge

Channels = tuple[float, float, float]


CACHED_IMAGES = 4  # 2.4 MB in float32 at 224: the passes over them stay within the cores' caches


@dataclass(frozen=True)
class Preprocess:
    """The steps from a stored image to an input of the network.

    Args:
        image_size: side of the output in pixels.
        source_size: side of the stored images.
        mean: per channel, in [0, 1]; 0 with a `std` of 1 leaves values in [0, 1].
        std: per channel.
        margin: zeros before and behind the image along both axes, which conv1 would have to add by a copy.
        dtype: of the output. Arithmetic is float32, or float64 for that.
        augment: what happens to training images first; None leaves them as they are.
    """

    image_size: int
    source_size: int
    mean: Channels
    std: Channels
    margin: tuple[int, int]
    dtype: torch.dtype
    augment: augment.Augment | None

    def draws(self, epoch: int) -> torch.Tensor | None:
        """Return what the augmentation of an epoch draws for each training image: (N, 10) int64 on the CPU, or None."""
        return None if self.augment is None else self.augment.draws(epoch)

    def __call__(
        self,
        images: torch.Tensor,
        draws: torch.Tensor | None = None,
        partners: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return the network's input.

        Args:
            images: (B, 3, H, W) uint8.
            draws: (B, 10) int64, rows of `draws()`; None leaves the images as they are.
            partners: images and draws, of the same shapes, to mix these with.

        Returns:
            (B, 3, P, P) of `dtype`, channels_last; in [0, 1] or normalised, with the margin.
        """
        if draws is not None:
            images = self._augmented(images, draws, partners)
        at_once = CACHED_IMAGES if images.device.type == "cpu" else len(images)
        inputs, inner = self._empty(len(images), images.device)
        arithmetic = torch.promote_types(self.dtype, torch.float32)
        mean, std = (_row(values, self.image_size, images.device, arithmetic) for values in (self.mean, self.std))
        for start in range(0, len(images), at_once):
            part = enlarge(images[start : start + at_once], self.image_size).permute(0, 2, 3, 1).flatten(2)
            inner[start : start + at_once] = part.to(arithmetic).sub_(mean).div_(std)
        return inputs

    def _augmented(
        self, images: torch.Tensor, draws: torch.Tensor, partners: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        assert self.augment is not None
        images = self.augment(images, draws)
        return images if partners is None else augment.mix(images, self.augment(*partners), draws)

    def pictures(self, inputs: torch.Tensor) -> torch.Tensor:
        """Turn inputs of the network back into something to look at.

        Args:
            inputs: (B, 3, P, P) as this object gives them.

        Returns:
            (B, 3, image_size, image_size) uint8, without the margin.
        """
        before = self.margin[0]
        inner = inputs[:, :, before : before + self.image_size, before : before + self.image_size].float()
        mean, std = (torch.tensor(values, device=inputs.device)[:, None, None] for values in (self.mean, self.std))
        return inner.mul(std).add(mean).mul(255).round().clamp(0, 255).to(torch.uint8)

    def _empty(self, num_images: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs with zeros in their margin, and the rows inside it: (B, image_size, 3 * image_size)."""
        before, behind = self.margin
        side, end = before + self.image_size + behind, before + self.image_size
        inputs = torch.empty((num_images, side, 3 * side), dtype=self.dtype, device=device)
        inner = inputs[:, before:end, 3 * before : 3 * end]
        for edge in (inputs[:, :before], inputs[:, end:], inputs[:, :, : 3 * before], inputs[:, :, 3 * end :]):
            edge.zero_()
        return inputs.view(num_images, side, side, 3).permute(0, 3, 1, 2), inner


@cache
def _row(values: Channels, size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return one value per channel, on the scale of stored images, repeated along a row of pixels."""
    return torch.tensor(values, device=device, dtype=dtype).mul(255).repeat(size)
