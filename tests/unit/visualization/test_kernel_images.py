"""Kernel pictures against pictures drawn slowly, pixel by pixel, and against kernels set by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from alexnet_dist.visualization import kernel_images

SIDE = {"conv1": 11, "conv2": 5}
PIXEL = {"conv1": 6, "conv2": 13}
LINE = 2  # width of the white lines between kernels
LAYERS = ("conv1", "conv2", "conv2_overview")
NAMES = [f"{layer}_{which}" for layer in LAYERS for which in ("before", "now", "diff")]


def blank(value=0.0):
    return {"conv1": torch.full((64, 3, 11, 11), value), "conv2": torch.full((192, 64, 5, 5), value)}


def random_weights(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(value.shape, generator=generator) for name, value in blank().items()}


def tile(picture, index, layer):
    """The pixels of one kernel, without lines."""
    size = SIDE[layer] * PIXEL[layer]
    top, left = (LINE + (size + LINE) * place for place in divmod(index, 8))
    return picture[top : top + size, left : left + size]


def pixel(picture, index, layer, row, column):
    """The square of pixels of one weight; all of it has one colour."""
    size = PIXEL[layer]
    square = tile(picture, index, layer)[row * size : (row + 1) * size, column * size : (column + 1) * size]
    assert (square == square[0, 0]).all(), "enlarged without smoothing"
    return tuple(int(value) for value in square[0, 0])


def draw(before, now, conv2_kernel=0):
    return kernel_images.draw(before, now, conv2_kernel=conv2_kernel)


# ---- layout ---------------------------------------------------------------------------------------------------------


def test_sizes_and_types():
    pictures = kernel_images.named(draw(random_weights(0), random_weights(1)))
    assert list(pictures) == [*NAMES, "summary"]
    sides = {"conv1": [8 * (11 * 6 + 2) + 2] * 2, "conv2": [8 * (5 * 13 + 2) + 2] * 2}
    sides["conv2_overview"] = [rows * (5 * 6 + 2) + 2 for rows in (12, 16)]
    for name, picture in pictures.items():
        if name != "summary":
            assert picture.shape == (*sides[name.rpartition("_")[0]], 3), name
        assert picture.dtype == np.uint8


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_every_pixel_of_a_picture_drawn_slowly(layer):
    before, now = random_weights(0), random_weights(1, scale=2)
    drawn = draw(before, now, conv2_kernel=5)[layer]
    shown = {
        "conv1": lambda weights: weights["conv1"].double().numpy(),
        "conv2": lambda weights: weights["conv2"][5].double().numpy()[:, None].repeat(3, axis=1),
    }[layer]
    old, new = shown(before), shown(now)
    low, high = min(old.min(), new.min()), max(old.max(), new.max())
    change = new - old
    values = {
        "before": (old - low) / (high - low) * 255,
        "now": (new - low) / (high - low) * 255,
        "diff": 128 + change / abs(change).max() * 127,
    }
    for which, shades in values.items():
        picture = getattr(drawn, which)
        expected = np.full(picture.shape, 255.0)
        for index, kernel in enumerate(shades):
            for row, column in np.ndindex(SIDE[layer], SIDE[layer]):
                top, left = (LINE + place * (SIDE[layer] * PIXEL[layer] + LINE) for place in divmod(index, 8))
                top, left = top + row * PIXEL[layer], left + column * PIXEL[layer]
                expected[top : top + PIXEL[layer], left : left + PIXEL[layer]] = kernel[:, row, column]
        assert np.abs(picture - expected).max() <= 0.501, which  # rounding, and float32 at its border


def test_lines_between_kernels_are_white():
    picture = draw(blank(-1.0), blank(1.0))["conv1"].before  # all weights black
    inside = np.zeros(picture.shape[:2], dtype=bool)
    for index in range(64):
        top, left = (LINE + 68 * place for place in divmod(index, 8))
        inside[top : top + 66, left : left + 66] = True
    assert (picture[inside] == 0).all()
    assert (picture[~inside] == 255).all()
    assert inside.sum() == 64 * 66 * 66


# ---- colours --------------------------------------------------------------------------------------------------------


def test_conv1_in_colour():
    now = blank()
    now["conv1"][10, 0, 3, 4] = 1.0  # red
    now["conv1"][10, 1, 0, 10] = 1.0  # green
    now["conv1"][63, 2, 10, 0] = 1.0  # blue
    picture = draw(blank(), now)["conv1"].now
    assert pixel(picture, 10, "conv1", 3, 4) == (255, 0, 0)
    assert pixel(picture, 10, "conv1", 0, 10) == (0, 255, 0)
    assert pixel(picture, 63, "conv1", 10, 0) == (0, 0, 255)
    coloured = sum(int((tile(picture, index, "conv1") > 0).any(axis=2).sum()) for index in range(64))
    assert coloured == 3 * 6 * 6


def test_conv2_in_grey_shows_the_channels_of_the_kernel_asked_for():
    now = blank()
    now["conv2"][7, 9, 1, 3] = 1.0  # channel 9: second row, second column
    now["conv2"][8, 20, 2, 2] = 5.0  # of another kernel
    picture = draw(blank(), now, conv2_kernel=7)["conv2"].now
    assert pixel(picture, 9, "conv2", 1, 3) == (255, 255, 255)
    lit = [index for index in range(64) if tile(picture, index, "conv2").any()]
    assert lit == [9]
    other = draw(blank(), now, conv2_kernel=8)["conv2"].now
    assert [index for index in range(64) if tile(other, index, "conv2").any()] == [20]
    last = blank()
    last["conv2"][191, 63, 4, 4] = 1.0
    assert pixel(draw(blank(), last, conv2_kernel=191)["conv2"].now, 63, "conv2", 4, 4) == (255, 255, 255)


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_before_and_now_share_one_scale(layer):
    before, now = blank(), blank()
    before[layer][0, 0, 0, 0], now[layer][0, 0, 0, 0] = 1.0, 1.0  # the same weight
    before[layer][0, 1, 1, 1], now[layer][0, 2, 2, 2] = -1.0, 3.0  # one end of the scale in each
    drawn = draw(before, now)[layer]
    assert (drawn.lowest, drawn.highest) == (-1.0, 3.0)
    kernel = {"conv1": (0, 0, 0), "conv2": (0, 1, 2)}[layer]  # conv2's tiles are channels
    channel = {"conv1": (0, 1, 2), "conv2": (0, 0, 0)}[layer]

    def shade(picture, place):
        return pixel(picture, kernel[place], layer, place, place)[channel[place]]

    assert shade(drawn.before, 0) == shade(drawn.now, 0) == 128  # (1 + 1) / 4 of 255 is 127.5
    assert shade(drawn.before, 1) == 0
    assert shade(drawn.now, 2) == 255
    assert shade(drawn.now, 1) == shade(drawn.before, 2) == 64


# ---- the difference -------------------------------------------------------------------------------------------------


def test_no_change_is_mid_grey_everywhere():
    weights = random_weights(0)
    for layer, drawn in draw(weights, weights).items():
        for index in range(64 if layer in SIDE else 0):
            assert (tile(drawn.diff, index, layer) == 128).all()
        assert set(np.unique(drawn.diff)) == {128, 255}
        assert drawn.largest_change == 0.0
        assert drawn.relative_change == 0.0
        assert (drawn.before == drawn.now).all()
    assert "nan" not in "".join(kernel_images.captions(draw(weights, weights), when="now").values())


def test_difference_is_mid_grey_exactly_where_nothing_changed():
    before = random_weights(0)
    now = {name: weight.clone() for name, weight in before.items()}
    changed = torch.zeros(64, 3, 11, 11, dtype=torch.bool)
    changed[::5, 1, ::2, 3] = True
    now["conv1"][changed] += 0.5
    diff = draw(before, now)["conv1"].diff
    for index, row, column in np.ndindex(64, 11, 11):
        shown = tile(diff, index, "conv1")[row * 6, column * 6]
        assert (shown != 128).tolist() == changed[index, :, row, column].tolist()


@pytest.mark.parametrize("size", [1e-6, 0.013, 3.0])
def test_difference_is_symmetric_and_reaches_the_ends(size):
    before, now = blank(), blank()
    for step in range(-10, 11):
        now["conv1"][20, 0, 0 if step < 0 else 1, abs(step)] = step / 10 * size
    diff = draw(before, now)["conv1"].diff
    shades = {
        step: pixel(diff, 20, "conv1", 0 if step < 0 else 1, abs(step))[0] - 128 for step in range(-10, 11) if step
    }
    for step in range(1, 11):
        assert abs(shades[step] + shades[-step]) <= 1
        assert shades[step] == pytest.approx(12.7 * step, abs=0.5)
    assert (shades[10], shades[-10]) == (127, -127)


@pytest.mark.parametrize(("change", "shade"), [(0.25, 255), (-0.25, 1)])
@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_the_largest_change_is_white_or_black(layer, change, shade):
    now = blank()
    now[layer][0, 0, 0, 0] = change
    drawn = draw(blank(), now)[layer]
    assert pixel(drawn.diff, 0, layer, 0, 0)[0] == shade
    assert drawn.largest_change == 0.25


def test_weights_that_are_all_equal():
    for drawn in draw(blank(0.5), blank(0.5)).values():
        assert (drawn.lowest, drawn.highest) == (0.5, 0.5)
        assert len(np.unique(drawn.before)) == 2, "one shade and the lines"


# ---- numbers and words ----------------------------------------------------------------------------------------------


def test_relative_change():
    assert kernel_images.relative_change(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(0.2)
    before = blank(1.0)
    now = {"conv1": before["conv1"] * 1.5, "conv2": before["conv2"].clone()}
    now["conv2"][100] += 1.0  # a kernel that is not shown: the number is the whole layer's
    drawn = draw(before, now, conv2_kernel=0)
    assert drawn["conv1"].relative_change == pytest.approx(0.5)
    assert drawn["conv2"].relative_change == pytest.approx((1 / 192) ** 0.5)
    assert drawn["conv2"].largest_change == 0.0, "the scale is that of the kernel shown"


def test_captions_name_the_scale():
    before, now = blank(), blank(0.25)
    now["conv1"][0, 0, 0, 0] = -0.125
    before["conv1"][1] = 1.0
    captions = kernel_images.captions(draw(before, now), when="epoch 12, step 4680")
    assert list(captions) == [*NAMES, "summary"]
    for name, text in captions.items():
        assert ("before training" in text) == name.endswith("before")
        assert ("epoch 12, step 4680" in text) != name.endswith("before")
        assert ("relative change" in text) != name.endswith("before")
    for which in ("before", "now"):
        assert "-0.125" in captions[f"conv1_{which}"]
        assert "+1.000" in captions[f"conv1_{which}"]
        assert "+0.250" in captions[f"conv2_{which}"]
    assert "0.7500" in captions["conv1_diff"]
    assert "0.2500" in captions["conv2_diff"]


def test_numbers_beside_the_pictures():
    before = random_weights(0)
    now = {name: 2 * weight for name, weight in before.items()}
    now["conv1"][3] = -before["conv1"][3]
    found = kernel_images.numbers(before, now)
    assert found["conv2_rel_change"] == pytest.approx(1.0)
    assert found["conv2_cosine"] == pytest.approx(1.0)
    sizes = now["conv1"].flatten(1).double().norm(dim=1)
    assert found["conv1_norm_min"] == pytest.approx(float(sizes.min())) == pytest.approx(float(sizes[3]))
    assert found["conv1_norm_median"] == pytest.approx(float(sizes.sort().values[31]))
    assert found["conv1_norm_max"] == pytest.approx(float(sizes.max()))
    start, weights = (all_of["conv1"].double().flatten() for all_of in (before, now))
    assert found["conv1_cosine"] == pytest.approx(float(start @ weights / start.norm() / weights.norm()), rel=1e-5)
    assert found["conv1_dead"] == found["conv2_dead"] == 0
    assert {name: tuple(norms.shape) for name, norms in kernel_images.norms(now).items()} == {
        "conv1": (64,),
        "conv2": (192,),
    }
    assert torch.allclose(kernel_images.norms(now)["conv1"].double(), sizes)


def test_signal_is_the_share_of_kernels_whose_learned_part_is_larger_than_their_draw():
    before = random_weights(0)
    now = {name: weight.clone() for name, weight in before.items()}
    other = random_weights(1)
    for layer, share in (("conv1", 0.25), ("conv2", 0.5)):
        sizes = [weight.flatten(1).norm(dim=1)[:, None, None, None] for weight in (before[layer], other[layer])]
        learned = other[layer] * sizes[0] / sizes[1]  # as large as the draw
        several = int(share * len(learned))
        now[layer][:several] += 1.01 * learned[:several]
        now[layer][several:] += 0.99 * learned[several:]
    found = kernel_images.numbers(before, now)
    assert (found["conv1_signal"], found["conv2_signal"]) == (0.25, 0.5)


def test_decay_alone_is_no_signal():
    before = random_weights(0)
    assert kernel_images.signal(before["conv1"], before["conv1"]) == 0
    assert kernel_images.signal(before["conv1"], 0 * before["conv1"]) == 0


def test_dead_kernels_are_empty_or_have_never_moved():
    before = random_weights(0)
    now = {name: weight + 0.1 for name, weight in before.items()}
    assert kernel_images.num_dead(before["conv1"], now["conv1"]) == 0
    now["conv1"][5] = before["conv1"][5]  # no gradient has ever reached it
    now["conv1"][6] = 0.005 * before["conv1"][6]  # decayed away
    now["conv1"][7] = 0.05 * before["conv1"][7]  # small, and alive
    assert kernel_images.num_dead(before["conv1"], now["conv1"]) == 2
    assert kernel_images.num_dead(before["conv2"], before["conv2"]) == 0, "a network that was not trained is not dead"


def test_the_overview_shows_all_of_conv2_by_their_channels_mean():
    now = blank()
    now["conv2"][17, 0, 2, 3] = 64.0  # second row, second column; the mean over 64 channels is 1
    now["conv2"][191, :, 4, 4] = 1.0
    picture = draw(blank(), now)["conv2_overview"].now
    lit = np.argwhere(picture[..., 0] == 255)
    assert picture.shape[0] == 12 * 32 + 2
    for index, row, column in ((17, 2, 3), (191, 4, 4)):
        top, left = (LINE + 32 * place for place in divmod(index, 16))
        square = picture[top + 6 * row : top + 6 * row + 6, left + 6 * column : left + 6 * column + 6]
        assert (square == 255).all()
    lines = 3 * picture.shape[0] * picture.shape[1] - 3 * 192 * 30 * 30
    assert 3 * len(lit) == lines + 2 * 3 * 36


def test_the_summary_holds_all_six_pictures():
    pictures = kernel_images.named(draw(random_weights(0), random_weights(1)))
    summary = pictures["summary"]
    for row, layer in enumerate(("conv1", "conv2")):
        for column, which in enumerate(("before", "now", "diff")):
            expected = pictures[f"{layer}_{which}"]
            side = len(expected)
            top = kernel_images.HEADING + row * (len(pictures["conv1_now"]) + kernel_images.HEADING)
            left = column * (len(pictures["conv1_now"]) + kernel_images.HEADING) + kernel_images.HEADING // 2
            assert np.array_equal(summary[top : top + side, left : left + side], expected)
            heading = summary[top - kernel_images.HEADING : top, left : left + side]
            assert (heading < 128).any(), "it has a heading"


# ---- snapshots ------------------------------------------------------------------------------------------------------


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 64, 11), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(64, 192, 5))
    return nn.ModuleDict({"features": layers})


def test_snapshot_is_a_copy_that_training_does_not_touch(network):
    taken = kernel_images.snapshot(network)
    kept = {name: weight.clone() for name, weight in taken.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    assert {name: tuple(weight.shape) for name, weight in taken.items()} == {
        "conv1": (64, 3, 11, 11),
        "conv2": (192, 64, 5, 5),
    }
    assert all(torch.equal(taken[name], kept[name]) for name in kept)
    assert torch.equal(kernel_images.snapshot(network)["conv1"], 2 * kept["conv1"])
    assert not any(weight.requires_grad for weight in taken.values())


def test_memory_format_and_precision_do_not_show(network):
    plain = kernel_images.snapshot(network)
    other = kernel_images.snapshot(network.to(memory_format=torch.channels_last))
    drawn, redrawn = (kernel_images.named(draw(plain, weights, conv2_kernel=3)) for weights in (plain, other))
    assert all(np.array_equal(drawn[name], redrawn[name]) for name in NAMES)
    assert {weight.dtype for weight in kernel_images.snapshot(network.bfloat16()).values()} == {torch.float32}


def test_drawing_leaves_the_weights_alone():
    before, now = random_weights(0), random_weights(1)
    copies = [{name: weight.clone() for name, weight in weights.items()} for weights in (before, now)]
    draw(before, now)
    for weights, copied in zip((before, now), copies, strict=True):
        assert all(torch.equal(weights[name], copied[name]) for name in copied)
