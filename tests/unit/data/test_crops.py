"""Crops: torchvision's distribution of boxes, and its pixels to the bit."""

import numpy as np
import pytest
import torch
from photos import picture
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from alexnet_dist.data import crops

SCALE = (0.08, 1.0)
SIZES = [(224, 224), (300, 200), (61, 400), (500, 37), (1, 1), (1, 50), (3, 2), (256, 257), (375, 500)]


def as_tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def cut(image, box):
    top, left, height, width = box.tolist()
    return image[top : top + height, left : left + width]


def drawn(count, height, width, scale=SCALE, **options):
    at = {"seed": 0, "epoch": 0} | options
    return crops.boxes(heights=np.full(count, height), widths=np.full(count, width), scale=scale, **at)


# ---- boxes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        *((*sides, SCALE) for sides in [(300, 300), (200, 300), (500, 200), (90, 600), (4, 5), (1, 1)]),
        *((*sides, (0.5, 1.0)) for sides in [(300, 300), (90, 600), (4, 5)]),
    ],
)
def test_boxes_are_distributed_as_those_of_torchvision(height, width, scale):
    """Each column's share of mass below each of torchvision's deciles: 4,000 draws have a standard error of 0.8 %."""
    torch.manual_seed(0)
    theirs_drawn = v2.RandomResizedCrop(8, scale=scale)
    image = torch.empty(3, height, width)
    params = [theirs_drawn.make_params([image]) for _ in range(4000)]
    theirs = np.array([[p[name] for name in ("top", "left", "height", "width")] for p in params], float)
    ours = drawn(40_000, height, width, scale).astype(float)
    both = [np.column_stack([t, t[:, 2] * t[:, 3], t[:, 3] / t[:, 2]]) for t in (theirs, ours)]
    for theirs_column, ours_column in zip(both[0].T, both[1].T, strict=True):
        deciles = np.quantile(theirs_column, np.arange(1, 10) / 10)
        for compare in (np.less, np.less_equal):
            shares = [compare(column[:, None], deciles).mean(axis=0) for column in (theirs_column, ours_column)]
            np.testing.assert_allclose(*shares, atol=0.035)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_boxes_lie_within_their_image(height, width):
    top, left, box_height, box_width = drawn(2000, height, width).T
    assert min(top.min(), left.min()) >= 0
    assert min(box_height.min(), box_width.min()) >= 1
    assert (top + box_height).max() <= height
    assert (left + box_width).max() <= width


@pytest.mark.parametrize(("height", "width", "box"), [(10, 1000, [0, 493, 10, 13]), (1000, 10, [493, 0, 13, 10])])
def test_where_no_attempt_fits_the_crop_is_central(height, width, box):
    """Of 10,000 pixels at least half, between 61 and 115 a side: nothing fits into 10."""
    assert (drawn(50, height, width, (0.5, 1.0)) == box).all()


def test_boxes_depend_on_seed_epoch_and_id_alone():
    many = drawn(crops.BOXES_AT_ONCE + 500, 300, 200)
    np.testing.assert_array_equal(many, drawn(crops.BOXES_AT_ONCE + 500, 300, 200))
    np.testing.assert_array_equal(many[:500], drawn(500, 300, 200))
    assert (many[:500] != many[-500:]).any(axis=1).mean() > 0.95, "each chunk has numbers of its own"
    for other in ({"epoch": 1}, {"seed": 1}):
        assert (many[:500] != drawn(500, 300, 200, **other)).any(axis=1).mean() > 0.95


def test_an_image_of_another_size_changes_no_other_box():
    heights, widths = np.full(100, 300), np.full(100, 200)
    before = crops.boxes(0, 0, heights, widths, SCALE)
    heights[40] = 7
    after = crops.boxes(0, 0, heights, widths, SCALE)
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [40]


# ---- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [224, 64, 65, 9])
def test_a_resized_crop_is_that_of_torchvision(size):
    for seed, (height, width) in enumerate(SIZES):
        image = picture(height, width, seed)
        for box in drawn(6, height, width, seed=seed):
            ours = crops.resized_crop(cut(image, box), size)
            theirs = functional.resized_crop(as_tensor(image), *box.tolist(), [size, size], antialias=True)
            assert torch.equal(ours, theirs), (height, width, box)


def test_a_crop_of_the_size_asked_for_is_a_copy_of_its_pixels():
    image = picture(80, 90)
    assert torch.equal(crops.resized_crop(image[3:67, 5:69], 64), as_tensor(image[3:67, 5:69]))


@pytest.mark.parametrize("size", [224, 63, 100, 7])
def test_an_evaluation_view_is_that_of_torchvision(size):
    theirs_of = v2.Compose([v2.Resize(round(size * 256 / 224), antialias=True), v2.CenterCrop(size)])
    short = round(size * 256 / 224)
    for height, width in [*SIZES, (short, short), (short, short + 9), (size, size), (short + 1, short)]:
        image = picture(height, width)
        view = crops.evaluation_view(image, size)
        assert view.shape == (3, size, size)
        assert torch.equal(view, theirs_of(as_tensor(image))), (height, width)


@pytest.mark.parametrize("short", [256, 40, 3])
def test_a_shrunk_picture_is_that_of_torchvision_and_none_is_enlarged(short):
    for height, width in SIZES:
        image = picture(height, width)
        ours = crops.shrunk(image, short)
        assert ours.flags.c_contiguous
        if min(height, width) <= short:
            assert ours is image
        else:
            assert torch.equal(as_tensor(ours), v2.functional.resize(as_tensor(image), [short], antialias=True))


def test_float32_arithmetic_is_that_of_torchvision_on_other_processors(monkeypatch):
    """Torchvision resizes uint8 as such on AVX2 and ARM alone."""
    from torchvision.transforms.v2.functional import _geometry

    monkeypatch.setattr(_geometry, "_do_native_uint8_resize_on_cpu", lambda _: False)
    monkeypatch.setattr(crops, "UINT8_KERNEL", False)
    for seed, (height, width) in enumerate(SIZES):
        image = picture(height, width, seed)
        for box in drawn(4, height, width, seed=seed):
            theirs = functional.resized_crop(as_tensor(image), *box.tolist(), [64, 64], antialias=True)
            assert torch.equal(crops.resized_crop(cut(image, box), 64), theirs)


def test_this_processor_is_judged_as_torchvision_does():
    from torchvision.transforms.v2.functional import _geometry

    assert _geometry._do_native_uint8_resize_on_cpu(v2.InterpolationMode.BILINEAR) == crops.UINT8_KERNEL


@pytest.mark.parametrize("pixels", [np.zeros((30, 40, 3), np.float32), np.zeros((3, 40, 40), np.uint8)])
@pytest.mark.parametrize("function", [crops.resized_crop, crops.evaluation_view, crops.central_square])
def test_what_is_no_picture_is_refused(function, pixels):
    with pytest.raises(AssertionError, match=r"a picture must be \(H, W, 3\) uint8, not"):
        function(pixels, 16)
