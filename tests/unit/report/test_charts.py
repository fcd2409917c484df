"""Charts of the page: their numbers, and how long curves are thinned."""

import json
import math

import pytest
from run_folders import CLASSES, STEPS, make_run, page_of

from alexnet_dist.report import charts


def test_every_chart_holds_its_numbers(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    figures = page.data["figures"]
    names = {key: [trace["name"] for trace in page.traces(key)] for key in figures if key != "confusion"}
    assert names == {
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
    loss = page.traces("loss")
    assert loss[0]["x"] == pytest.approx([step / STEPS for step in range(1, 31)])
    assert loss[2]["x"] == [1, 2, 3]
    assert loss[2]["y"] == pytest.approx([2.2, 1.1, 2.2 / 3], rel=1e-4)
    assert loss[3]["y"] == pytest.approx([math.log(3)] * 2)
    assert page.traces("accuracy")[0]["y"] == pytest.approx([51, 52, 53])
    for key in figures:
        assert f"chart-{key}" in page.ids()
    assert page.text.count("as a table") == len(figures), "one below each"
    lines = "training, steps training, mean of the epoch evaluation"
    assert f"Loss (nats) epoch {lines} 1 0.2 2 2.2 2 0.1 1 1.1" in page.text


def test_long_curves_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "MOST_POINTS", 7)
    xs = page_of(make_run(tmp_path / "run")).traces("loss")[0]["x"]
    assert len(xs) == 7
    assert (xs[0], xs[-1]) == (0.1, 3)


def test_an_outlier_is_cut_off_and_named(tmp_path):
    folder = make_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    slow = [json.dumps(json.loads(lines[0]) | {"perf/step_ms": 900.0}), *lines[1:]]
    (folder / "metrics.jsonl").write_text("\n".join(slow))
    page = page_of(folder)
    assert page.layout("step")["yaxis"] == {"exponentformat": "e", "range": [0, 6.5], "autorange": False}
    assert "autorange" not in page.layout("gradient")["yaxis"]
    assert "The largest value, 900, is above the picture; a double click shows it." in page.text
    assert max(page.traces("step")[0]["y"]) == 900, "it is still there"
