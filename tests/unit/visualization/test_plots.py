"""Curves, confusion matrices and sheets of pictures: files that can be opened and that show what they were given."""

import sys
import warnings
from unittest import mock

import numpy as np
import pytest
from exhibits import dataset
from PIL import Image

from alexnet_dist.visualization import plots

TEST_RED, EPOCH_BLUE, STEP_GREY = (0xD1, 0x49, 0x5B), (0x1F, 0x5F, 0xA8), (0x9A, 0xA7, 0xB5)
FULL_BLUE, NO_BLUE = (8, 48, 107), (247, 251, 255)  # the ends of matplotlib's Blues


def open_png(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def pixels_of(picture, colour):
    return int((picture == np.array(colour, dtype=np.uint8)).all(axis=2).sum())


def records_of(epochs, steps_per_epoch=5):
    """Lines as in metrics.jsonl: one every step, one more at each epoch's end."""
    records = []
    for epoch in range(1, epochs + 1):
        steps = range((epoch - 1) * steps_per_epoch + 1, epoch * steps_per_epoch + 1)
        records += [{"global_step": step, "epoch": epoch, "train/loss": 2.3 / step, "perf/mfu": 0.1} for step in steps]
        records.append(
            {
                "global_step": epoch * steps_per_epoch,
                "epoch": epoch,
                "train/epoch_loss": 2.3 / epoch,
                "val/loss": 2.4 / epoch,
                "val/top1": 1 - 1 / (epoch + 1),
            }
        )
    return records


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves(epochs, tmp_path):
    plots.save_curves(records_of(epochs), tmp_path, num_classes=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "loss.png"]
    loss, accuracy = (open_png(tmp_path / f"{name}.png") for name in ("loss", "accuracy"))
    assert loss.shape == accuracy.shape == (504, 840, 3)
    assert pixels_of(loss, TEST_RED) > 50
    assert pixels_of(loss, EPOCH_BLUE) > 50
    assert pixels_of(loss, STEP_GREY) > 20
    assert pixels_of(accuracy, TEST_RED) > 50


def test_curves_show_the_numbers(tmp_path):
    records = records_of(3)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    plots.save_curves(records, tmp_path / "a", num_classes=10)
    records[-1]["val/top1"] = 0.1
    plots.save_curves(records, tmp_path / "b", num_classes=10)
    assert (open_png(tmp_path / "a/loss.png") == open_png(tmp_path / "b/loss.png")).all()
    assert (open_png(tmp_path / "a/accuracy.png") != open_png(tmp_path / "b/accuracy.png")).any()


def test_curves_show_what_guessing_gives(tmp_path):
    for num_classes in (2, 10):
        (tmp_path / str(num_classes)).mkdir()
        plots.save_curves(records_of(2), tmp_path / str(num_classes), num_classes=num_classes)
    for name in ("loss.png", "accuracy.png"):
        assert (open_png(tmp_path / "2" / name) != open_png(tmp_path / "10" / name)).any(), name


@pytest.mark.parametrize("records", [[], records_of(1)[:3]])
def test_no_curves_before_the_first_evaluation(records, tmp_path):
    plots.save_curves(records, tmp_path, num_classes=10)
    assert not list(tmp_path.iterdir())


def test_curves_of_evaluations_alone(tmp_path):
    plots.save_curves([record for record in records_of(2) if "val/top1" in record], tmp_path, num_classes=10)
    assert pixels_of(open_png(tmp_path / "loss.png"), TEST_RED) > 50


def test_steps_are_placed_on_the_epoch_axis(tmp_path, monkeypatch):
    axes = mock.MagicMock()
    monkeypatch.setattr(plots, "_figure", lambda *_: (mock.MagicMock(), axes))
    plots.save_curves(records_of(2), tmp_path, num_classes=10)
    steps, *_ = axes.plot.call_args_list
    assert steps.args[0] == pytest.approx([step / 5 for step in range(1, 11)])


@pytest.mark.parametrize(("num_classes", "side"), [(2, (2.5 + 1.1) * 120), (10, 8 * 120), (100, 9 * 120)])
def test_confusion(num_classes, side, tmp_path):
    confusion = np.diag(np.full(num_classes, 7))
    names = [f"class {index}" for index in range(num_classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save_confusion(confusion, names, tmp_path / "confusion.png")
    picture = open_png(tmp_path / "confusion.png")
    assert picture.shape[:2] == pytest.approx((side, side), abs=1)
    full, empty = pixels_of(picture, FULL_BLUE), pixels_of(picture, NO_BLUE)
    assert full > 100, "the diagonal is dark"
    assert empty > (num_classes - 1) * full / 2, "the rest is not"


def test_confusion_shades_rows_by_their_shares(tmp_path):
    plots.save_confusion(np.array([[900, 0], [0, 1]]), ["many", "few"], tmp_path / "a.png")
    plots.save_confusion(np.array([[0, 900], [1, 0]]), ["many", "few"], tmp_path / "b.png")
    right, wrong = open_png(tmp_path / "a.png"), open_png(tmp_path / "b.png")
    dark = [(picture == np.array(FULL_BLUE)).all(axis=2) for picture in (right, wrong)]
    assert dark[0].sum() == pytest.approx(dark[1].sum(), rel=0.1), "one image of one is as dark as 900 of 900"
    assert not (dark[0] & dark[1]).any(), "the other diagonal"


def test_confusion_with_a_class_that_has_no_images(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save_confusion(np.array([[3, 1], [0, 0]]), ["cat", "dog"], tmp_path / "confusion.png")
    assert pixels_of(open_png(tmp_path / "confusion.png"), NO_BLUE) > 100


@pytest.mark.parametrize("names", [["$x_$", "dog"], ["a$b", "c$d"], [r"$\nonsense$", "_dog"], ["", "dog"]])
def test_class_names_are_shown_and_not_interpreted(names, tmp_path):
    plots.save_confusion(np.array([[3, 1], [0, 4]]), names, tmp_path / "confusion.png")
    assert pixels_of(open_png(tmp_path / "confusion.png"), FULL_BLUE) > 100


def test_figures_need_no_window_system(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would choose one, and keep figures open
    plots.save_curves(records_of(1), tmp_path, num_classes=10)
    plots.save_confusion(np.eye(2, dtype=np.int64), ["cat", "dog"], tmp_path / "confusion.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "confusion.png", "loss.png"]


# ---- thumbnails and sheets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 32, 64, 100])
def test_thumbnails_are_square_and_sharp(size):
    image = dataset(size=size).test.picture(0)
    shown = plots.thumbnail(image)
    assert shown.shape == (64, 64, 3)
    if 64 % size == 0:
        assert np.array_equal(shown[:: 64 // size, :: 64 // size], image)
        assert len(np.unique(shown)) <= len(np.unique(image)), "pixels are repeated, not mixed"


def test_sheet_sets_pictures_in_rows_of_eight():
    tiles = [np.full((4, 4, 3), value, np.uint8) for value in range(11)]
    sheet = plots.sheet(tiles)
    assert sheet.shape == (8, 32, 3)
    assert sheet[::4, ::4, 0].tolist() == [list(range(8)), [8, 9, 10, 255, 255, 255, 255, 255]]
