"""What the preflight found, and what is asserted of it."""

import dataclasses
import os
import re

import pytest

from alexnet_dist.distributed import hardware
from alexnet_dist.doctor import check_result, checks_hardware, cli, compare_nodes

CORES = hardware.cpu_cores()
NO_GPU = checks_hardware.Gpus(names=(), driver=None, cuda="13.0", nccl="2.30.7", trouble="")
TWO_GPUS = dataclasses.replace(NO_GPU, names=("H100", "H100"), driver="580.65.06")
WELL = "--data.dataset digits --runtime.cpu --wandb.mode disabled".split()


def assert_says(result, level, *fragments):
    assert result is not None
    assert result.level == level, result
    for fragment in fragments:
        assert fragment in result.message, result
    assert "\n" not in str(result)


def found(capsys, *arguments, code):
    """Run the doctor in this process and return its lines as [level, what, message]."""
    assert cli.main([*WELL, *arguments]) == code
    return [re.split(r" +", line, maxsplit=2) for line in capsys.readouterr().out.splitlines()[:-1]]


def levels(lines):
    return {what: level for level, what, _ in lines}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """Run each test in a folder of its own, without what a launcher or a cluster may have set."""
    monkeypatch.chdir(tmp_path)
    for variable in list(os.environ):
        if variable.startswith(
            ("SLURM_", "HF_", "ACCELERATE_", "GLOO_", "CUDA_VISIBLE", "ALEXNET_DIST_SKIP", "MASTER_")
        ):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def nodes_at(host="127.0.0.1", port=1, *, rank=0, most=2, **changes):
    return check_result.Nodes(most, most, rank, host, port, **changes)


VERSIONS = {"alexnet_dist": "0.1.0", "sources": "a", "commit": "c0", "torch": "2.14.1", "python": "3.11.7"}


def report(rank, **changes):
    fields = {"host": f"host{rank}", "versions": VERSIONS, "command": {"seed": 0, "optim": {"lr": 0.1}}, **changes}
    return compare_nodes.Report(rank=rank, **fields)
