"""AlexNet's layers rewritten for speed: the same function of the same parameters under the same key names.

Each of them is undone by loading the weights into `torchvision.models.alexnet`; `tests/unit/models/test_fast_layers.py`
holds logits and gradients against it in float64. Gains are in docs/performance.md. Knows nothing about processes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
import torchvision
from torch import nn

from alexnet_dist.models.pool_relu import PoolReLU

LEVELS = 1 << 16
"""Values of the random number that decides whether one value is dropped: 16 bits."""


def rewrite(model: torchvision.models.AlexNet, *, image_size: int) -> nn.Module:
    """Replace the layers of torchvision's AlexNet in place and return it; its input then has a margin.

    Args:
        model: whose input is (B, 3, S, S). Afterwards it is (B, 3, P, P) with the image inside `margin(S)` zeros.
        image_size: S, the side of the images without their margin; no other is taken.
    """
    model.features[0] = Conv1.of(model.features[0], image_size)
    _pool_before_relu(model.features)
    model.avgpool = AveragePool((6, 6))
    for index, layer in enumerate(model.classifier):
        if isinstance(layer, nn.Dropout):
            model.classifier[index] = Dropout(layer.p)
    network: nn.Module = model
    return network


def margin(image_size: int) -> tuple[int, int]:
    """Return the zeros that `Conv1` expects before and behind the image, along both axes.

    Two before, as torchvision's padding has it. Behind, as many as make the side a multiple of four and leave the
    number of outputs what it was: 2 at 224, from 0 to 3 elsewhere.
    """
    return 2, (image_size + 5) // 4 * 4 - image_size - 2


def _pool_before_relu(features: nn.Sequential) -> None:
    """Make each ReLU and the maximum that follows it one layer; nothing stays in the ReLU's place."""
    for index in range(len(features) - 1):
        if isinstance(features[index], nn.ReLU) and isinstance(features[index + 1], nn.MaxPool2d):
            features[index], features[index + 1] = nn.Identity(), PoolReLU(3, 2)


class Conv1(nn.Conv2d):
    """A convolution of stride 4 over 3 channels, computed as one over blocks of four pixels: space to depth.

    At stride 4, four neighbours of a row always enter a kernel together. In channels_last memory they are 12 values
    side by side, so a view, without any copy, is an image of 12 channels and a quarter of the width; the kernel, with
    a column of zeros behind it, becomes one of 11 x 3 with stride (4, 1). Matrix units that pad channels to 32 have
    four times as much to do with 12 of them as with 3.
    """

    image_size: int
    """Side of the images without their margin; of an image without margin the outputs would be others, silently."""

    @classmethod
    def of(cls, conv: nn.Conv2d, image_size: int) -> Conv1:
        """Take over the parameters of torchvision's conv1; its padding becomes the caller's (`margin`)."""
        assert (conv.in_channels, conv.kernel_size, conv.stride) == (3, (11, 11), (4, 4))
        fast = cls(3, conv.out_channels, kernel_size=11, stride=4, device="meta")  # draws no random numbers
        fast.weight, fast.bias = conv.weight, conv.bias
        fast.image_size = image_size
        return fast

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (B, 64, H, W) from (B, 3, P, P) images with their margin, P a multiple of 4."""
        batch, channels, height, width = images.shape
        side = self.image_size + sum(margin(self.image_size))
        assert (channels, height, width) == (3, side, side), (
            f"inputs must be (B, 3, {side}, {side}): images of {self.image_size} pixels within the zeros of "
            f"fast_layers.margin({self.image_size}) = {margin(self.image_size)}, not {tuple(images.shape)}"
        )
        # a view of channels_last memory
        blocks = images.permute(0, 2, 3, 1).reshape(batch, height, width // 4, 12).permute(0, 3, 1, 2)
        # by channel, row, block and pixel of the block
        kernel = F.pad(self.weight, (0, 1)).view(-1, 3, 11, 3, 4).permute(0, 4, 1, 2, 3).reshape(-1, 12, 11, 3)
        return F.conv2d(blocks, kernel, self.bias, stride=(4, 1))


class AveragePool(nn.AdaptiveAvgPool2d):
    """Average to 6 x 6, or hand on what has that size already, as it has for images of 224 pixels."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (B, C, 6, 6) from (B, C, H, W)."""
        return maps if maps.shape[-2:] == self.output_size else super().forward(maps)


class Dropout(nn.Dropout):
    """Dropout whose mask on a CPU takes 16 random bits a value.

    Torch draws a double for each, one thread alone: 77 ms of a step of 1.5 s at batch 512. `p` is rounded to
    a multiple of 1/65536. CUDA draws and applies its mask in one kernel, so there it stays torch's.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` with a share `p` set to zero and the rest scaled by 1 / (1 - p)."""
        if not self.training or self.p == 0 or values.device.type != "cpu":
            return super().forward(values)
        size = values.numel()
        words = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[:size].view(values.shape)
        mask = (draws >= round(self.p * LEVELS) - LEVELS // 2).to(values.dtype)
        return values * mask.mul_(1 / (1 - self.p))
