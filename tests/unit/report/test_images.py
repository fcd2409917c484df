"""Pictures of the page: the slider's frames and the thumbnails."""

import json

import numpy as np
from PIL import Image
from run_folders import EPOCH_PICTURES, Page, add_right_answers, make_run, page_of, pixel, records_of

from alexnet_dist.report import page as report
from alexnet_dist.text import NBSP


def test_the_slider_has_a_frame_for_each_epoch(tmp_path):
    page = page_of(make_run(tmp_path / "run", epochs=4))
    frames, pictures = page.data["player"]["frames"], page.data["player"]["pictures"]
    assert [frame["value"] for frame in frames] == [f"epoch {epoch} of 4" for epoch in range(1, 5)]
    assert frames[1]["caption"] == f"epoch 2 of 4, step 20, top-1 52.00{NBSP}%"
    text = "relative change 0.2000, cosine to the start 0.9900, 3 dead kernels, kernel norms 0.25 / 0.5 / 0.75"
    assert frames[1]["texts"]["0-conv2"] == f"{text} (least / median / most)"
    for epoch, frame in enumerate(frames, 1):
        assert set(frame["images"]) == {f"0-{name}" for name in EPOCH_PICTURES}
        for place, name in enumerate(EPOCH_PICTURES):
            shown = (place, 0, 100) if name.endswith("before") else (place, epoch, 100)
            assert pixel(pictures[frame["images"][f"0-{name}"]]) == (shown, (16, 16)), "the same picture to the bit"
    assert len(pictures) == 3 + 6 * 4, "what does not change is held once"
    slider = next(a for a in page.all("input") if a["type"] == "range")
    assert slider | {"min": "0", "max": "3", "value": "3", "aria-valuetext": "epoch 4 of 4"} == slider
    assert [label["for"] for label in page.all("label")] == [slider["id"]]
    slots = {image["data-slot"]: image for image in page.all("img") if "data-slot" in image}
    assert set(slots) == set(frames[-1]["images"])
    for slot, image in slots.items():
        assert image["src"] == pictures[frames[-1]["images"][slot]], "without scripts, the last epoch"
        assert image["alt"]


def test_many_epochs_are_thinned_and_said_to_be(tmp_path):
    page = page_of(make_run(tmp_path / "run", epochs=75))
    shown = [int(frame["value"].split()[1]) for frame in page.data["player"]["frames"]]
    assert len(shown) == 60
    assert (shown[0], shown[-1]) == (1, 75)
    assert set(np.diff(shown)) == {1, 2}
    assert "60 of 75 epochs with pictures are shown, evenly spaced" in page.text
    assert len(page.traces("accuracy")[0]["x"]) == 75, "the curves have all"
    assert "25 of 75 places" in page.text


def noisy_run(folder, *, epochs, best):
    """Write the folder of a run with an accuracy that is best at one epoch, and kernels that cannot be compressed."""
    make_run(folder, epochs=epochs)
    records = records_of(epochs)
    for record in records:
        if "val/top1" in record:
            record["val/top1"] = 0.9 if record["epoch"] == best else 0.5
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    rng = np.random.default_rng(0)
    for path in folder.glob("figures/epoch_*/*.png"):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), np.uint8)).save(path)
    return folder


def test_the_page_stays_below_8_mb_with_the_first_the_last_and_the_best_epoch(tmp_path):
    page = page_of(noisy_run(tmp_path / "run", epochs=50, best=17))
    shown = [int(frame["value"].split()[1]) for frame in page.data["player"]["frames"]]
    assert 7e6 < len(page.source.encode()) < 8e6
    assert {1, 17, 50} <= set(shown)
    assert 10 < len(shown) < 50
    assert f"{len(shown)} of 50 epochs with pictures are shown, evenly spaced, and the best" in page.text


def test_runs_compared_share_the_room(tmp_path):
    folders = [noisy_run(tmp_path / name, epochs=20, best=1) for name in "ab"]
    page = Page(report.write(*folders, out=tmp_path / "both.html"))
    assert len(page.source.encode()) < 8e6
    assert len(page.data["player"]["frames"]) > 3


def test_pictures_of_epochs_that_a_resumed_run_has_not_reached_again(tmp_path):
    folder = make_run(tmp_path / "run", epochs=4)
    lines = [json.dumps(record) for record in records_of(2)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    assert len(page_of(folder).data["player"]["frames"]) == 2


def test_thumbnails_are_cut_in_order(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    thumbnails = [image for image in page.all("img") if image["alt"].startswith("test image")]
    assert [image["alt"] for image in thumbnails] == [f"test image {17 + index}" for index in range(10)]
    assert [pixel(image["src"]) for image in thumbnails] == [((index + 1, 50, 60), (64, 64)) for index in range(10)]


def test_right_answers_have_a_section_of_their_own(tmp_path):
    folder = make_run(tmp_path / "run")
    assert "Right answers" not in page_of(folder).text, "a run of an earlier version has none"
    add_right_answers(folder)
    page = page_of(folder)
    thumbnails = [image for image in page.all("img") if image["alt"].startswith("test image")]
    assert [image["alt"] for image in thumbnails[10:]] == [f"test image {40 + index}" for index in range(9)]
    assert [pixel(image["src"]) for image in thumbnails[10:]] == [((70, i + 1, 80), (64, 64)) for i in range(9)]
    words = page.text.partition("class by class.")[2].partition("First training batch")[0]
    assert words.count("taken for") == 0
    assert words.strip().startswith("cat 87.5 %, loss 0.13, no. 40 dog 87.5 %, loss 0.13, no. 41 frog ")
    targets = [a["href"] for a in page.all("a")]
    assert targets.index("#right") == targets.index("#errors") + 1


def test_thumbnails_of_noise_leave_the_page_below_8_mb(tmp_path):
    """96 thumbnails that cannot be compressed, beside the kernels of three epochs."""
    folder = make_run(tmp_path / "run")
    add_right_answers(folder, num=32)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"worst": evaluation["worst"][:1] * 64}))
    rng = np.random.default_rng(0)
    for name, rows in (("errors", 8), ("right", 4)):
        Image.fromarray(rng.integers(0, 256, (64 * rows, 512, 3), np.uint8)).save(folder / f"figures/{name}.png")
    page = page_of(folder)
    assert sum(image["alt"].startswith("test image") for image in page.all("img")) == 96
    assert len(page.source.encode()) < 8e6


def test_pictures_of_one_epoch_need_no_slider(tmp_path):
    page = page_of(make_run(tmp_path / "run", epochs=1))
    assert len(page.data["player"]["frames"]) == 1
    assert page.all("input") == []
    slots = {image["data-slot"] for image in page.all("img") if "data-slot" in image}
    assert slots == {f"0-{name}" for name in EPOCH_PICTURES}
