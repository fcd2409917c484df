"""The deadlines of the tests themselves: no shorter than chosen, longer on a busy machine, and never shorter again."""

import subprocess
import sys

import deadlines
import pytest


@pytest.fixture
def machine(monkeypatch):
    """A machine whose clock goes as the test says, and that is idle, unmeasured and not loaded at first."""

    class Machine:
        now, slowness, load = 1000.0, 1.0, 0.0

        def work(self):
            self.now += self.slowness * deadlines.IDLE_SECONDS

    machine = Machine()
    monkeypatch.setattr(deadlines, "_greatest", 1.0)
    monkeypatch.setattr(deadlines, "_measured_at", float("-inf"))
    monkeypatch.setattr(deadlines, "work", machine.work)
    for clock in ("monotonic", "perf_counter"):
        monkeypatch.setattr(deadlines.time, clock, lambda: machine.now)
    monkeypatch.setattr(deadlines.os, "getloadavg", lambda: (machine.load, 0.0, 0.0))
    return machine


@pytest.mark.parametrize(("slowness", "expected"), [(0.5, 10), (1, 10), (8, 80)])
def test_a_deadline_grows_with_the_measured_time(machine, slowness, expected):
    machine.slowness = slowness
    assert deadlines.deadline(10) == pytest.approx(expected)


def test_a_busy_machine_is_measured_again_and_the_worst_counts(machine):
    assert deadlines.deadline(10) == pytest.approx(10)
    machine.slowness, machine.load = 5, 100
    assert deadlines.deadline(10) == pytest.approx(10), "just measured"
    machine.now += deadlines.STALE_SECONDS
    machine.now += 1
    assert deadlines.deadline(10) == pytest.approx(50)
    machine.slowness, machine.load = 1, 0
    assert deadlines.slowness(measure=True) == pytest.approx(5)


def test_no_deadline_passes_before_the_machine_is_measured_again(machine):
    end = deadlines.Deadline(10)
    machine.now += 11
    machine.slowness = 3
    assert not end.has_passed()
    assert end.seconds == pytest.approx(30)
    machine.now += 20
    assert end.has_passed()


def test_a_process_that_does_not_end_is_killed_with_those_that_have_its_pipes():
    code = "import subprocess, sys; print('begun', flush=True); subprocess.run(['sleep', '1000'])"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", code], **how)
    with pytest.raises(AssertionError, match="still alive after"):
        deadlines.communicate(process, 0.2)
    assert process.returncode == -9
