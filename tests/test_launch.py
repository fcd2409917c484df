"""The launch scripts with stand-ins for `accelerate` and `nvidia-smi`, and the launcher's configuration file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config import config_args
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
YAML_FILE = ROOT / "accelerate_config.yaml"
BASH = shutil.which("bash")
COMMANDS = ("bash", "cat", "dirname", "grep", "ls", "mkdir", "mktemp", "rm", "tr")  # all that the scripts may use

RECORD_AND_SUCCEED = """#!/bin/sh
for argument in "$@"; do printf '%s\\n' "$argument"; done > "$CAPTURE"
exit ${EXIT_CODE:-0}
"""


class Stage:
    """A machine whose PATH holds a few plain commands and stand-ins."""

    def __init__(self, folder):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "tmp").mkdir()
        for name in COMMANDS:
            (self.bin / name).symlink_to(shutil.which(name))
        for name in ("accelerate", "python"):
            self.add(name, RECORD_AND_SUCCEED)

    def add(self, name, script):
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def add_gpus(self, count):
        listed = "".join(f"echo 'GPU {index}: NVIDIA H200 (UUID: GPU-{index})'\n" for index in range(count))
        self.add("nvidia-smi", f'#!/bin/sh\n[ "$1" = --list-gpus ] || exit 9\n{listed}')

    def run(self, script, *arguments, **variables):
        """Return the finished process and what `accelerate` or `python` was given, or None where neither was called."""
        (self.folder / "captured").unlink(missing_ok=True)
        done = subprocess.run(
            [BASH, str(ROOT / "launch" / script), *arguments],
            env={
                "PATH": str(self.bin),
                "CAPTURE": str(self.folder / "captured"),
                "TMPDIR": str(self.folder / "tmp"),
                **variables,
            },
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        captured = self.folder / "captured"
        return done, captured.read_text().splitlines() if captured.exists() else None


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def as_accelerate_reads(captured):
    """Parse what the stand-in was given with the launcher's own parser; a flag that it does not have is an error."""
    assert captured[0] == "launch"
    return launch_command_parser().parse_args(captured[1:])


# ---- all scripts ----------------------------------------------------------------------------------------------------


