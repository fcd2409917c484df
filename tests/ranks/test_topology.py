"""An all-reduce that is timed on two ranks."""

import json

import pytest
import torch
from ranks import run_ranks
from tiny import run, summary

from alexnet_dist.distributed import topology


def probing_run(folder):
    torch.set_num_threads(1)
    run(folder, "--runtime.cpu", "--max-steps", "1", "--runtime.probe-network")


def test_two_ranks_time_an_all_reduce_of_their_gradients(tmp_path):
    run_ranks(probing_run, tmp_path / "run")
    found = summary(tmp_path / "run")
    assert list(found["hosts"].values()) == [2]
    assert (found["backend"], found["devices"]) == ("gloo", {"CPU": 2})
    assert found["interconnect"].startswith("lo")
    assert found["allreduce_bytes"] == 4 * found["num_parameters"]
    seconds = found["allreduce_ms"] / 1000
    assert found["allreduce_gb_per_second"] == pytest.approx(found["allreduce_bytes"] / seconds / 1e9), (
        "2 (P - 1) / P = 1"
    )
    json.dumps(found)


def test_every_round_is_a_real_one_on_every_rank():
    assert run_ranks(counted_rounds) == [2 + topology.ROUNDS] * 2  # one to warm up, one to agree on the time


def counted_rounds():
    from alexnet_dist.config import parse
    from alexnet_dist.distributed.accelerator import make_accelerator

    torch.set_num_threads(1)
    accelerator, _ = make_accelerator(parse(["--runtime.cpu"]))
    calls = []
    reduce = topology.dist.all_reduce
    topology.dist.all_reduce = lambda *arguments, **keywords: (calls.append(1), reduce(*arguments, **keywords))
    found = topology.all_reduce(accelerator, num_bytes=4_000_000)
    assert found["allreduce_ms"] > 0
    return len(calls)
