"""Charts of the page: their numbers, and how long curves are thinned."""

import math

import pytest
from run_folders import CLASSES, STEPS, make_run, page_of

from alexnet_dist.report import charts


def test_every_chart_holds_its_numbers(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    charts = {chart["key"]: [trace["name"] for trace in chart["traces"]] for chart in page.data["charts"]}
    assert charts == {
        "loss": ["training, steps", "training, mean of the epoch", "evaluation", "chance, ln 3 = 1.099 nats"],
        "accuracy": ["top-1", "top-5", "chance, 1 of 3 = 33.33 %"],
        "lr": ["learning rate"],
        "kernels": ["conv1", "conv2"],
        "gradient": ["gradient norm"],
        "weights": ["weight norm"],
        "speed": ["images per second"],
        "step": ["mean", "median", "95th percentile"],
        "classes": CLASSES,
    }
    loss = page.chart("loss")["traces"]
    assert loss[0]["x"] == pytest.approx([step / STEPS for step in range(1, 31)])
    assert loss[2]["x"] == [1, 2, 3]
    assert loss[2]["y"] == pytest.approx([2.2, 1.1, 2.2 / 3], rel=1e-4)
    assert loss[3]["y"] == pytest.approx([math.log(3)] * 2)
    assert page.chart("accuracy")["traces"][0]["y"] == pytest.approx([51, 52, 53])
    for key in charts:
        assert f"chart-{key}" in page.ids()
    assert page.text.count("as a table") == len(charts) + 1, "one below each, and the confusion matrix"
    lines = "training, steps training, mean of the epoch evaluation"
    assert f"Loss (nats) epoch {lines} 1 0.2 2 2.2 2 0.1 1 1.1" in page.text


def test_long_curves_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "MOST_POINTS", 7)
    xs = page_of(make_run(tmp_path / "run")).chart("loss")["traces"][0]["x"]
    assert len(xs) == 7
    assert (xs[0], xs[-1]) == (0.1, 3)
