"""What benchmarks/overheads.py and killed.py make of what they measure; only the slow test trains."""

import sys

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import killed
import overheads


def test_a_checkpoint_costs_its_wait_and_what_steps_beside_it_take_longer():
    """Steps of 1 s; each save waits 0.5 s and is written for 2 s, in which the step after it takes 1.25 s."""
    now, steps, saves = 0.0, [], []
    for number in range(12):
        seconds = 1.25 if number in (3, 6, 9) else 1.0
        if number in (3, 6, 9):
            saves.append({"began": now, "waited": 0.5, "ended": now + 1.75})
            now += 0.5
        steps.append((now, now + seconds))
        now += seconds
    cost = overheads.cost(steps, saves)
    assert cost["step_seconds"] == 1
    assert cost["waited_seconds"] == 0.5
    assert cost["slowed_seconds"] == pytest.approx(0.25)
    assert cost["written_after_seconds"] == pytest.approx(1.75)
    assert cost["checkpoints"] == 1, "the first and the last are left out"


def test_images_of_a_killed_epoch_are_counted_over_the_steps_that_are_in_the_weights():
    def line(attempt, step, first):
        return {"attempt": attempt, "step": step, "ids": list(range(first, first + killed.BATCH))}

    whole = [line("0", step, killed.BATCH * ((step - 1) % killed.STEPS_OF_EPOCH)) for step in range(1, 31)]
    right = [*whole[:18], *({**step, "attempt": "1"} for step in whole[16:])]
    assert killed.count(right) == {"steps_lost": 1, "seen_twice": 0, "never_seen": 0}
    wrong = [*whole[:18], line("1", 17, 0), *({**step, "attempt": "1"} for step in whole[17:])]
    assert killed.count(wrong) == {"steps_lost": 1, "seen_twice": killed.BATCH, "never_seen": killed.BATCH}


@pytest.mark.slow
def test_a_run_that_saves_is_timed():
    flags = ["--data.dataset", "synthetic", "--data.batch-size", "8", "--data.image-size", "64"]
    found, text = overheads.measure_saving(*flags, steps=8, every=2, rounds=1)
    assert [costs[0]["checkpoints"] for costs in found["rounds"].values()] == [2, 2]
    assert text.count("\n") == 4
