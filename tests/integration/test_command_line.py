"""train.py as a user starts it: --help, and mistakes on the command line."""

import subprocess
import sys

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
