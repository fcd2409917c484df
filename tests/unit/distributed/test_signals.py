"""Signals and request files as wishes."""

import signal
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from alexnet_dist.distributed.signals import Interrupts, StoppedError, Wish

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)


def make(folder) -> Interrupts:
    return Interrupts(ALONE, folder, timeout=timedelta(seconds=60))


@pytest.mark.parametrize(
    ("number", "wish"),
    [(signal.SIGTERM, Wish.STOP), (signal.SIGINT, Wish.STOP), (signal.SIGUSR1, Wish.SAVE)],
)
def test_signals_become_wishes(tmp_path, number, wish):
    interrupts = make(tmp_path)
    before = signal.getsignal(number)
    with interrupts.listening():
        assert interrupts.agree() is Wish.NOTHING
        signal.raise_signal(number)
        assert interrupts.agree() is wish
        assert interrupts.agree() is wish, "until it is answered"
    assert signal.getsignal(number) is before
    if wish is Wish.STOP:
        with pytest.raises(StoppedError) as stop:
            interrupts.answered()
        assert stop.value.exit_code == 128 + number
    else:
        interrupts.answered()
        assert interrupts.agree() is Wish.NOTHING


def test_stop_outweighs_save(tmp_path):
    interrupts = make(tmp_path)
    with interrupts.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert interrupts.agree() is Wish.STOP


def test_the_request_file_is_taken_away_and_answered_once(tmp_path, monkeypatch):
    interrupts = make(tmp_path)
    interrupts.agree()
    (tmp_path / "save").touch()
    monkeypatch.setattr(time, "monotonic", lambda: interrupts._looked + 2)
    assert interrupts.agree() is Wish.SAVE
    assert not (tmp_path / "save").exists()
    interrupts.answered()
    assert interrupts.agree() is Wish.NOTHING
