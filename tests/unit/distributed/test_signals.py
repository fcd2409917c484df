"""Signals and request files as requests; stop requests and the watchdog in one object, on one process."""

import signal
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from alexnet_dist.distributed.signals import GRACE_SECONDS, Request, Requests, RunControl, StoppedError
from alexnet_dist.distributed.watchdog import LostRankError

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, process_index=0)


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


# ---- with the watchdog, in one object --------------------------------------------------------------------------------


@pytest.fixture
def control(tmp_path):
    return RunControl(ALONE, tmp_path, timeout=timedelta(seconds=60))


def test_a_request_counts_after_the_next_step(control):
    with control.active():
        assert control.after_step() is Request.NONE
        signal.raise_signal(signal.SIGUSR1)
        assert control.after_step() is Request.SAVE


def test_an_evaluation_goes_through_all_batches(control):
    assert list(control.interruptible(["a", "b"], num_batches=3)) == ["a", "b"], "this rank has no third share"


def test_a_stop_ends_an_evaluation_after_the_same_batch_on_every_rank(control):
    batches = control.interruptible(["a", "b", "c"], num_batches=3)
    assert [next(batches), next(batches)] == ["a", "b"]
    control.requests.stop()
    with pytest.raises(StoppedError, match="SIGINT"):
        next(batches)


def test_a_stop_ends_the_wait_for_images_of_one_process(control):
    assert not control.waiting(1e9, lambda: "FILE")
    control.requests.ask(Request.SAVE)
    assert not control.waiting(1.0, lambda: "FILE")
    control.requests.stop()
    assert control.waiting(1.0, lambda: "FILE")
    assert control.requests.agreed is Request.STOP


def test_a_stop_ends_the_wait_of_several_where_the_disk_does_not_answer(control, monkeypatch):
    control._num_ranks, now = 2, time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert not control.waiting(1e9, lambda: "FILE")
    control.requests.stop()
    assert not control.waiting(1e9, lambda: "FILE"), "not at once"
    now += GRACE_SECONDS + 1
    control.requests.stop()
    assert not control.waiting(GRACE_SECONDS - 1, lambda: "FILE"), "images still come"
    with pytest.raises(
        LostRankError, match=r"^rank 0 was asked to stop by SIGINT and waits for FILE, which does not come"
    ):
        control.waiting(GRACE_SECONDS + 1, lambda: "FILE")


def test_a_save_request_does_not_end_an_evaluation(control):
    control.requests.ask(Request.SAVE)
    assert list(control.interruptible(["a", "b"], num_batches=2)) == ["a", "b"]
    assert control.requests.agreed is Request.SAVE


def test_forward_passes_count_as_progress_where_others_wait(control, monkeypatch):
    passes = []
    monkeypatch.setattr(control._watchdog, "progress", lambda: passes.append(1))
    model = torch.nn.Linear(1, 1)
    control.watch(model)
    model(torch.ones(1, 1))
    assert passes == [], "one process waits for nobody"
    control._num_ranks = 2
    control.watch(model)
    model(torch.ones(1, 1))
    assert passes == [1]
