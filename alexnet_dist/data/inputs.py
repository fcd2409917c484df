"""Inputs: the steps from stored uint8 images to the network's input, on the device: augment, enlarge, normalise.

Augmentation works on the small image, where it is cheap (`augment.py`); enlargement is Pillow's bilinear resize to the
bit (`resize.py`); the result is written once, in the dtype and layout that conv1 reads. No function here depends on
ranks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch

from alexnet_dist.architecture import SMALLEST_IMAGE, Channels
from alexnet_dist.config import LARGEST_IMAGE
from alexnet_dist.data import augment
from alexnet_dist.data.loader import Batch
from alexnet_dist.data.resize import enlarge
from alexnet_dist.errors import UserError

CACHED_IMAGES = 4
"""Images that a CPU works on at once: 2.4 MB in float32 at 224, so that all passes stay within the cores' caches."""
RESIZE = "Pillow's Image.resize, bilinear, on uint8"


@dataclass(frozen=True)
class InputSpec:
    """Size and normalisation of a network's input, recorded in its file, which is used without the data set."""

    image_size: int
    """Side of the input in pixels."""
    stored_size: int
    """Side of the images that are enlarged to it."""
    mean: Channels
    """Per channel, in [0, 1], subtracted; 0 with a `std` of 1 leaves values in [0, 1]."""
    std: Channels
    """Per channel, divided by."""

    def to_json(self) -> dict[str, Any]:
        """Return the `input` entry of a network file's metadata."""
        return asdict(self) | {"fit": "enlarge", "resize": RESIZE, "channels": "RGB"}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> InputSpec:
        """Return the spec of an entry that `to_json` wrote.

        Raises:
            UserError: a key of the entry is missing or wrong, or the entry asks for inputs of another version.
        """
        try:
            mean, std = _channels(entry["mean"]), _channels(entry["std"])
            found = cls(int(entry["image_size"]), int(entry["stored_size"]), mean, std)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"its metadata does not say how inputs are made ({error!r})") from None
        if entry.get("fit") != "enlarge" or not SMALLEST_IMAGE <= found.image_size <= LARGEST_IMAGE:
            raise UserError(f"its metadata asks for inputs that this version cannot make: {entry}")
        return found


def _channels(values: Any) -> Channels:  # noqa: ANN401 - whatever a file holds
    """Return three numbers, of red, green and blue."""
    red, green, blue = map(float, values)
    return red, green, blue


@dataclass(frozen=True)
class Inputs:
    """The steps from a stored image to an input of the network.

    Args:
        spec: size, mean and standard deviation.
        margin: zeros before and behind the image along both axes, which conv1 would have to add by a copy;
            `models.fast_layers.margin` for this package's network, none for torchvision's.
        dtype: of the output. Arithmetic is float32, or float64 for that.
        augment: augmentation of the stored training images; None for none.
    """

    spec: InputSpec
    margin: tuple[int, int] = (0, 0)
    dtype: torch.dtype = torch.float32
    augment: augment.Augment | None = None

    def draws(self, epoch: int, device: torch.device) -> torch.Tensor | None:
        """Return an epoch's random numbers, (N, 10) int64 for N training images; None without augmentation."""
        return None if self.augment is None else self.augment.draws(epoch).to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the network's input for images without augmentation.

        Args:
            images: (B, 3, S, S) uint8, S at most `spec.image_size`.

        Returns:
            (B, 3, P, P) of `dtype`, channels_last; in [0, 1] or normalised, with the margin.
        """
        at_once = CACHED_IMAGES if images.device.type == "cpu" else len(images)
        inputs, inner = self._empty(len(images), images.device)
        size, arithmetic = self.spec.image_size, torch.promote_types(self.dtype, torch.float32)
        mean, std = (_row(values, size, images.device, arithmetic) for values in (self.spec.mean, self.spec.std))
        for start in range(0, len(images), at_once):
            part = enlarge(images[start : start + at_once], size).permute(0, 2, 3, 1).flatten(2)
            inner[start : start + at_once] = part.to(arithmetic).sub_(mean).div_(std)
        return inputs

    def augmented(self, batch: Batch, draws: torch.Tensor | None) -> torch.Tensor:
        """Return the network's input for an augmented training batch, mixed with partners where the batch has them.

        Args:
            batch: stored images with their ids.
            draws: `draws()` of the epoch, on the batch's device; None for no augmentation.

        Returns:
            As `__call__`.
        """
        images = batch["images"]
        if draws is not None:
            assert self.augment is not None
            images = self.augment(images, draws[batch["ids"]])
            if "partner_ids" in batch:
                partners = self.augment(batch["partner_images"], draws[batch["partner_ids"]])
                images = augment.mix(images, partners, draws[batch["ids"]])
        return self(images)

    def pictures(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs of the network as pictures, for people.

        Args:
            inputs: (B, 3, P, P), returned by `__call__` or `augmented`.

        Returns:
            (B, 3, image_size, image_size) uint8, without the margin.
        """
        spec, before = self.spec, self.margin[0]
        inner = inputs[:, :, before : before + spec.image_size, before : before + spec.image_size].float()
        mean, std = (torch.tensor(values, device=inputs.device)[:, None, None] for values in (spec.mean, spec.std))
        return inner.mul(std).add(mean).mul(255).round().clamp(0, 255).to(torch.uint8)

    def _empty(self, num_images: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs whose margin is zero and whose rest is not set, and a view of the rest, rows of pixels.

        Returns:
            (B, 3, P, P) of `dtype`, channels_last; (B, image_size, 3 * image_size).
        """
        before, behind = self.margin
        side, end = before + self.spec.image_size + behind, before + self.spec.image_size
        inputs = torch.empty((num_images, side, 3 * side), dtype=self.dtype, device=device)
        inner = inputs[:, before:end, 3 * before : 3 * end]
        for edge in (inputs[:, :before], inputs[:, end:], inputs[:, :, : 3 * before], inputs[:, :, 3 * end :]):
            edge.zero_()
        return inputs.view(num_images, side, side, 3).permute(0, 3, 1, 2), inner


@cache
def _row(values: Channels, size: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return one value per channel, on the scale of stored images, repeated along a row of pixels."""
    return torch.tensor(values, device=device, dtype=dtype).mul(255).repeat(size)
