"""Augmentation against plain Python loops over pixels, and what is drawn against what it should be."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from alexnet_dist.data import augment
from alexnet_dist.data.augment import BOX, CROP, CUTOUT, FLIP, SHARE, WHOLE, Augment, crop_and_flip

FILL = (10, 20, 30)
PLAIN = Augment(32, 1000, seed=0, flips=True, cutout=0.0, mix=None, mix_alpha=1.0, fill=FILL)


def make(**changes):
    return dataclasses.replace(PLAIN, **changes)


def images_of(count, size=32, seed=0):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def test_crop_and_flip_equal_padding_and_slicing():
    images, draws = images_of(200), make(num_images=200).draws(0)
    padded = F.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    ours = crop_and_flip(images, draws)
    for index, (row, column, flip, *_) in enumerate(draws.tolist()):
        expected = padded[index, :, row : row + 32, column : column + 32]
        assert torch.equal(ours[index].float(), expected.flip(-1) if flip else expected)


def test_resized_crops_are_boxes_enlarged_by_bilinear_interpolation():
    made = make(num_images=200, crops=0.6)
    images, draws = images_of(200), made.draws(0)
    ours = made(images, draws)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    pixels = torch.arange(32) + 0.5
    for image, found, row in zip(images, ours, draws, strict=True):
        top, left, height, width = (row[-4:] / 256).tolist()
        assert 0.59 < height * width / 32**2 <= 1
        assert min(top, left) >= 0
        assert max(top + height, left + width) <= 32
        rows, columns = ((first + pixels * side / 32) / 16 - 1 for first, side in ((top, height), (left, width)))
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=2)
        expected = F.grid_sample(image[None].float(), grid[None], padding_mode="border", align_corners=False)[0]
        torch.testing.assert_close(found.float(), expected.flip(-1) if row[FLIP] else expected, rtol=0, atol=2.5)


def test_resized_crops_leave_other_numbers_as_they_are_and_change_with_the_epoch():
    usual, resized = make(cutout=0.25, mix="cutmix").draws(1), make(cutout=0.25, mix="cutmix", crops=0.6).draws(1)
    assert torch.equal(usual[:, 2:], resized[:, 2:10])
    assert not torch.equal(resized[:, -4:], make(crops=0.6).draws(0)[:, -4:])
    assert (resized[:, -4:] % 256 != 0).any(), "boxes begin and end within pixels"


@pytest.mark.parametrize("change", [{}, {"cutout": 0.5}, {"mix": "mixup"}, {"mix": "cutmix"}, {"crops": 0.6}], ids=str)
def test_draws_depend_on_seed_and_epoch_alone(change):
    first = make(**change).draws(0)
    assert torch.equal(first, make(**change).draws(0))
    assert not torch.equal(first, make(**change).draws(1))
    assert not torch.equal(first, make(**change, seed=1).draws(0))
    assert change.get("crops") or torch.equal(first[:, CROP], make().draws(0)[:, CROP]), (
        "one part's numbers do not shift another's"
    )


def test_draws_cover_their_range():
    draws = make(cutout=0.25).draws(0)
    assert draws.shape == (1000, 10)
    assert [sorted(set(column)) for column in draws[:, CROP].T.tolist()] == [list(range(9))] * 2
    assert [sorted(set(column)) for column in draws[:, CUTOUT].T.tolist()] == [list(range(32))] * 2
    assert set(draws[:, SHARE].tolist()) == {WHOLE}
    assert not draws[:, BOX].any()


def test_each_image_is_mirrored_every_second_epoch():
    flips = torch.stack([make().draws(epoch)[:, FLIP] for epoch in range(4)])
    assert torch.equal(flips[0], flips[2])
    assert torch.equal(flips[1], flips[3])
    assert torch.equal(flips[0], 1 - flips[1])
    assert 400 < flips[0].sum() < 600


def test_no_flips_where_they_change_the_class():
    draws = make(flips=False, source_size=8).draws(1)
    assert set(draws[:, FLIP].tolist()) == {0}
    assert set(draws[:, 0].tolist()) == {0, 1, 2}


def test_small_images_without_padding_stay_as_they_are():
    images, small = images_of(5, size=7), make(flips=False, source_size=7, num_images=5)
    assert torch.equal(small(images, small.draws(0)), images)


@pytest.mark.parametrize(("cutout", "side"), [(0.25, 8), (0.1, 3), (1.0, 32)])
def test_cutout_fills_a_square_around_its_centre(cutout, side):
    cuts = make(cutout=cutout, num_images=60)
    images, draws = images_of(60), cuts.draws(3)
    ours, before = cuts(images, draws), crop_and_flip(images, draws)
    for image, expected, (row, column) in zip(ours, before.clone(), draws[:, CUTOUT].tolist(), strict=True):
        top, left = row - side // 2, column - side // 2
        expected[:, max(0, top) : top + side, max(0, left) : left + side] = torch.tensor(FILL)[:, None, None]
        assert torch.equal(image, expected)
    assert torch.equal(cuts(images, draws), ours), "the stored images are not written into"


def test_cutmix_takes_a_box_from_the_partner_and_shares_the_label_by_area():
    cutmix = make(mix="cutmix", num_images=300)
    draws = cutmix.draws(0)
    images, partners = images_of(300), images_of(300, seed=1)
    ours = augment.mix(images, partners, draws)
    for index, (top, bottom, left, right) in enumerate(draws[:, BOX].tolist()):
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 32
        expected = images[index].clone()
        expected[:, top:bottom, left:right] = partners[index, :, top:bottom, left:right]
        assert torch.equal(ours[index], expected)
        assert augment.shares(draws)[index] == pytest.approx(1 - (bottom - top) * (right - left) / 1024, abs=1e-5)
    assert 0.2 < augment.shares(draws).mean() < 0.8


def test_mixup_blends_and_rounds():
    mixup = make(mix="mixup", mix_alpha=0.4, num_images=300)
    draws = mixup.draws(0)
    images, partners = images_of(300), images_of(300, seed=1)
    own = augment.shares(draws).double()[:, None, None, None]
    expected = own * images + (1 - own) * partners
    assert (augment.mix(images, partners, draws) - expected).abs().max() <= 0.5 + 1e-9
    drawn = np.sort(augment.shares(draws).numpy())
    wanted = np.sort(np.random.default_rng(0).beta(0.4, 0.4, 100_000))
    assert np.abs(drawn - np.quantile(wanted, (np.arange(300) + 0.5) / 300)).max() < 0.1, "shares are Beta(0.4, 0.4)'s"


def test_a_whole_share_leaves_an_image_alone():
    images, draws = images_of(20), make(num_images=20).draws(0)
    assert torch.equal(augment.mix(images, images_of(20, seed=1), draws), images)


def test_photographs_are_flipped_and_not_shifted():
    images, photos = images_of(200), make(num_images=200, crops=None)
    draws = photos.draws(0)
    assert not draws[:, CROP].any()
    assert torch.equal(draws[:, FLIP], make(num_images=200).draws(0)[:, FLIP])
    for image, shown, drawn in zip(images, photos(images, draws), draws, strict=True):
        assert torch.equal(shown, image.flip(-1) if drawn[FLIP] else image)


def test_colours_shift_along_the_principal_axes():
    """The covariance of the shifts is that of 0.1 times the eigenvalues along the eigenvectors, squared."""
    mixed = np.array([[0.06, 0.05, 0.04], [0.05, 0.07, 0.05], [0.04, 0.05, 0.08]])
    colored = make(num_images=200_000, axes=augment.principal_axes(mixed, 0.1))
    draws = colored.draws(0)
    assert draws.shape == (200_000, 13)
    assert draws.dtype == torch.int32
    shifts = colored.colors(draws).double().numpy()
    np.testing.assert_allclose(np.cov(shifts.T), 0.01 * mixed @ mixed, atol=3e-6)
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=2e-4)
    assert not torch.equal(draws, colored.draws(1))
    assert make().colors(make().draws(0)) is None


@pytest.mark.parametrize(("size", "shift"), [(32, 4), (8, 1), (7, 0)])
def test_small_images_are_shifted_by_less(size, shift):
    assert augment.max_shift(size) == shift
