"""Crops resized a batch at a time, in matrix products: the pixels of torch's uint8 kernel, to the bit."""

import numpy as np
import pytest
import torch
from photos import picture

from alexnet_dist.data import crops, device_crops

SIDES = [(224, 224), (300, 200), (61, 400), (500, 37), (1, 1), (1, 50), (3, 2), (256, 341), (375, 500), (9, 1500)]


@pytest.fixture(autouse=True)
def _kernel_of_integers():
    if not crops.UINT8_KERNEL:
        pytest.skip("this CPU resizes in float32: the loader never resizes on a device beside it")


def cut(image, box):
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def resized(pictures, views, fill=255):
    """Return the images of views of pictures; what is beyond a copy is not 0."""
    pixels = np.full(views.places()[-1] + 100, fill, np.uint8)
    for part, image, box in zip(views.parts(pixels), pictures, views.boxes.tolist(), strict=True):
        part[:] = cut(image, box)
    return device_crops.resized(torch.from_numpy(pixels), views)


@pytest.mark.parametrize("size", [224, 64, 65, 9])
def test_crops_are_those_of_the_cpu(size):
    pictures = [picture(*side, seed) for seed, side in enumerate(SIDES)]
    heights, widths = np.array(SIDES).T
    for epoch in range(3):
        boxes = crops.boxes(0, epoch, heights, widths, (0.08, 1.0))
        found = resized(pictures, device_crops.views(boxes, *boxes.T[2:], size))
        for image, box, ours in zip(pictures, boxes.tolist(), found, strict=True):
            assert torch.equal(ours, crops.resized_crop(cut(image, box), size)), (image.shape, box)


@pytest.mark.parametrize("size", [224, 63, 7])
def test_evaluation_views_are_those_of_the_cpu(size):
    short = round(size * 256 / 224)
    sides = [*SIDES, (short, short), (short, short + 9), (size, size), (short + 1, short)]
    pictures = [picture(*side, seed) for seed, side in enumerate(sides)]
    found = resized(pictures, device_crops.views(None, *np.array(sides).T, size))
    for image, ours in zip(pictures, found, strict=True):
        assert torch.equal(ours, crops.evaluation_view(image, size)), image.shape


@pytest.mark.parametrize("size", [224, 63])
def test_sides_of_all_lengths_are_weighed_as_torch_does(size):
    """Noise, black and white: a weight that is off by one changes some of them."""
    drawn = np.random.default_rng(0)
    for length in range(1, 700, 13 if size == 63 else 29):
        image = drawn.integers(0, 256, (6, length, 3), dtype=np.uint8)
        image[:2] = 255 * (image[:2] > 127)
        image[2] = 255
        pictures = [image, image.transpose(1, 0, 2)]
        boxes = np.array([(0, 0, *image.shape[:2]) for image in pictures])
        found = resized(pictures, device_crops.views(boxes, *boxes.T[2:], size))
        for ours, image in zip(found, pictures, strict=True):
            assert torch.equal(ours, crops.resized_crop(image, size)), length


def test_more_images_than_are_worked_on_at_once(monkeypatch):
    pictures = [picture(20 + k, 50 - k, k) for k in range(7)]
    views = device_crops.views(None, 20 + np.arange(7), 50 - np.arange(7), 16)
    whole = resized(pictures, views)
    monkeypatch.setattr(device_crops, "IMAGES_AT_ONCE", 3)
    assert torch.equal(resized(pictures, views), whole)
    assert whole.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("length", "size"), [(200, 224), (341, 224), (4000, 64), (16_000, 64)])
def test_products_are_exact_in_tf32_in_any_order(length, size, monkeypatch):
    """Integers of 8 bits, whose sums of products stay below 2**24."""
    multiply, sums = torch.bmm, []

    def seen(weights, pixels):
        for operand in (weights, pixels):
            assert torch.equal(operand, operand.round().clamp(0, 255))
        sums.append(multiply(weights, pixels).max().item())
        assert sums[-1] == multiply(weights.double(), pixels.double()).max().item()
        return multiply(weights, pixels)

    monkeypatch.setattr(torch, "bmm", seen)
    white = np.full((length, 5, 3), 255, np.uint8)
    found = resized([white], device_crops.views(np.array([(0, 0, length, 5)]), None, None, size))
    assert len(sums) == 2
    assert max(sums) < 2**24
    assert (found == 255).all()


def test_of_a_long_picture_only_what_is_looked_at_is_copied():
    views = device_crops.views(None, np.array([256]), np.array([4000]), 224)
    (top, left, height, width) = views.boxes[0].tolist()
    assert height <= 228
    assert width <= 228
    assert (abs(2 * top + height - 256), abs(2 * left + width - 4000)) <= (4, 4)


def test_the_precision_of_other_products_stays_as_it_was(monkeypatch):
    during, multiply, settings = [], torch.bmm, torch.backends.cuda.matmul
    monkeypatch.setattr(torch, "bmm", lambda *a: during.append(settings.fp32_precision) or multiply(*a))
    before = settings.fp32_precision
    resized([picture(9, 9)], device_crops.views(None, np.array([9]), np.array([9]), 8))
    assert during == ["tf32", "tf32"]
    assert settings.fp32_precision == before