def test_there_are_scripts():
    assert {"debug.sh", "node.sh"} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_can_be_read_and_run(script):
    done = subprocess.run([BASH, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()


# ---- accelerate_config.yaml -----------------------------------------------------------------------------------------


def test_accelerate_reads_the_configuration_file():
    found = config_args.load_config_from_file(str(YAML_FILE))
    assert isinstance(found, config_args.ClusterConfig)
    assert found.distributed_type == "MULTI_GPU"
    assert found.mixed_precision == "no"
    assert (found.num_machines, found.machine_rank, found.gpu_ids) == (1, 0, "all")
    assert isinstance(found.num_processes, int)
    assert (found.use_cpu, found.debug) == (False, False)


def test_nothing_in_the_configuration_file_is_read_as_a_truth_value_by_accident():
    fields = config_args.ClusterConfig.__dataclass_fields__
    truths = {name for name, field in fields.items() if "bool" in str(field.type)}
    assert {"use_cpu", "debug", "same_network"} <= truths
    root = yaml.compose(YAML_FILE.read_text(encoding="utf-8"))
    assert len(root.value) > 10
    for key, value in root.value:
        kind = value.tag.rpartition(":")[2]
        if key.value in truths:
            assert kind == "bool", f"{key.value}: {value.value}"
        elif kind != "int":
            assert (kind, value.style) == ("str", '"'), f"quote {key.value}: {value.value}"


# ---- node.sh --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("listed", "processes"), [(1, 1), (4, 4)])
def test_node_starts_a_process_for_each_gpu(listed, processes, stage):
    stage.add_gpus(listed)
    done, captured = stage.run("node.sh", "--config", "a b.yaml", "--epochs", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    read = as_accelerate_reads(captured)
    assert Path(read.config_file).samefile(YAML_FILE)
    assert read.num_processes == processes
    assert Path(read.training_script).samefile(ROOT / "train.py")
    assert read.training_script_args == ["--config", "a b.yaml", "--epochs", "1"]


@pytest.mark.parametrize(("visible", "processes"), [("0", 1), ("0,2", 2), ("3,1,0", 3), ("GPU-0,GPU-1", 2), ("0,", 1)])
def test_node_counts_the_visible_gpus(visible, processes, stage):
    stage.add_gpus(4)
    _, captured = stage.run("node.sh", CUDA_VISIBLE_DEVICES=visible)
    read = as_accelerate_reads(captured)
    assert (read.num_processes, read.config_file is not None) == (processes, True)


def assert_one_process_on_the_cpu(done, captured):
    """Not under `accelerate launch`, which would keep a SIGTERM to itself; return what train.py was given."""
    assert done.returncode == 0
    assert Path(captured[0]).samefile(ROOT / "train.py")
    return captured[1:]


def test_node_without_gpus(stage):
    assert assert_one_process_on_the_cpu(*stage.run("node.sh", "--epochs", "1")) == ["--epochs", "1"]


@pytest.mark.parametrize("script", ["exit 9", "exit 0", "echo 'No devices were found'", "echo oops >&2; exit 1"])
def test_node_where_nvidia_smi_finds_nothing(script, stage):
    stage.add("nvidia-smi", f"#!/bin/sh\n{script}\n")
    done, captured = stage.run("node.sh")
    assert_one_process_on_the_cpu(done, captured)
    assert done.stderr == ""


def test_node_counts_gpus_and_not_their_parts(stage):
    stage.add("nvidia-smi", "#!/bin/sh\necho 'GPU 0: A100'\necho '  MIG 1g.5gb Device 0: (UUID: MIG-GPU-x)'\n")
    assert as_accelerate_reads(stage.run("node.sh")[1]).num_processes == 1


def test_node_with_all_gpus_hidden(stage):
    stage.add_gpus(4)
    assert_one_process_on_the_cpu(*stage.run("node.sh", CUDA_VISIBLE_DEVICES=""))


def test_node_with_all_gpus_hidden_the_other_way(stage):
    stage.add_gpus(4)
    assert as_accelerate_reads(stage.run("node.sh", CUDA_VISIBLE_DEVICES="-1")[1]).num_processes == 1


@pytest.mark.parametrize("gpus", [0, 4])
def test_node_with_cpu_ranks(gpus, stage):
    if gpus:
        stage.add_gpus(gpus)
    done, captured = stage.run("node.sh", "--epochs", "1", CPU_RANKS="2")
    assert done.returncode == 0
    read = as_accelerate_reads(captured)
    assert (read.num_processes, read.num_machines, read.multi_gpu, read.cpu) == (2, 1, True, False)
    assert (read.config_file, read.mixed_precision, read.dynamo_backend) == (None, "no", "no")
    assert read.main_process_ip == "127.0.0.1"
    assert read.training_script_args == ["--runtime.cpu", "--epochs", "1"]


def test_node_with_one_cpu_rank_where_there_are_gpus(stage):
    stage.add_gpus(4)
    given = assert_one_process_on_the_cpu(*stage.run("node.sh", "--epochs", "1", CPU_RANKS="1"))
    assert given == ["--runtime.cpu", "--epochs", "1"], "CPU was asked for"


@pytest.mark.parametrize("ranks", ["0", "-1", "two", "1.5", "2 3", "08", " "])
def test_node_refuses_cpu_ranks_that_are_no_number(ranks, stage):
    done, captured = stage.run("node.sh", CPU_RANKS=ranks)
    assert done.returncode == 2
    assert captured is None, "nothing is started"
    assert done.stderr == f"error: CPU_RANKS must be a number of processes, not '{ranks}'\n"


@pytest.mark.parametrize("variables", [{}, {"CPU_RANKS": "2"}])
def test_node_ends_with_the_launchers_code(variables, stage):
    assert stage.run("node.sh", EXIT_CODE="7", **variables)[0].returncode == 7


def test_node_passes_only_options_that_train_py_has(stage):
    from alexnet_dist.config import parse

    _, captured = stage.run("node.sh", "--epochs", "3", CPU_RANKS="2")
    config = parse(as_accelerate_reads(captured).training_script_args)
    assert (config.runtime.cpu, config.epochs) == (True, 3)


# ---- debug.sh -------------------------------------------------------------------------------------------------------

LEAVE_A_RUN = """#!/bin/sh
for argument in "$@"; do printf '%s\\n' "$argument"; done > "$CAPTURE"
while [ "$1" != --out-dir ]; do shift; done
mkdir -p "$2/checkpoints" && echo x > "$2/checkpoints/big" || exit 8
ls "$TMPDIR" > "$CAPTURE.tmp"
exit ${EXIT_CODE:-0}
"""


def debug(stage, *arguments, **variables):
    from alexnet_dist.config import parse

    stage.add("accelerate", LEAVE_A_RUN)
    done, captured = stage.run("debug.sh", *arguments, **variables)
    read = as_accelerate_reads(captured)
    assert (read.num_processes, read.num_machines, read.mixed_precision, read.multi_gpu) == (1, 1, "no", False)
    assert Path(read.training_script).samefile(ROOT / "train.py")
    return done, parse(read.training_script_args)


def test_debug_takes_a_few_steps_on_synthetic_images(stage):
    done, config = debug(stage)
    assert done.returncode == 0
    assert (config.data.dataset, config.max_steps, config.data.limit) == ("synthetic", 3, 64)
    assert config.wandb.mode == "disabled"
    assert config.data.limit >= config.data.batch_size


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda recipe: recipe.name)
def test_debug_takes_the_same_few_steps_of_a_recipe(recipe, stage):
    from alexnet_dist.config import parse

    _, config = debug(stage, "--config", str(recipe))
    recipes = parse(["--config", str(recipe)])
    assert config.data.dataset == recipes.data.dataset
    assert config.optim == recipes.optim
    assert (config.max_steps, config.data.limit, config.wandb.mode) == (3, 64, "disabled")


def test_debug_lets_its_callers_options_win(stage):
    _, config = debug(stage, "--max-steps", "5", "--data.dataset", "digits", "--optim.lr", "0.01")
    assert (config.max_steps, config.data.dataset, config.optim.lr) == (5, "digits", 0.01)


@pytest.mark.parametrize("code", [0, 2])
def test_debug_removes_its_scratch_folder(code, stage):
    done, config = debug(stage, EXIT_CODE=str(code))
    assert done.returncode == code
    assert config.out_dir.parent.parent == stage.folder / "tmp"
    assert (stage.folder / "captured.tmp").read_text() == f"{config.out_dir.parent.name}\n", "it was there"
    assert list((stage.folder / "tmp").iterdir()) == []
