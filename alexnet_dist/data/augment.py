"""Augmentation of stored uint8 images, a batch at a time, on their device: crop, flip, cutout, mixup, CutMix.

Random numbers are drawn for a whole epoch at once, a row for each image of the training split, so that the augmentation
of an image depends on (seed, epoch, image id) alone: not on the batch, the rank or the world size.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from alexnet_dist import rng
from alexnet_dist.architecture import Channels
from alexnet_dist.data.crops import boxes

CROP, FLIP, CUTOUT, BOX, SHARE = slice(0, 2), 2, slice(3, 5), slice(5, 9), 9  # columns of the drawn numbers
COLOR = slice(10, 13)  # columns that are there with colour augmentation only
NUM_COLUMNS = 10
RESIZED = slice(-4, None)  # columns that are there with random resized crops only
PIXEL = 1 << 8  # a pixel's side in units of random resized crops
WHOLE = 1 << 16  # 1 in units of drawn numbers that are no integers: shares of a mixture, shifts of colour


@dataclass(frozen=True)
class Augment:
    """Augmentation of a training image before it is enlarged.

    Args:
        source_size: side of the stored images, in pixels.
        num_images: in the training split.
        seed: of all random numbers.
        flips: whether images are flipped; False where a mirrored image has another class.
        cutout: side of the square that is filled, as a share of the image's side; 0 for none.
        mix: how an image is mixed with a partner; None for not at all.
        mix_alpha: alpha of Beta(alpha, alpha), from which shares are drawn.
        fill: (R, G, B) in [0, 255] of the cutout square.
        crops: smallest share of the area of random resized crops; 1 for shifts by up to an eighth of the side instead;
            None for neither: photographs are cropped as they are decoded.
        axes: colour augmentation: three principal axes of the pixels' colours in [0, 1], each as long as the standard
            deviation of shifts along it; None for none.
    """

    source_size: int
    num_images: int
    seed: int
    flips: bool
    cutout: float
    mix: Literal["mixup", "cutmix"] | None
    mix_alpha: float
    fill: tuple[int, int, int]
    crops: float | None = 1.0
    axes: tuple[Channels, Channels, Channels] | None = None

    def draws(self, epoch: int) -> torch.Tensor:
        """Return an epoch's random numbers of each training image.

        An image is flipped in every second epoch; whether epoch 0 is one of them is drawn. So each image is seen both
        ways equally often (Jordan, arXiv:2404.00498, "alternating flip").

        Returns:
            (N, 10) int32 on the CPU: row and column offset of the crop, in [0, 2 * padding]; flip, in {0, 1}; row and
            column of the cutout's centre; top, bottom, left and right of the box taken from the partner; the image's
            share in the mixture, in units of 1/65536. With colour augmentation (N, 13): the shifts along the three
            axes, in the same units. With random resized crops four more, the last: top, left, height and width of the
            box, in units of 1/256 pixel.
        """
        count, size, resized = self.num_images, self.source_size, self.crops is not None and self.crops < 1
        table = np.zeros((count, NUM_COLUMNS + 3 * (self.axes is not None) + 4 * resized), np.int32)
        if resized:
            sides = np.full(count, size * PIXEL)
            table[:, RESIZED] = boxes(self.seed, epoch, sides, sides, (self.crops or 1.0, 1.0))
        elif self.crops:
            table[:, CROP] = rng.generator(self.seed, "crop", epoch).integers(0, 2 * max_shift(size) + 1, (count, 2))
        if self.flips:
            table[:, FLIP] = (rng.generator(self.seed, "flip").integers(0, 2, count) + epoch) % 2
        if self.cutout:
            table[:, CUTOUT] = rng.generator(self.seed, "cutout", epoch).integers(0, size, (count, 2))
        table[:, SHARE] = WHOLE
        if self.mix is not None:
            drawn = rng.generator(self.seed, "mix", epoch)
            own = drawn.beta(self.mix_alpha, self.mix_alpha, count)
            if self.mix == "cutmix":
                table[:, BOX] = _boxes(own, drawn.integers(0, size, (count, 2)), size)
                top, bottom, left, right = table[:, BOX].T
                own = 1 - (bottom - top) * (right - left) / size**2  # what lies beyond the border is not taken
            table[:, SHARE] = np.rint(own * WHOLE)
        if self.axes is not None:
            table[:, COLOR] = np.rint(rng.generator(self.seed, "color", epoch).normal(size=(count, 3)) * WHOLE)
        return torch.from_numpy(table)

    def __call__(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Return the images cropped, flipped, and with the cutout square filled.

        Args:
            images: (B, 3, S, S) uint8.
            draws: (B, 10) int32, the rows of `draws()` of these images.

        Returns:
            (B, 3, S, S) uint8, channels_last.
        """
        if self.crops is None:
            images = flip(images, draws)
        else:
            images = crop_and_flip(images, draws) if self.crops == 1 else resized_crop_and_flip(images, draws)
        side = round(self.cutout * self.source_size)
        if side == 0:
            return images
        first = draws[:, CUTOUT] - side // 2
        corners = torch.stack([first[:, 0], first[:, 0] + side, first[:, 1], first[:, 1] + side], dim=1)
        fill = torch.tensor(self.fill, dtype=torch.uint8, device=images.device).view(3, 1, 1)
        return torch.where(_inside(corners, self.source_size), fill, images)

    def colors(self, draws: torch.Tensor) -> torch.Tensor | None:
        """Return what is added to all pixels of each image: (B, 3) float32, in [0, 1]; None without.

        Source: Krizhevsky et al. 2012, section 4.1. The sum is not clipped.
        """
        if self.axes is None:
            return None
        return (draws[:, COLOR].float() / WHOLE) @ torch.tensor(self.axes, device=draws.device)


