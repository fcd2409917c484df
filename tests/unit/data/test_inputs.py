"""Network inputs equal torchvision's transforms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from pillow_inputs import channels_first
from torchvision import transforms
from torchvision.transforms import v2

from alexnet_dist.data.inputs import Inputs, InputSpec


def test_inputs_in_0_1_equal_the_lectures_transform_bit_for_bit():
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    lecture = transforms.Compose([transforms.Resize(224), transforms.ToTensor()])
    expected = torch.stack([lecture(Image.fromarray(image)) for image in images])
    ours = make()(channels_first(images))
    assert torch.equal(ours, expected)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_normalised_inputs_equal_torchvisions_to_rounding():
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    chain = transforms.Compose([transforms.Resize(224), transforms.ToTensor(), transforms.Normalize(mean, std)])
    expected = torch.stack([chain(Image.fromarray(image)) for image in images])
    torch.testing.assert_close(
        make(mean=mean, std=std)(channels_first(images)).contiguous(), expected, atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("margin", [(2, 2), (2, 0), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("num_images", [1, 8, 19])  # of one part, and of several
def test_margin_and_type_change_nothing_else(margin, dtype, num_images):
    """What is written in one go equals the image, normalised in float32, rounded, and padded."""
    images = np.random.default_rng(1).integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    settings = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "image_size": 65}
    expected = F.pad(make(**settings)(channels_first(images)).to(dtype), margin * 2)
    ours = make(**settings, margin=margin, dtype=dtype)(channels_first(images))
    assert ours.dtype == dtype
    assert ours.shape == expected.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    if dtype == torch.float64:
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
        assert not torch.equal(ours, expected), "float64 arithmetic throughout"
    else:
        assert torch.equal(ours, expected)


def make(*, image_size=224, mean=(0.0,) * 3, std=(1.0,) * 3, **how):
    return Inputs(InputSpec(image_size, stored_size=32, mean=mean, std=std), **how)


def test_constant_image_becomes_the_expected_value():
    images = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    ours = make(mean=(0.2, 0.1, 0.0), std=(0.5, 0.5, 0.5))(images)
    torch.testing.assert_close(ours.mean(dim=(0, 2, 3)), torch.tensor([0.0, 0.2, 0.4]), atol=1e-6, rtol=0)


def test_colours_are_added_to_all_pixels_of_an_image():
    images = np.random.default_rng(2).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    settings = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5)}
    colors = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) / 10
    plain, shifted = (
        make(**settings)(channels_first(images)),
        make(**settings)._by_torch(channels_first(images), colors),
    )
    expected = plain + (colors / torch.tensor(settings["std"]))[:, :, None, None]
    torch.testing.assert_close(shifted, expected, atol=3e-6, rtol=0)
    assert (shifted - plain).abs().max() > 0.1


def test_photographs_come_in_the_size_of_the_input():
    spec = InputSpec(64, stored_size=None, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), fit="crop")
    assert InputSpec.from_json(spec.to_json()) == spec
    picture = np.random.default_rng(3).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    view = v2.Compose([v2.Resize(73, antialias=True), v2.CenterCrop(64)])(torch.from_numpy(picture).permute(2, 0, 1))
    assert torch.equal(spec.fitted(picture), view)
    ours, mean, std = Inputs(spec)(view[None]), torch.tensor(spec.mean), torch.tensor(spec.std)
    expected = (view / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(ours[0], expected, atol=2e-6, rtol=0)
    assert spec.loaded_size == 64
    small = InputSpec(64, stored_size=32, mean=spec.mean, std=spec.std)
    assert small.loaded_size == 32
    assert InputSpec.from_json(small.to_json()) == small
