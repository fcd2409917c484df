"""What benchmarks/photographs.py reads and writes; the commands themselves are timed by hand."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import photographs


@pytest.fixture
def photos(tmp_path):
    for name, count in (("cat", 5), ("cow", 3)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(count):
            (tmp_path / "photos" / name / f"{k}.jpg").write_bytes(b"")
    return tmp_path / "photos"


def test_classes_take_turns_and_each_is_in_both_splits(photos, tmp_path):
    photographs.stage(photos, tmp_path / "scratch", [3, 6])
    found = {
        folder: sorted(str(path.relative_to(tmp_path / "scratch" / folder)) for path in place.rglob("*.jpg"))
        for folder in ("train-3", "use-6")
        for place in [tmp_path / "scratch" / folder]
    }
    ends = ["cat/0.jpg", "cow/0.jpg"]
    assert found["train-3"] == sorted(
        [*(f"train/{name}" for name in [*ends, "cat/1.jpg"]), *(f"val/{e}" for e in ends)]
    )
    more = ["cat/1.jpg", "cat/2.jpg", "cow/1.jpg", "cow/2.jpg"]
    assert found["use-6"] == sorted([*(f"train/{name}" for name in ends), *(f"val/{name}" for name in [*ends, *more])])


def test_every_task_has_its_peers(photos, tmp_path):
    photographs.stage(photos, tmp_path / "scratch", [4])
    options = argparse.Namespace(run=Path("run"), timm=Path("timm"), torchvision=Path("vision"), workers=2)
    names = photographs.commands(options, tmp_path / "scratch", 4)
    wanted = {f"{task}: {peer}" for task, peers in photographs.PEERS.items() for peer in peers}
    assert {name for name in names if photographs.OURS not in name} == wanted


def test_ratios_are_taken_within_a_round():
    rates = {"evaluate: alexnet_dist": (40.0, 90.0), "evaluate: timm": (20.0, 30.0)}
    rows = [{"round": k, "name": name, "images_per_second": rates[name][k]} for k in range(2) for name in rates]
    text = photographs.markdown(rows, argparse.Namespace(images=9, few=1, rounds=2, workers=2))
    assert "| evaluate | alexnet_dist | 65.0 (40.0 to 90.0) | timm 2.50 (2.00 to 3.00) |" in text


def test_figures_in_the_documents_are_those_that_were_measured():
    written = (ROOT / "benchmarks/results/photographs.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "benchmarks/results/photographs.json").read_text(encoding="utf-8"))["rows"]
    assert {row["name"] for row in rows} >= {"train: timm", "train: torchvision", "evaluate: timm", "predict: timm"}
    lines = [line for line in written.splitlines() if line.startswith("| ") and " to " in line]
    assert len(lines) == len({row["name"] for row in rows})
    assert not [line for line in lines if line.split("|")[3].strip() not in page]
