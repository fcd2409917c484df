"""train.py as a user starts it: --help, and mistakes on the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
from options import OPTIONS
from places import ROOT


def test_help_explains_every_option_without_torch():
    code = "import sys; from alexnet_dist.config import parse\n"
    code += "try: parse(['--help'])\nfinally: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert out.rstrip().endswith("False")
    for option in OPTIONS:
        assert f"--{option.replace('_', '-')}" in out, option


def test_command_line_ends_with_code_2_and_one_line():
    ended = subprocess.run(
        [sys.executable, "train.py", "--epoch", "3"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: ")
    assert "did you mean --epochs?" in ended.stderr


def ways_to_train():
    script = Path(sys.executable).with_name("alexnet-dist")
    installed = pytest.param([str(script)], marks=pytest.mark.skipif(not script.exists(), reason="not installed"))
    return [["train.py"], ["-m", "alexnet_dist", "train"], installed]


@pytest.mark.parametrize("way", ways_to_train(), ids=["train.py", "module", "script"])
def test_every_way_to_train_is_the_same_command(tmp_path, way):
    flags = ["--config", "lecture", "--data.dataset", "digits", "--data.limit", "40", "--data.batch-size", "20"]
    flags += ["--data.image-size", "63", "--max-steps", "1", "--log.trackers", "--out-dir", str(tmp_path / "run")]
    start = [*way, "train", *flags] if len(way) == 1 and way[0] != "train.py" else [sys.executable, *way, *flags]
    ended = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "adam, lr 0.0001 constant" in ended.stdout, "the lecture's recipe"


@pytest.mark.parametrize("command", [["doctor"], ["report"]], ids=" ".join)
def test_the_other_commands_explain_themselves(command):
    start = [sys.executable, "-m", "alexnet_dist", *command, "--help"]
    ended = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "usage" in ended.stdout
