"""Every command of the documents that one machine can run is run, shortened: few images, small inputs, two steps."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deadlines import deadline
from documents import HEADERS, PAGES, bare, code_lines, is_ours
from photos import photo_folder
from places import ROOT

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
SHORT = "--max-steps 2 --data.image-size 63 --data.batch-size 8 --data.limit 16 --log.trackers --runtime.cpu"
NOT_RUN = {
    "benchmarks/gpu.sh": "needs a GPU",
    "benchmarks/gpu_runs.sh": "needs a GPU",
    ".venv/bin/python benchmarks/levers.py": "a benchmark, hours",
    ".venv/bin/python benchmarks/scaling.py": "a benchmark, hours",
    "python -m venv .venv": "a user's environment",
    "accelerate launch train.py --config recipes/finetune.yaml": "downloads weights",
    "alexnet-dist dashboard [PROJECT | ENTITY/PROJECT]": "a synopsis, and needs a login at W&B",
    "alexnet-dist publish runs/cifar10 owner/alexnet-cifar10": "needs a login at the Hub",
    "alexnet-dist train --data.dataset owner/name --data.config NAME --data.label-column COLUMN": "needs the Hub",
    "python -m alexnet_dist.doctor [its own options] [the options of train.py]": "a synopsis",
    "python -m alexnet_dist.doctor $NODES $RUN": "an environment that SLURM makes",
    "train.py --profile …": "a synopsis",
}
"""Commands that are shown, and why no test runs them."""
NOT_HERE = re.compile(r"make |.*\b(sbatch|NNODES)\b")
"""Beginnings of commands that need other machines, or that install and run what other tests or CI cover."""
COMMANDS = {line for path in [*PAGES, *HEADERS] for line in code_lines(path) if is_ours(bare(line)[0])}
RUN = sorted(line for line in COMMANDS - set(NOT_RUN) if not NOT_HERE.match(line))


@pytest.fixture(scope="module")
def environment():
    """Return variables for a user's shell in which .venv is active, without a network or a GPU."""
    return os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "WANDB_MODE": "offline", "CPU_RANKS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory, environment):
    """Return a folder like a user's: the checkout's files, a set of photographs, finished runs, and a picture."""
    import torch

    import alexnet_dist

    folder = tmp_path_factory.mktemp("user")
    for name in ("launch", "recipes", "train.py", "accelerate_config.yaml", "alexnet_dist", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    photo_folder(folder / "FOLDER", train=20, test=8)
    (folder / "holiday").mkdir()
    picture = next((folder / "FOLDER" / "test").rglob("*.jpg")).read_bytes()
    for name in ("cat.jpg", "holiday/dog.jpg"):
        (folder / name).write_bytes(picture)
    for name, data in (("my-run", "FOLDER"), ("first", "digits")):
        run(f"alexnet-dist train --data.dataset {data} {SHORT} --out-dir runs/{name}", folder, environment)
    for name in ("runs/other", "runs/cifar10", "RUN"):
        (folder / name).symlink_to(folder / "runs" / "first")
    tensors = alexnet_dist.load(folder / "runs" / "my-run").network.state_dict()
    torch.save(tensors, folder / "checkpoint.pth")  # noqa: TID251 - as torchvision's script does
    (folder / "names.txt").write_text("cat\ndog\n")
    run("alexnet-dist convert checkpoint.pth FILE.safetensors", folder, environment)
    shutil.copy(folder / "FILE.safetensors", folder / "alexnet.safetensors")
    return folder


def run(line, folder, environment):
    """Run a line of the shell and return what it printed."""
    keywords = {"shell": True, "capture_output": True, "text": True, "timeout": deadline(300)}
    ended = subprocess.run(line, cwd=folder, env=environment, check=False, **keywords)
    assert ended.returncode == 0, f"{line}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


def shortened(line, out_dir):
    """Return a command with flags that make a training short; the images are the user's unless it names digits."""
    words = bare(line)
    if words[1:2] == ["doctor"]:
        return f"{line} --data.dataset digits --runtime.cpu --out-dir {out_dir}"
    if words[1:2] == ["convert"]:
        return line.replace("alexnet.safetensors", f"{out_dir}.safetensors")
    if "--help" in words:
        return line
    if "train.py" in words or words[0].startswith("launch/") or words[1:2] == ["train"]:
        data = "" if "--data.dataset" in words else "--data.dataset FOLDER"
        return f"{line} {data} {SHORT} --out-dir {out_dir}"
    return f"{line} --data.image-size 63 --data.batch-size 8" if words[1:2] == ["prepare"] else line


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs(line, place, environment, tmp_path):
    run(shortened(line, tmp_path / "run"), place, environment)
    shutil.rmtree(tmp_path)  # checkpoints of 0.7 GB


def test_commands_that_are_not_run_are_shown_somewhere():
    assert set(NOT_RUN) <= COMMANDS
    assert len(RUN) > 35
