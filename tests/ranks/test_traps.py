"""Ways in which `accelerate launch` does something else than was asked, and says nothing.

Here it is really launched in each of them, which ends in an error that says so, or is the right run. G2 is in
test_ddp.py: test_processes_that_would_train_apart_are_refused.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from deadlines import deadline
from places import ROOT
from tiny import beside_launch_scripts, summary

from alexnet_dist.config import parse
from alexnet_dist.distributed import launch_checks
from alexnet_dist.errors import UserError

FEW = ["--max-steps", "2", "--model.dropout", "0"]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs for the processes")


class Desk:
    """Where a user types commands: a folder with launch scripts, and a home."""

    def __init__(self, folder):
        self.folder, self.run = folder, folder / "run"
        (folder / "notes").mkdir()
        beside_launch_scripts(folder)

    def type(self, *words, **variables):
        """Give a command, with flags for a short run, and return how it ended."""
        own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CHAOS": str(self.folder / "notes")}
        return subprocess.run(
            [*words, *FEW, "--out-dir", str(self.run)],
            env=os.environ | own | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=deadline(120),
            check=False,
        )

    def write(self, name, text):
        """Write a configuration file for the launcher and return its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def check_refused(desk, ended, words):
    assert ended.returncode != 0
    assert words in ended.stderr
    assert not desk.run.exists(), "nothing was trained"


def own_file(**changed):
    """Return the shipped configuration file with other values; None leaves one out."""
    found = yaml.safe_load((ROOT / "accelerate_config.yaml").read_text())
    return yaml.safe_dump({name: value for name, value in (found | changed).items() if value is not None})


def test_g1_a_number_of_processes_that_nobody_gave_is_asked_for(desk):
    path = desk.write("mine.yaml", own_file(num_processes=None))
    ended = desk.type("accelerate", "launch", "--config_file", path, "train.py")
    check_refused(desk, ended, "You need to manually pass in `--num_processes`")


def test_g3_one_process_in_place_of_two_is_refused(desk):
    ended = desk.type("accelerate", "launch", "--cpu", "--num_processes", "2", "train.py")
    check_refused(desk, ended, "error: `accelerate launch` was asked for several processes and started this one alone")


@pytest.mark.slow
def test_g3_the_same_by_a_configuration_file(desk):
    path = desk.write("mine.yaml", own_file(distributed_type="MULTI_CPU", use_cpu=True))
    ended = desk.type("accelerate", "launch", "--config_file", path, "train.py", "--runtime.cpu")
    check_refused(desk, ended, "error: `accelerate launch` was asked for several processes and started this one alone")


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({"MASTER_PORT": "29500"}, False),  # a shell's, without a launcher
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),  # one process, as asked
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "WORLD_SIZE": "1"}, False),
    ],
)
def test_g3_is_told_from_what_the_launcher_sets(monkeypatch, variables, refused):
    for name in ("MASTER_PORT", "ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refused:
        with pytest.raises(UserError, match="started this one alone"):
            launch_checks.check_launch(parse([]))
    else:
        launch_checks.check_launch(parse([]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: no\n", "object has no attribute 'lower'"),
        ("distributed_type: NO\n", "You need to manually pass in `--num_processes`"),
        pytest.param(
            "distributed_type: NO\nnum_processes: 2\n",
            "error: `accelerate launch` was asked for several processes",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_g4_an_unquoted_no_trains_nothing(desk, text, words):
    """YAML's truth values. The launcher's own words are about something else; the README has them."""
    path = desk.write("mine.yaml", "compute_environment: LOCAL_MACHINE\nuse_cpu: false\n" + text)
    check_refused(desk, desk.type("accelerate", "launch", "--config_file", path, "train.py"), words)


def test_g5_and_g6_cores_are_shared_and_a_file_that_nobody_named_is_not_read(desk):
    """The launcher sets OMP_NUM_THREADS=1, and reads a default file from a cache where no other is named."""
    hostile = own_file(num_machines=2, machine_rank=1, gpu_ids="0", mixed_precision="fp16", debug=True)
    desk.write(f"{os.environ['XDG_CACHE_HOME']}/huggingface/accelerate/default_config.yaml", hostile)
    flags = ["--data.dataset", "synthetic", "--data.batch-size", "16", "--runtime.precision", "auto"]
    ended = desk.type(str(desk.folder / "launch/node.sh"), *flags, CPU_RANKS="2")
    assert ended.returncode == 0, ended.stderr
    assert summary(desk.run)["world_size"] == 2
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"2 processes (DDP) on CPU, {threads} thread" in ended.stdout
    assert "fp16" not in ended.stdout
    assert "the launcher's choice" not in ended.stdout


def test_g6_what_a_file_that_nobody_named_does_is_an_error_where_it_cannot_be_right(desk):
    default = own_file(num_processes=2)
    desk.write(f"{os.environ['XDG_CACHE_HOME']}/huggingface/accelerate/default_config.yaml", default)
    ended = desk.type("accelerate", "launch", "--main_process_port", "0", "train.py")  # another test may have 29500
    check_refused(desk, ended, "error: the launcher started 2 processes and there is no GPU")
