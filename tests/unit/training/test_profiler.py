"""A window of steps under torch's profiler."""

import json
import logging

import pytest
import torch

from alexnet_dist.training import profiler


def take(tracer, *, steps):
    for step in range(steps):
        with torch.profiler.record_function(f"step {step}"):
            torch.ones(2).sum()
        tracer.step()
    tracer.close()


@pytest.mark.parametrize("steps", [8, 20])
def test_the_steps_after_the_first_ones_are_traced(tmp_path, steps, caplog):
    take(profiler.Tracer(tmp_path), steps=steps)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    first = profiler.SKIPPED + 1
    assert [name for name in names if name.startswith("step ")] == [f"step {first + n}" for n in range(profiler.TRACED)]
    assert "aten::sum" in (tmp_path / "operators.txt").read_text()
    assert not caplog.records


def test_too_few_steps_are_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        take(profiler.Tracer(tmp_path), steps=7)
    assert "--profile needs 8 steps and the run had 7" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [0, 8, 100])
def test_without_a_folder_nothing_happens(steps, caplog):
    tracer = profiler.Tracer(None)
    for _ in range(steps):
        tracer.step()
    tracer.close()
    assert not caplog.records
