"""Enlargement is Pillow's to the bit."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pillow_inputs import channels_first, pillow

from alexnet_dist.data.resize import enlarge, enlarge_fixed_point, torch_kernel_is_exact

CIFAR10 = os.environ.get("ALEXNET_DIST_TEST_CIFAR10")
WAYS = [enlarge, enlarge_fixed_point]


@pytest.mark.parametrize("factor", [7, pytest.param(28, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 3, 32, 48, dtype=torch.uint8),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(2, 3, 65, 65, dtype=torch.uint8),
        torch.zeros(2, 3, 64, 64),
    ],
    ids=lambda images: f"{images.dtype} {tuple(images.shape)}",
)
def test_what_is_no_batch_of_small_squares_is_refused(images):
    """Floats would be taken for values up to 255, other shapes would be squeezed: the logits would be wrong."""
    with pytest.raises(AssertionError, match=r"images must be \(B, C, S, S\) uint8, S at most 64, not \(2, "):
        enlarge(images, 64)
