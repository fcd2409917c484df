"""Inputs: the steps from loaded uint8 images to the network's input, on the device: augment, enlarge, normalise.

Augmentation works on the image before it is enlarged, where it is cheap (`augment.py`); enlargement is Pillow's
bilinear resize to the bit (`resize.py`); the result is written once, in the dtype and layout that conv1 reads: on CUDA
all of it by one kernel (`fused_input.py`).
Photographs come from the loader in the size of the input (`crops.py`). No function here depends on ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist.architecture import SMALLEST_IMAGE, Channels
from alexnet_dist.config import LARGEST_IMAGE
from alexnet_dist.data import augment, crops
from alexnet_dist.data.augment import Drawn
from alexnet_dist.data.loader import Batch
from alexnet_dist.data.resize import enlarge
from alexnet_dist.errors import UserError

logger = logging.getLogger(__name__)

CACHED_IMAGES = 4
"""Images that a CPU works on at once: 2.4 MB in float32 at 224, so that all passes stay within the cores' caches."""
FEWEST_FUSED = 32
"""Images from which on CUDA makes inputs by one kernel: for a few, compiling it takes longer than all else."""
_EQUALS_TORCH: dict[Hashable, bool] = {}
"""Whether the kernel gave the bits of torch's operations when a case was first used."""
RESIZE = {
    "enlarge": "Pillow's Image.resize, bilinear, on uint8; of a picture that has not the stored size first the largest "
    "central square, resized to it by torchvision.transforms.v2, antialiased",
    "crop": "torchvision.transforms.v2 on uint8: short side to image_size * 256 / 224, centre crop, antialiased",
}
"""How an image becomes an input in evaluation, by `InputSpec.fit`."""