class Drawn(NamedTuple):
    """What augments a batch."""

    settings: Augment
    table: torch.Tensor
    """(N, 10) int32 or wider: `Augment.draws`."""
    ids: torch.Tensor
    """(B,) int64: rows of the table."""
    partners: torch.Tensor | None
    """(B, 3, S, S) uint8, stored as the images are; None where images are not mixed."""
    partner_ids: torch.Tensor | None


def mix(images: torch.Tensor, partners: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return images mixed with partners: by a box of the partner's pixels (CutMix) or a blend of all pixels (mixup).

    Sources: Yun et al., arXiv:1905.04899; Zhang et al., arXiv:1710.09412.

    Args:
        images: (B, 3, S, S) uint8, augmented.
        partners: (B, 3, S, S) uint8, augmented.
        draws: (B, 10) int32, the rows of `Augment.draws` of `images`.

    Returns:
        (B, 3, S, S) uint8; a blend is rounded to the nearest value.
    """
    inside = _inside(draws[:, BOX], images.shape[-1])
    has_box = inside.flatten(1).any(dim=1)[:, None, None, None]
    own = draws[:, SHARE].int()[:, None, None, None]
    blend = (images.int() * own + partners.int() * (WHOLE - own) + WHOLE // 2) >> 16
    return torch.where(has_box, torch.where(inside, partners, images), blend.to(torch.uint8))


def shares(draws: torch.Tensor) -> torch.Tensor:
    """Return each image's share in its mixture, the weight of its own label: (B,) float32 in [0, 1]."""
    return draws[:, SHARE].float() / WHOLE


def _boxes(own: npt.NDArray[np.float64], centres: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Return squares of area 1 - own around the centres, cut at the border: (N, 4) top, bottom, left, right."""
    side = np.rint(np.sqrt(1 - own) * size).astype(np.int64)[:, None]
    first = centres - side // 2
    return np.stack([first, first + side], axis=2).clip(0, size).reshape(-1, 4)


def _inside(corners: torch.Tensor, size: int) -> torch.Tensor:
    """Return (B, 1, S, S) bool: the pixels within each image's top <= row < bottom, left <= column < right."""
    pixel = torch.arange(size, device=corners.device)
    top, bottom, left, right = corners[:, :, None].unbind(1)
    rows, columns = (pixel >= top) & (pixel < bottom), (pixel >= left) & (pixel < right)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def flip(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return images, (B, 3, S, S) uint8, some of them flipped: those with a 1 in the column of `Augment.draws`."""
    return torch.where(draws[:, FLIP, None, None, None] == 1, images.flip(-1), images)


def principal_axes(covariance: npt.NDArray[np.float64], deviation: float) -> tuple[Channels, Channels, Channels]:
    """Return the axes of colour augmentation: eigenvectors, each times its eigenvalue and the deviation.

    Args:
        covariance: (3, 3), of the training pixels' channels in [0, 1].
        deviation: of the normal numbers that the axes are multiplied with; 0.1 in the paper.
    """
    values, vectors = np.linalg.eigh(covariance)
    first, second, third = ((r, g, b) for r, g, b in (vectors * values * deviation).T.tolist())
    return first, second, third


def max_shift(source_size: int) -> int:
    """Return the largest shift of a crop, in pixels."""
    return source_size // 8  # 4 of CIFAR-10's 32 pixels, as in most published recipes


def crop_and_flip(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return images shifted, with reflected borders, and some of them flipped, by one gather.

    Args:
        images: (B, 3, S, S) uint8.
        draws: (B, 3) int32 or wider: row offset, column offset, flip, the first columns of `Augment.draws`.

    Returns:
        (B, 3, S, S) uint8, channels_last.
    """
    size = images.shape[-1]
    padding = max_shift(size)
    pixel = torch.arange(size, device=images.device)
    rows = _reflect(pixel + draws[:, 0:1] - padding, size)  # (B, S)
    columns = _reflect(pixel + draws[:, 1:2] - padding, size)
    columns = torch.where(draws[:, 2:3] == 1, columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def resized_crop_and_flip(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Return a box of each image, enlarged to the whole by bilinear interpolation, and some of them flipped.

    Boxes begin and end within pixels. The arithmetic is that of integers, the same on all devices.

    Args:
        images: (B, 3, S, S) uint8.
        draws: (B, 14) int32 or wider, the rows of `Augment.draws`.

    Returns:
        (B, 3, S, S) uint8, channels_last.
    """
    size, box = images.shape[-1], draws[:, RESIZED].long()
    centre = 2 * torch.arange(size, device=images.device) + 1
    for axis in (2, 3):
        place = box[:, axis - 2, None] + box[:, axis, None] * centre // (2 * size) - PIXEL // 2  # (B, S)
        if axis == 3:
            place = torch.where(draws[:, FLIP, None] == 1, place.flip(1), place)
        shape = (-1, 1, size, 1) if axis == 2 else (-1, 1, 1, size)
        low, share = (place // PIXEL).view(shape), (place % PIXEL).view(shape).int()
        near, far = (images.gather(axis, (low + k).clamp(0, size - 1).expand(images.shape)).int() for k in (0, 1))
        images = ((near * (PIXEL - share) + far * share + PIXEL // 2) // PIXEL).to(torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Return indices with those outside [0, size) reflected at the border pixels, which are not repeated."""
    return (size - 1) - (size - 1 - index.abs()).abs()
