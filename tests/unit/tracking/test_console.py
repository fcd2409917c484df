"""What a run prints, on a terminal and elsewhere."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alexnet_dist.tracking import console
from alexnet_dist.tracking.console import Console

RECORD = {"perf/step_ms": 500.0, "perf/images_per_second": 1234.5, "train/loss": 2.30259}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(screen, *, record=RECORD):
    """Everything that a run says, once."""
    screen.print("a line")
    screen.card("run", {"data": "digits", "network": "AlexNet"})
    screen.start_epoch(1, 2, steps=3, done=0)
    screen.step(None, step=1, last_step=6)
    screen.step(record, step=2, last_step=6)
    screen.end_epoch()
    screen.end_epoch()  # as after an exception
    screen.warn("something is odd")


def test_other_ranks_are_silent(capfd, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    drive(Console(enabled=False))
    assert capfd.readouterr() == ("", "")


def test_other_ranks_are_silent_on_a_terminal_too(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    drive(Console(enabled=False))
    assert terminal.getvalue() == ""


def test_no_progress_bar_where_there_is_no_terminal(capsys):
    drive(Console(enabled=True))
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    assert "step/s" not in out + err
    assert err.strip().splitlines()[1] == "WARNING: something is odd"
    assert out.splitlines()[0] == "a line"


def test_plain_lines_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(console.time, "perf_counter", lambda: clock.now)
    screen = Console(enabled=True)
    screen.start_epoch(1, 1, steps=10, done=0)
    for step, seconds in ((1, 29.0), (2, 31.0), (3, 59.0), (4, 62.0)):
        clock.now = 1000.0 + seconds
        screen.step(None, step=step, last_step=10)
        screen.step(RECORD, step=step, last_step=10)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "step 2/10  loss 2.3026  1,234 images/s  4.0 s left",
        "step 4/10  loss 2.3026  1,234 images/s  3.0 s left",
    ]


def test_progress_bar_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    screen = Console(enabled=True)
    screen.start_epoch(2, 5, steps=8, done=3)
    screen.step(RECORD, step=4, last_step=40)
    bar = screen._bar
    assert (bar.total, bar.n, bar.desc) == (8, 4, "epoch 2/5")
    assert bar.postfix == "loss 2.3026, 1,234 images/s, run ends in 18.0 s"
    assert "epoch 2/5" in terminal.getvalue()
    screen.end_epoch()
    assert screen._bar is None
    assert bar.disable, "closed"
    assert capsys.readouterr().out == ""


class Broken(Terminal):
    """A terminal or pipe that is gone, or a file on a full disk."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, _text):
        raise self.error

    def flush(self):
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "full"), ValueError("closed file")])
def test_printing_ends_no_run(monkeypatch, error):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(error))
    drive(Console(enabled=True, drop=True))
    with pytest.raises(type(error)):
        Console(enabled=True).print("a result")


def test_a_card_lines_up(capsys):
    Console(enabled=True).card("run", {"data": "digits", "run folder": Path("runs/a")})
    top, first, second, bottom = capsys.readouterr().out.splitlines()
    assert top.startswith("-- run ---")
    assert (first, second) == ("data        digits", "run folder  runs/a")
    assert len(top) == len(bottom) == 78
