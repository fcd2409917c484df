"""Stop requests and the watchdog in one object, on one process."""

import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from alexnet_dist.distributed.run_control import RunControl
from alexnet_dist.distributed.signals import Request, StoppedError

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, process_index=0)


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