@dataclass(frozen=True)
class InputSpec:
    """Size and normalisation of a network's input, recorded in its file, which is used without the data set."""

    image_size: int
    """Side of the input in pixels."""
    stored_size: int | None
    """Side of the images that are enlarged to it. Of photographs: the short side to which they are reduced before they
    are resized again and cropped; None where the originals are."""
    mean: Channels
    """Per channel, in [0, 1], subtracted; 0 with a `std` of 1 leaves values in [0, 1]."""
    std: Channels
    """Per channel, divided by."""
    fit: Literal["enlarge", "crop"] = "enlarge"

    @property
    def loaded_size(self) -> int:
        """Side of the images that loaders give: photographs have that of the input already."""
        return self.stored_size if self.fit == "enlarge" and self.stored_size else self.image_size

    def fitted(self, picture: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return a picture of any size as the loader gives images to `Inputs` in evaluation.

        Args:
            picture: (H, W, 3) uint8, RGB, EXIF orientation applied.

        Returns:
            (3, S, S) uint8, S `loaded_size`.
        """
        if self.fit == "enlarge":
            return crops.central_square(picture, self.loaded_size)
        stored = picture if self.stored_size is None else crops.shrunk(picture, self.stored_size)
        return crops.evaluation_view(stored, self.image_size)

    def to_json(self) -> dict[str, Any]:
        """Return the `input` entry of a network file's metadata."""
        return asdict(self) | {"resize": RESIZE[self.fit], "channels": "RGB"}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> InputSpec:
        """Return the spec of an entry that `to_json` wrote.

        Raises:
            UserError: a key of the entry is missing or wrong, or the entry asks for inputs of another version.
        """
        try:
            fit, stored = entry["fit"], entry["stored_size"]
            stored = None if stored is None and fit == "crop" else int(stored)
            found = cls(int(entry["image_size"]), stored, _channels(entry["mean"]), _channels(entry["std"]), fit)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"its metadata does not say how inputs are made ({error!r})") from None
        if found.fit not in RESIZE or not SMALLEST_IMAGE <= found.image_size <= LARGEST_IMAGE:
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
        """Return an epoch's random numbers, (N, 10) int32 for N training images; None without augmentation."""
        return None if self.augment is None else self.augment.draws(epoch).to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the network's input for images without augmentation.

        Args:
            images: (B, 3, S, S) uint8, S at most `spec.image_size`.

        Returns:
            (B, 3, P, P) of `dtype`, channels_last; in [0, 1] or normalised, with the margin.
        """
        return self._made(images, None, None, lambda: self._by_torch(images, None))

    def _by_torch(self, images: torch.Tensor, colors: torch.Tensor | None) -> torch.Tensor:
        """Return what `__call__` does, by torch's operations; `colors` are added to all pixels of each image."""
        at_once = CACHED_IMAGES if images.device.type == "cpu" else len(images)
        inputs, inner = self._empty(len(images), images.device)
        size, arithmetic = self.spec.image_size, torch.promote_types(self.dtype, torch.float32)
        mean, std = (_row(values, size, images.device, arithmetic) for values in (self.spec.mean, self.spec.std))
        for start in range(0, len(images), at_once):
            part = enlarge(images[start : start + at_once], size).permute(0, 2, 3, 1).flatten(2)
            shift = mean if colors is None else mean - _rows(colors[start : start + at_once], size, arithmetic)
            inner[start : start + at_once] = part.to(arithmetic).sub_(shift).div_(std)
        return inputs

    def augmented(self, batch: Batch, draws: torch.Tensor | None) -> torch.Tensor:
        """Return the network's input for an augmented training batch, mixed with partners where the batch has them.

        Args:
            batch: stored images with their ids.
            draws: `draws()` of the epoch, on the batch's device; None for no augmentation.

        Returns:
            As `__call__`.
        """
        if draws is None:
            return self(batch["images"])
        assert self.augment is not None
        own = draws[batch["ids"]]
        colors = self.augment.colors(own)
        drawn = Drawn(self.augment, draws, batch["ids"], batch.get("partner_images"), batch.get("partner_ids"))
        return self._made(
            batch["images"], drawn, colors, lambda: self._by_torch(self._mixed(batch, draws, own), colors)
        )

    def _mixed(self, batch: Batch, draws: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return a batch's augmented images, (B, 3, S, S) uint8; `own` are the rows of `draws` that belong to them."""
        assert self.augment is not None
        images = self.augment(batch["images"], own)
        if "partner_ids" not in batch:
            return images
        return augment.mix(images, self.augment(batch["partner_images"], draws[batch["partner_ids"]]), own)

    def _made(
        self,
        images: torch.Tensor,
        drawn: Drawn | None,
        colors: torch.Tensor | None,
        by_torch: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """Return the input by one kernel on CUDA, elsewhere and for a few images by torch's operations.

        They are also what takes over where the kernel does not run, for want of a C compiler, or does not give the same
        bits: each case is compared when it is first used, which waits for the device.
        """
        fits = self.augment is None or self.augment.crops in (None, 1)  # the kernel does no random resized crops
        if not (images.is_cuda and len(images) >= FEWEST_FUSED and self.dtype.itemsize <= 4 and fits):
            return by_torch()
        case = (self, images.dtype, images.shape[1:], drawn is None, drawn is not None and drawn.partners is not None)
        if case in _EQUALS_TORCH:
            return self._by_kernel(images, drawn, colors) if _EQUALS_TORCH[case] else by_torch()
        inputs, reason = by_torch(), "its result differs"
        try:
            _EQUALS_TORCH[case] = torch.equal(self._by_kernel(images, drawn, colors), inputs)
        except Exception as error:  # noqa: BLE001 - of Triton, its compiler or the driver
            _EQUALS_TORCH[case], reason = False, str(error).partition("\n")[0]
        if not _EQUALS_TORCH[case]:
            logger.warning("inputs are made by torch's operations and not by one kernel: %s", reason)
        return inputs

    def _by_kernel(self, images: torch.Tensor, drawn: Drawn | None, colors: torch.Tensor | None) -> torch.Tensor:
        """Return what `_by_torch` does of augmented images, by one kernel that augments them too."""
        from alexnet_dist.data import fused_input  # needs Triton

        side = sum(self.margin) + self.spec.image_size
        mean, std = (_row(values, 1, images.device, torch.float32) for values in (self.spec.mean, self.spec.std))
        shift = mean[None] if colors is None else mean - _rows(colors, 1, torch.float32)[:, 0]
        inputs = torch.empty((len(images), side, side, 3), dtype=self.dtype, device=images.device).permute(0, 3, 1, 2)
        fused_input.fill(inputs, images, shift, std, before=self.margin[0], size=self.spec.image_size, drawn=drawn)
        return inputs

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


def _rows(colors: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return (B, 1, 3 * size): each image's (B, 3) colours, on the scale of stored images, along a row of pixels."""
    return colors.to(dtype).mul(255).repeat(1, size)[:, None]
