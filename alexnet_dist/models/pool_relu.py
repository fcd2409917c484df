"""Pool and ReLU as one operator of torch, `alexnet_dist::pool_relu`: plain operations of torch, and kernels for CUDA.

Computes what torchvision's AlexNet does by ReLU and then the maximum of 3 x 3 at stride 2. The value that is a window's
maximum, the first of equal ones or the last NaN, gets the window's gradient; below 0, and at 0, none does.
"""

import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn

logger = logging.getLogger(__name__)

NOWHERE = 9
"""Place of a maximum whose gradient ReLU stops."""


def pooled_side(side: int) -> int:
    """Return how many windows of three at stride two fit into a side."""
    return (side - 3) // 2 + 1


class PoolReLU(nn.MaxPool2d):
    """A pool of AlexNet and the ReLU beside it. Both are monotonic, so their order does not matter.

    On CUDA one kernel each way where it works; compiled, what torch.compile makes of both.
    """

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (B, C, h, w), not below 0, from (B, C, H, W)."""
        if maps.is_cuda and not torch.compiler.is_compiling() and kernels_work(maps.device, maps.dtype):
            pooled: torch.Tensor = pool_relu(maps)[0]
            return pooled
        return F.relu(super().forward(maps), inplace=True)  # which meets a quarter of the values


# ---- the operator, by plain operations ------------------------------------------------------------------------------


@torch.library.custom_op("alexnet_dist::pool_relu", mutates_args=())
def pool_relu(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maxima of 3 x 3 values at stride 2, those below 0 as 0, and where each lies in its window.

    Args:
        maps: (B, C, H, W).

    Returns:
        (B, C, h, w); and uint8 of that shape, 3 * row + column, `NOWHERE` where the maximum is not above 0. Both are
        channels_last.
    """
    largest, index = F.max_pool2d(maps, 3, 2, return_indices=True)
    rows, columns = (2 * torch.arange(side, device=maps.device) for side in largest.shape[2:])
    places = 3 * (index // maps.shape[3] - rows[:, None]) + index % maps.shape[3] - columns
    is_off = largest <= 0
    places = places.masked_fill(is_off, NOWHERE).to(torch.uint8)
    last = torch.channels_last
    return largest.masked_fill(is_off, 0).contiguous(memory_format=last), places.contiguous(memory_format=last)


@torch.library.custom_op("alexnet_dist::pool_relu_backward", mutates_args=())
def pool_relu_backward(gradient: torch.Tensor, places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the gradient (B, C, height, width) of the maps, channels_last, by that of the maxima and their places."""
    rows, columns = (2 * torch.arange(side, device=places.device) for side in places.shape[2:])
    place, is_off = places.long(), places == NOWHERE
    index = ((rows[:, None] + place // 3) * width + columns + place % 3).masked_fill(is_off, 0)
    terms = gradient.masked_fill(is_off, 0).to(torch.promote_types(gradient.dtype, torch.float32))
    sums = terms.new_zeros((*gradient.shape[:2], height * width)).scatter_add_(2, index.flatten(2), terms.flatten(2))
    of_maps = sums.view(*gradient.shape[:2], height, width).to(gradient.dtype)
    return of_maps.contiguous(memory_format=torch.channels_last)


@pool_relu.register_fake
def _(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, channels, height, width = maps.shape
    shape = (batch, pooled_side(height), pooled_side(width), channels)
    return maps.new_empty(shape).permute(0, 3, 1, 2), maps.new_empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)


@pool_relu_backward.register_fake
def _(gradient: torch.Tensor, places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return gradient.new_empty((len(places), height, width, places.shape[1])).permute(0, 3, 1, 2)


def _keep(ctx: Any, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, torch.Tensor]) -> None:  # noqa: ANN401
    ctx.save_for_backward(output[1])
    ctx.sides = inputs[0].shape[2:]


def _gradient(ctx: Any, gradient: torch.Tensor, _: None) -> torch.Tensor:  # noqa: ANN401 - torch's context
    found: torch.Tensor = pool_relu_backward(gradient, *ctx.saved_tensors, *ctx.sides)
    return found


pool_relu.register_autograd(_gradient, setup_context=_keep)


# ---- and by kernels -------------------------------------------------------------------------------------------------


@pool_relu.register_kernel("cuda")
def _(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from alexnet_dist.models import pool_kernels  # needs Triton

    return pool_kernels.forward(maps)


@pool_relu_backward.register_kernel("cuda")
def _(gradient: torch.Tensor, places: torch.Tensor, height: int, width: int) -> torch.Tensor:
    from alexnet_dist.models import pool_kernels

    return pool_kernels.backward(gradient, places, height, width)


@cache
def kernels_work(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the kernels run on a device and agree with torch's pool and ReLU; tells why they are not used.

    They are tried once, on integers, whose sums every order of adding makes alike.
    """
    maps = torch.arange(2 * 64 * 13 * 13, device=device).mul_(7919).remainder_(201).sub_(100).view(2, 64, 13, 13)
    maps = maps.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    reason = "their result differs"
    try:
        with torch.enable_grad():
            expected, found = F.max_pool2d(F.relu(maps), 3, 2), pool_relu(maps)[0]
            gradients = [torch.autograd.grad(pooled, maps, pooled.detach())[0] for pooled in (expected, found)]
        works = torch.equal(found, expected) and torch.equal(*gradients)  # waits for the device, once
    except Exception as error:  # noqa: BLE001 - of Triton, its compiler or the driver
        works, reason = False, str(error).partition("\n")[0]
    if not works:
        logger.warning("pools are torch's and not the kernels of this package: %s", reason)
    return works
