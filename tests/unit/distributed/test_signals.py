"""Signals and request files as requests."""

import signal
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from alexnet_dist.distributed.signals import Request, Requests, StoppedError

ALONE = SimpleNamespace(is_main_process=True, num_processes=1)


def make(folder) -> Requests:
    return Requests(ALONE, folder, timeout=timedelta(seconds=60))


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGTERM, Request.STOP), (signal.SIGINT, Request.STOP), (signal.SIGUSR1, Request.SAVE)],
)
def test_signals_become_requests(tmp_path, number, expected):
    requests = make(tmp_path)
    before = signal.getsignal(number)
    with requests.listening():
        assert requests.sync() is Request.NONE
        signal.raise_signal(number)
        assert requests.sync() is expected
        assert requests.sync() is expected, "until it is fulfilled"
    assert signal.getsignal(number) is before
    if expected is Request.STOP:
        with pytest.raises(StoppedError) as stop:
            requests.raise_if_stop()
        assert stop.value.exit_code == 128 + number
    else:
        requests.raise_if_stop()
        assert requests.sync() is Request.NONE


def test_stop_outweighs_save(tmp_path):
    requests = make(tmp_path)
    with requests.listening():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert requests.sync() is Request.STOP


def test_the_request_file_is_taken_away_and_answered_once(tmp_path, monkeypatch):
    requests = make(tmp_path)
    requests.sync()
    (tmp_path / "save").touch()
    monkeypatch.setattr(time, "monotonic", lambda: requests._looked + 2)
    assert requests.sync() is Request.SAVE
    assert not (tmp_path / "save").exists()
    requests.raise_if_stop()
    assert requests.sync() is Request.NONE
