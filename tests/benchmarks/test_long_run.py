"""Many epochs leave a bounded number of files, and cost the last one no more than the first."""

import json
import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import long_run


@pytest.mark.slow
def test_three_hundred_epochs(tmp_path):
    found = long_run.feed(tmp_path / "run", 300)
    drawn = [*range(1, 31), *range(32, 61, 2), *range(64, 121, 4), *range(128, 241, 8), *range(256, 301, 16)]
    folders = {int(path.parent.name[6:]) for path in (tmp_path / "run/figures").glob("epoch_*/conv1_now.png")}
    best = max(lines(tmp_path / "run"), key=lambda record: (record["val/top1"], -record["epoch"]))["epoch"]
    assert folders == {*drawn, best, 300}
    assert not list((tmp_path / "run/figures").glob("*.safetensors"))
    for name in ("conv1_now", "summary"):
        sent = list((tmp_path / "run/wandb").rglob(f"media/images/kernels/{name}_*.png"))
        assert len(sent) == len(folders), "W&B has the same"
    assert found["report_megabytes"] < 8
    assert found["memory_last"] - found["memory_first"] < 20, "MB"
    assert "300 epochs" in long_run.table(found)


def lines(folder):
    """Return the records of epochs' ends."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if "val/top1" in record]
