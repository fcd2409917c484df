"""The watchdog of a run of one process, and which errors are those of a lost rank."""

import threading

import pytest
from tiny import run

from alexnet_dist.distributed.watchdog import COLLECTIVE


def test_one_process_has_no_thread_and_no_store(tmp_path):
    run(tmp_path, "--max-steps", "1")
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    "message",
    [
        "[third_party/gloo/gloo/transport/tcp/pair.cc:547] Broken pipe",
        "Connection closed by peer [127.0.0.1]:33311",
        "Connection reset by peer",
        "Timed out waiting 6000ms for recv operation to complete",
        "Application timeout caused pair closure",  # gloo, to a collective that waits while another times out
        "NCCL communicator was aborted on rank 1.",
    ],
)
def test_what_a_collective_raises_when_a_rank_is_lost_is_known(message):
    assert COLLECTIVE.search(message)


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "mat1 and mat2 shapes cannot be multiplied"])
def test_a_faulty_step_is_no_lost_rank(message):
    assert not COLLECTIVE.search(message)
