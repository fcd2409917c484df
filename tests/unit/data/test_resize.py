"""Enlargement is Pillow's to the bit; augmentation is what it says, and arithmetic."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from torchvision import transforms

from alexnet_dist.data.inputs import Preprocess
from alexnet_dist.data.resize import enlarge, enlarge_fixed_point, torch_kernel_is_exact

CIFAR10 = os.environ.get("ALEXNET_DIST_TEST_CIFAR10")
WAYS = [enlarge, enlarge_fixed_point]


def pillow(images: np.ndarray, size: int) -> np.ndarray:
    """Resize (N, H, W, C) or (N, H, W) uint8 with Pillow."""
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    )


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("factor", [7, 28])
@pytest.mark.parametrize("way", WAYS)
def test_all_neighbour_pairs_at_all_phases_equal_pillow(way, factor):
    """65,536 pairs of neighbours, each at all phases between their centres, along both axes."""
    pairs = (
        np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=-1).reshape(-1, 2).astype(np.uint8)
    )
    tall = Image.fromarray(pairs)  # Pillow resizes along the row only: the height stays
    expected = torch.from_numpy(np.asarray(tall.resize((2 * factor, len(pairs)), Image.Resampling.BILINEAR)).copy())
    assert expected.shape == (65536, 2 * factor)
    differing = 0
    squares = torch.from_numpy(pairs)[:, None, None, :].repeat(1, 1, 2, 1)  # two equal rows each
    for rows, chunk in zip(expected.split(8192), squares.split(8192), strict=True):
        expected_squares = rows[:, None, None, :].expand(-1, 1, 2 * factor, -1)
        differing += int((way(chunk, 2 * factor) != expected_squares).sum())
        differing += int((way(chunk.mT, 2 * factor) != expected_squares.mT).sum())
    assert differing == 0


@pytest.mark.parametrize("source", [32, 8, 16, 28, 64, 30, 100, 7, 112, 223, 224])
@pytest.mark.parametrize("way", WAYS)
def test_images_of_any_size_equal_pillow(way, source):
    rng = np.random.default_rng(source)
    noise = rng.integers(0, 256, (4, source, source, 3), dtype=np.uint8)
    hard = rng.integers(0, 2, (4, source, source, 3), dtype=np.uint8) * 255
    images = np.concatenate([noise, hard])
    assert (way(channels_first(images), 224).permute(0, 2, 3, 1).numpy() != pillow(images, 224)).sum() == 0


@pytest.mark.skipif(CIFAR10 is None, reason="ALEXNET_DIST_TEST_CIFAR10 names no copy of CIFAR-10")
def test_real_images_equal_pillow():
    import pyarrow.parquet as pq

    rows = pq.read_table(next(Path(CIFAR10).rglob("test-*.parquet")), columns=["img"]).slice(0, 1000).to_pylist()
    images = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    assert images.shape == (1000, 32, 32, 3)
    for way in WAYS:
        assert (way(channels_first(images), 224).permute(0, 2, 3, 1).numpy() != pillow(images, 224)).sum() == 0


def test_fast_kernel_is_used_where_it_is_exact_and_not_elsewhere():
    assert torch_kernel_is_exact(32, 224)
    assert not torch_kernel_is_exact(8, 224)  # factor 28: outputs half-way between two values exist


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


def make(**changes):
    settings = {"image_size": 224, "source_size": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    settings |= {"margin": (0, 0), "dtype": torch.float32, "augment": None}
    return Preprocess(**(settings | changes))


def test_constant_image_becomes_the_expected_value():
    images = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
    ours = make(mean=(0.2, 0.1, 0.0), std=(0.5, 0.5, 0.5))(images)
    torch.testing.assert_close(ours.mean(dim=(0, 2, 3)), torch.tensor([0.0, 0.2, 0.4]), atol=1e-6, rtol=0)
