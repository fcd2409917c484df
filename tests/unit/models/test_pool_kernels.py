"""Kernels of pool and ReLU, and the plain operator: torchvision's two layers, exactly, gradients too."""

import interpreted
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from alexnet_dist.models.pool_relu import pool_relu, pool_relu_backward

NAN, INF = float("nan"), float("inf")
SPECIAL = (NAN, -NAN, 0.0, -0.0, INF, -INF, 1.0, 1.0, -1.0, 2.0)  # few values, so that many are equal
SHAPES = [(2, 3, 7, 7), (1, 70, 3, 3), (2, 5, 8, 6), (1, 64, 13, 4)]


@pytest.fixture(scope="module")
def kernels():
    return interpreted.load("alexnet_dist.models.pool_kernels")


def maps_of(shape, dtype, *, special):
    generator = torch.Generator().manual_seed(0)
    if special:
        return torch.tensor(SPECIAL, dtype=dtype)[torch.randint(len(SPECIAL), shape, generator=generator)]
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def torchvisions(maps, gradient):
    """Return what ReLU and then the pool give, and the gradient of the maps."""
    maps = maps.clone().requires_grad_()
    pooled = F.max_pool2d(F.relu(maps), 3, 2)
    pooled.backward(gradient)
    return pooled.detach(), maps.grad


def integers_like(pooled):
    """Return a gradient whose sums every order of adding makes alike."""
    return torch.arange(pooled.numel()).remainder(13).sub(6).view(pooled.shape).to(pooled.dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("special", [False, True], ids=["normal numbers", "ties, NaN, infinities and -0.0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_operator_and_kernels_equal_torchvisions_layers(kernels, shape, special, dtype):
    maps = maps_of(shape, dtype, special=special)
    gradient = integers_like(F.max_pool2d(maps, 3, 2))
    expected = torchvisions(maps, gradient)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = maps.contiguous(memory_format=layout)
        for forward, backward in ((pool_relu, pool_relu_backward), (kernels.forward, kernels.backward)):
            pooled, places = forward(given)
            found = pooled, backward(gradient.contiguous(memory_format=layout), places, *shape[2:])
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.dtype == dtype
                assert ours.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_sums_of_gradients_are_rounded_once(kernels):
    """A value is the maximum of four windows: in float16, 2048 + 1 + 1 + 1 is 2051, which rounds up to 2052."""
    maps = torch.zeros(1, 1, 5, 5, dtype=torch.float16)
    maps[0, 0, 2, 2] = 1
    gradient = torch.tensor([2048.0, 1, 1, 1], dtype=torch.float16).view(1, 1, 2, 2)
    for forward, backward in ((pool_relu, pool_relu_backward), (kernels.forward, kernels.backward)):
        assert backward(gradient, forward(maps)[1], 5, 5)[0, 0, 2, 2] == 2052


@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
def test_kernels_compile_for_a_gpu(kernel):
    number, byte = "*bf16", "*u8"
    tensors = {"_forward": {"values": number, "pooled": number, "places": byte}}
    tensors["_backward"] = {"of_pooled": number, "places": byte, "of_maps": number}
    sizes = ("pixels", "height", "width", "pooled_height", "pooled_width", "channels")
    constants = {"PIXELS": 16, "CHANNELS": 64}
    types = {**tensors[kernel], **dict.fromkeys(sizes, "i32")}
    assert "st.global" in interpreted.assembly("alexnet_dist.models.pool_kernels", kernel, types, constants)
