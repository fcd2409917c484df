"""Times of steps, and of waiting for data."""

import time

import pytest
import torch

from alexnet_dist.training.step_clock import StepClock


@pytest.fixture
def clock(monkeypatch):
    """A clock whose time stands still until a test moves it."""
    moment = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: moment[0])
    clock = StepClock(torch.device("cpu"))
    clock.move = lambda seconds: moment.__setitem__(0, moment[0] + seconds)
    return clock


def test_steps_and_waiting_are_told_apart(clock):
    def slow():
        for number in range(2):
            clock.move(0.25)
            yield number

    for number in clock.timed(slow()):
        clock.move(1.0 + number)
        clock.end_step()
    assert clock.waited == pytest.approx(0.5)
    assert clock.step_ms() == pytest.approx([1250.0, 2250.0])


def test_a_new_record_begins_at_nought(clock):
    clock.move(5.0)
    clock.end_step()
    clock.restart()
    clock.move(1.0)
    clock.end_step()
    assert clock.step_ms() == pytest.approx([1000.0])
    assert (clock.waited, time.perf_counter() - clock.started) == (0.0, pytest.approx(1.0))
