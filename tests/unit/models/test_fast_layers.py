"""The rewritten layers compute torchvision's function: in float64 to 1e-10, logits and gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from PIL import Image
from tiny import tiny_alexnet
from torch import nn

from alexnet_dist.config import ModelConfig
from alexnet_dist.data.inputs import Inputs, InputSpec
from alexnet_dist.models import alexnet as model
from alexnet_dist.models import fast_layers

MEAN, STD = (0.49, 0.48, 0.44), (0.2, 0.25, 0.3)


def plain_inputs(images: np.ndarray) -> torch.Tensor:
    """Enlarge with Pillow, one image after another, and normalise in float64: (B, 3, 224, 224)."""
    resized = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BILINEAR)) for image in images]
    values = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(channels, dtype=torch.float64).view(3, 1, 1) for channels in (MEAN, STD))
    return (values - mean) / std


def loss_and_gradients(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = network(inputs)
    F.cross_entropy(logits, labels).backward()
    return {"logits": logits.detach()} | {name: p.grad for name, p in network.named_parameters()}


def assert_equal_to_1e_10(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert expected.abs().max() > 0, name
        assert (ours[name] - expected).abs().max() <= 1e-10 * expected.abs().max(), name


def test_whole_network_on_pillows_inputs_in_float64():
    """Space to depth, pool before ReLU, the skipped average pool and the fused input path, all at once."""
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    labels = torch.tensor([1, 7, 4])
    network = model.build(ModelConfig(dropout=0.0), num_classes=10, seed=0)
    twin = torchvision.models.alexnet(num_classes=10, dropout=0.0)
    twin.load_state_dict(network.state_dict())
    make = Inputs(InputSpec(224, 32, MEAN, STD), margin=fast_layers.margin(224), dtype=torch.float64)
    inputs = make(torch.from_numpy(images).permute(0, 3, 1, 2))
    network.double().to(memory_format=torch.channels_last)
    assert_equal_to_1e_10(
        loss_and_gradients(network, inputs, labels), loss_and_gradients(twin.double(), plain_inputs(images), labels)
    )


@pytest.mark.parametrize("size", [*range(63, 72), 96, 127])
def test_whole_network_at_other_sizes_in_float64(size):
    """The margin is right wherever the side is not a multiple of four, and the average pool works where it must."""
    torch.manual_seed(0)
    twin = tiny_alexnet(num_classes=10, dropout=0.0).double()
    network = fast_layers.rewrite(tiny_alexnet(num_classes=10, dropout=0.0).double(), image_size=size)
    network.load_state_dict(twin.state_dict())
    images, labels = torch.randn(2, 3, size, size, dtype=torch.float64), torch.tensor([3, 8])
    inputs = F.pad(images, fast_layers.margin(size) * 2)
    assert_equal_to_1e_10(loss_and_gradients(network, inputs, labels), loss_and_gradients(twin, images, labels))


@pytest.mark.parametrize("size", [63, 64, 224])
def test_an_image_without_its_margin_is_refused(size):
    """It would give other logits, and nothing would say so where the side is a multiple of four."""
    network = fast_layers.rewrite(tiny_alexnet(num_classes=10), image_size=size)
    images = torch.randn(2, 3, size, size)
    side = size + sum(fast_layers.margin(size))
    with pytest.raises(AssertionError, match=rf"must be \(B, 3, {side}, {side}\): images of {size} pixels within"):
        network(images)
    with pytest.raises(AssertionError, match="inputs must be"):
        network(F.pad(images, fast_layers.margin(size) * 2).permute(0, 2, 3, 1))
    assert network(F.pad(images, fast_layers.margin(size) * 2)).shape == (2, 10)


def test_state_dict_goes_to_torchvision_and_back():
    torch.manual_seed(0)
    network, twin = fast_layers.rewrite(tiny_alexnet(), image_size=224), tiny_alexnet()
    twin.load_state_dict(network.state_dict(), strict=True)
    assert list(network.state_dict()) == list(twin.state_dict())
    again = fast_layers.rewrite(tiny_alexnet(), image_size=224)
    again.load_state_dict(twin.state_dict(), strict=True)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    assert network.get_parameter("features.0.weight").shape == (64, 3, 11, 11)


def test_rewriting_draws_no_random_numbers():
    network = tiny_alexnet()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fast_layers.rewrite(network, image_size=224)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_relu_before_a_pool_is_part_of_it():
    features = fast_layers.rewrite(tiny_alexnet(), image_size=224).get_submodule("features")
    kinds = [type(layer) for layer in features]
    assert [kinds.count(kind) for kind in (nn.ReLU, fast_layers.PoolReLU, nn.MaxPool2d, nn.Identity)] == [2, 3, 0, 3]


def test_maps_of_6_x_6_are_handed_on_without_a_copy():
    pool = fast_layers.AveragePool((6, 6))
    maps = torch.randn(2, 4, 6, 6)
    assert pool(maps) is maps
    assert pool(torch.randn(2, 4, 1, 3)).shape == (2, 4, 6, 6)


@pytest.mark.parametrize("size", range(63, 130))
def test_margin_makes_blocks_of_four_and_keeps_the_number_of_outputs(size):
    before, behind = fast_layers.margin(size)
    side = before + size + behind
    assert before == 2
    assert 0 <= behind <= 3
    assert side % 4 == 0
    assert (side - 11) // 4 == (size + 4 - 11) // 4


# ---- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_scales_the_rest(p, dtype):
    torch.manual_seed(1)
    size = 1_000_003  # not a multiple of the four values that share a random word
    values = torch.ones(size, dtype=dtype, requires_grad=True)
    dropped = fast_layers.Dropout(p)(values)
    kept = int((dropped != 0).sum())
    assert abs(kept - size * (1 - p)) < 5 * math.sqrt(size * p * (1 - p))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p), dtype=dtype).item()}
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach()), "the gradient goes where the values went"


def test_dropout_decides_about_each_value_by_itself():
    torch.manual_seed(2)
    kept = (fast_layers.Dropout(0.5)(torch.ones(4096, 64)) != 0).double()
    for lag in (1, 2, 3, 4, 8, 64):
        left, right = kept.flatten()[:-lag] - 0.5, kept.flatten()[lag:] - 0.5
        assert abs(float((left * right).mean())) < 5 * 0.25 / math.sqrt(kept.numel()), lag


def test_dropout_follows_from_torchs_seed_at_any_number_of_threads():
    def draw() -> torch.Tensor:
        torch.manual_seed(3)
        return fast_layers.Dropout(0.5)(torch.ones(512, 64))

    first, threads = draw(), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(first, draw())
    finally:
        torch.set_num_threads(threads)
    torch.manual_seed(4)
    assert not torch.equal(first, fast_layers.Dropout(0.5)(torch.ones(512, 64)))


def test_dropout_does_nothing_where_it_should():
    values = torch.randn(8, 8)
    assert torch.equal(fast_layers.Dropout(0.5).eval()(values), values)
    assert torch.equal(fast_layers.Dropout(0.0)(values), values)
