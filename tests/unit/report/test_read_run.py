"""Run folders that are unfinished, damaged or nearly empty."""

import json
import re

import pytest
from run_folders import make_run, page_of, records_of

from alexnet_dist.report import read_run


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("stopped", "stopped; the same command continues it"),
        ("max_steps", "ended early, at --max-steps"),
        ("non-finite", "ended by a NaN"),
        ("failed", "failed"),
    ],
)
def test_a_run_that_is_not_finished_says_so(status, words, tmp_path):
    page = page_of(make_run(tmp_path / "run", status=status))
    assert words in page.text
    assert "status unfinished" in [p.get("class") for p in page.all("p")]
    assert "status unfinished" not in [p.get("class") for p in page_of(make_run(tmp_path / "fine")).all("p")]


def test_a_fallback_is_announced(tmp_path):
    page = page_of(make_run(tmp_path / "run", dataset="digits", fallback_for="cifar10"))
    assert "cifar10 could not be had: this run trained on digits instead" in page.text
    assert "could not be had" not in page_of(make_run(tmp_path / "fine")).text


def test_what_differs_from_the_defaults_is_marked(tmp_path):
    source = page_of(make_run(tmp_path / "run", epochs=3)).source
    rows = re.findall(r"<tr([^>]*)><th scope=\"row\"><code>(--[\w.-]+)</code>", source)
    assert {name for mark, name in rows if "changed" in mark} == {"--epochs", "--out-dir"}
    assert {"--optim.lr", "--data.batch-size", "--wandb.tags"} <= {name for _, name in rows}


def test_a_run_in_its_first_epoch(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [json.dumps(record) for record in records_of(1)[:4]]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"global_step": 5, "epo')
    page = page_of(folder)
    assert "no summary yet" in page.text
    assert page.layout("loss")["xaxis"]["title"]["text"] == "step"
    assert page.traces("loss")[0]["x"] == [1, 2, 3, 4]
    assert page.data["player"] is None
    assert "confusion" not in page.data["figures"]
    for words in ("Kernels", "Worst errors", "Configuration", "First training batch"):
        assert words not in [*page.text.split("Curves"), page.text]


def test_a_folder_without_a_record(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "Nothing is recorded yet" in page_of(tmp_path).text


def test_a_resumed_run_is_not_taken_for_finished(tmp_path):
    folder = make_run(tmp_path / "run", status="stopped", global_step=20)
    assert "in an earlier part of the run" in page_of(folder).text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", "[1, 2]"),
        ("summary.json", '{"best_top1": "<b>", "images_per_second": true, "versions": 3, "world_size": {}}'),
        ("summary.json", '{"steps_per_epoch": 1e999, "global_step": %s}' % ("9" * 500)),
        ("config.yaml", "epochs: [1, {a: 2}]\n7: x\nout_dir: {1: 2}"),
        ("config.yaml", "epochs: ]["),
        ("evaluation.json", '{"class_names": ["a"], "confusion": [[1, 2]]}'),
        ("evaluation.json", '{"class_names": ["a", 7], "confusion": [[1, 2], [0, 0]], "worst": [{"label": 9}, 3]}'),
        ("evaluation.json", '{"class_names": ["a"], "confusion": [["<b>"]]}'),
        ("figures/errors.png", "no picture"),
        ("figures/epoch_0002/conv1_now.png", "\x89PNG\r\n\x1a\ntorn"),
        ("figures/first_batch.png", ""),
        ("metrics.jsonl", '7\n[]\n{"global_step": "x", "epoch": 1}\n{"global_step": 1, "epoch": 1, "val/top1": NaN}'),
        ("metrics.jsonl", '{"global_step": 0, "epoch": 0, "val/loss": 1, "val/top1": null, "per_class/": "x"}'),
    ],
)
def test_damaged_files_cost_their_part_alone(name, content, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / name).write_text(content, encoding="utf-8")
    page = page_of(folder)
    assert page.all("h1")
    assert "NaN" not in json.dumps(page.data)


def test_of_many_records_all_epochs_ends_and_evenly_spaced_steps_are_kept():
    ends = [{"global_step": 100 * epoch, "epoch": epoch, "val/top1": 0.5} for epoch in range(1, 201)]
    steps = [{"global_step": step, "epoch": 1 + (step - 1) // 100} for step in range(1, 20_001)]
    found = read_run.thinned(sorted(steps + ends, key=lambda record: (record["global_step"], "val/top1" in record)))
    assert [record for record in found if "val/top1" in record] == ends
    kept = [record["global_step"] for record in found if "val/top1" not in record]
    assert kept == [*range(1, 20_001, 4), 20_000], "the last too"
    assert found[-2:] == [steps[-1], ends[-1]]
    few = [*steps[:6_000], {"epoch": 3}, {"global_step": "3", "epoch": 1}]
    assert read_run.thinned(few) == steps[:6_000]
