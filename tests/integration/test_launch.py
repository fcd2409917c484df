"""The launch scripts with stand-ins for `accelerate`, `nvidia-smi` and SLURM, and the launcher's configuration file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config import config_args
from accelerate.commands.launch import launch_command_parser
from deadlines import deadline
from places import ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), *(ROOT / "launch").glob("*.sbatch")])
YAML_FILE = ROOT / "accelerate_config.yaml"
BASH = shutil.which("bash")
COMMANDS = ("bash", "cat", "dirname", "env", "grep", "ls", "mkdir", "mktemp", "rm", "tr")  # all that scripts may use
PREFLIGHT = """#!/bin/sh
if [ "$1 $2" = "-m alexnet_dist.doctor" ]; then
  shift 2
  printf '%s\\n' "$@" > "$CAPTURE.doctor"
  exit ${PREFLIGHT_CODE:-0}
fi
"""
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
        self.add("accelerate", RECORD_AND_SUCCEED)
        self.add("python", PREFLIGHT + RECORD_AND_SUCCEED)

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
            timeout=deadline(30),
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
    assert {"debug.sh", "node.sh", "multinode.sh", "slurm.sbatch"} <= {script.name for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_can_be_read_and_run(script):
    done = subprocess.run([BASH, "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


PREFLIGHTS = {
    "node.sh": ({}, ["--num-processes", "1"]),
    "node.sh on ranks": ({"CPU_RANKS": "2"}, ["--num-processes", "2", "--runtime.cpu"]),
    "node.sh on GPUs": ({"GPUS": "4"}, ["--num-processes", "4"]),
    "debug.sh": ({}, ["--num-processes", "1"]),
    "multinode.sh": (
        {"NNODES": "2:3", "RDZV": "host0:29500", "CPU_RANKS": "2"},
        "--nnodes 2:3 --rdzv host0:29500 --wait 600 --num-processes 6".split(),
    ),
}


@pytest.mark.parametrize("case", PREFLIGHTS)
@pytest.mark.parametrize("code", [0, 2])
def test_every_script_asks_the_preflight_first(stage, case, code):
    """With the options of the run; and begins nothing if there is an error."""
    from alexnet_dist.doctor import cli

    variables, told = PREFLIGHTS[case]
    if "GPUS" in variables:
        stage.add_gpus(int(variables["GPUS"]))
    if case == "multinode.sh":
        stage.add("python", ADDRESS)
    done, captured = stage.run(
        case.split()[0], "--epochs", "7", "--out-dir", "/shared/run", PREFLIGHT_CODE=str(code), **variables
    )
    asked = (stage.folder / "captured.doctor").read_text().splitlines()
    assert asked[0] == "--quiet"
    assert [word for word in told if word not in asked] == []
    options, rest = cli._options().parse_known_args(asked)
    assert options.num_processes == int(told[told.index("--num-processes") + 1])
    assert cli.parse(rest).epochs == 7
    assert done.returncode == code
    assert (captured is None) == bool(code)


# ---- accelerate_config.yaml -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["node.sh", "multinode.sh"])
def test_scripts_without_the_packages_name_the_way_to_them(script, stage):
    (stage.bin / "accelerate").unlink()
    done, given = stage.run(script, "--config", "quick")
    assert (done.returncode, given) == (2, None)
    assert "accelerate is not installed" in done.stderr
    assert "source .venv/bin/activate" in done.stderr


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
    assert (read.num_processes, read.cpu) == (2, False)
    assert Path(read.config_file).samefile(YAML_FILE), "not the one that a user may have in a cache"
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


# ---- multinode.sh ---------------------------------------------------------------------------------------------------


ADDRESS = f"""{PREFLIGHT}
[ "$1" = -c ] || exec printf '%s\\n' "$@"
[ "$3" = unknown ] && echo "error: RDZV: unknown cannot be reached" >&2 && exit 1
echo "${{ADDRESS:-10.0.0.7}} $HOSTS"
"""
RECORD_WITH_VARIABLES = RECORD_AND_SUCCEED.replace("exit", 'env > "$CAPTURE.env"\nexit', 1)
MEET = {"NNODES": "2", "RDZV": "host0:29500", "CPU_RANKS": "2"}


def multinode(stage, *arguments, **variables):
    """Return the finished process, what the launcher reads from its flags or None, and its variables."""
    stage.add("python", ADDRESS)
    stage.add("accelerate", RECORD_WITH_VARIABLES)
    done, captured = stage.run("multinode.sh", *arguments, **variables)
    if captured is None:
        return done, None, {}
    lines = (stage.folder / "captured.env").read_text().splitlines()
    return done, as_accelerate_reads(captured), dict(line.split("=", 1) for line in lines if "=" in line)


def test_multinode_has_one_launcher_on_each_machine(stage):
    done, read, variables = multinode(stage, "--epochs", "1", "--out-dir", "/shared/run", **MEET)
    assert (done.returncode, done.stderr) == (0, "")
    assert (read.num_processes, read.rdzv_backend, read.main_process_port, read.max_restarts) == (2, "c10d", 0, 3)
    assert Path(read.config_file).samefile(YAML_FILE)
    assert read.training_script_args == ["--runtime.cpu", "--epochs", "1", "--out-dir", "/shared/run"]
    found = {name: variables[f"PET_{name}"] for name in ("NNODES", "RDZV_ENDPOINT", "RDZV_ID", "LOCAL_ADDR")}
    expected = {"NNODES": "2", "RDZV_ENDPOINT": "host0:29500", "RDZV_ID": "/shared/run", "LOCAL_ADDR": "10.0.0.7"}
    assert found == expected
    assert variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_multinode_takes_a_process_for_each_gpu(stage):
    stage.add_gpus(8)
    asked = {"NNODES": "2:4", "RDZV": "[fd00::1]:29500", "MAX_RESTARTS": "9", "RUN_ID": "a", "RDZV_CONF": "x=1"}
    done, read, variables = multinode(stage, "--out-dir=/shared/run", **asked)
    assert done.returncode == 0
    assert (read.num_processes, read.max_restarts, read.rdzv_conf) == (8, 9, "x=1")
    assert read.training_script_args == ["--out-dir=/shared/run"]
    assert (variables["PET_NNODES"], variables["PET_RDZV_ID"]) == ("2:4", "a")


def test_torchs_launcher_takes_what_multinode_gives(monkeypatch, stage):
    """By the launcher's own code: the flags and variables end in the meeting that was asked for."""
    import torch.distributed.run as torchrun  # noqa: TID251 - what `accelerate launch` calls
    from accelerate.commands import launch

    asked = {**MEET, "NNODES": "2:4", "RDZV_CONF": "last_call_timeout=7", "HOSTS": "is_host=true"}
    _, read, variables = multinode(stage, "--out-dir", "/shared/run", **asked)
    for name in ("PET_NNODES", "PET_RDZV_ENDPOINT", "PET_RDZV_ID", "PET_LOCAL_ADDR"):
        monkeypatch.setenv(name, variables[name])
    found = []
    monkeypatch.setattr(torchrun, "run", lambda args: found.append(torchrun.config_from_args(args)[0]))
    launch.launch_command(read)
    config = found[0]
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (2, 4, 2, 3)
    assert (config.rdzv_backend, config.rdzv_endpoint, config.run_id) == ("c10d", "host0:29500", "/shared/run")
    assert config.local_addr == "10.0.0.7"
    assert (config.rdzv_configs["is_host"], config.rdzv_configs["last_call_timeout"]) == ("true", "7")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"NNODES": ""}, "NNODES must be a number of machines, or the fewest and the most as in 2:4, not ''"),
        ({"NNODES": "two"}, "not 'two'"),
        ({"NNODES": "0"}, "not '0'"),
        ({"NNODES": "1:2:3"}, "not '1:2:3'"),
        ({"NNODES": "4:2"}, "the fewest machines are more than the most"),
        ({"RDZV": ""}, "RDZV must be a machine and a port, as in host0:29500, not ''"),
        ({"RDZV": "host0"}, "not 'host0'"),
        ({"RDZV": "host0:70000"}, "there is no port 70000"),
        ({"RDZV": "unknown:29500"}, "RDZV: unknown cannot be reached"),
        ({"ADDRESS": "127.0.1.1"}, "host0 is 127.0.1.1 on this machine, where no other can reach it"),
        ({"ADDRESS": "::1"}, "host0 is ::1 on this machine"),
        ({"CPU_RANKS": "two"}, "CPU_RANKS must be a number of processes, not 'two'"),
        ({"CPU_RANKS": ""}, "there is no GPU here: see what nvidia-smi says, or give CPU_RANKS on all machines"),
        ({"MAX_RESTARTS": "-1"}, "MAX_RESTARTS must be a number, not '-1'"),
    ],
)
def test_multinode_refuses(stage, changed, words):
    done, read, _ = multinode(stage, "--out-dir", "/shared/run", **MEET | changed)
    assert done.returncode == 2
    assert read is None, "nothing is started"
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_multinode_needs_a_folder_that_is_shared(stage):
    done, read, _ = multinode(stage, "--config", "--out-dir.yaml", **MEET)
    assert (done.returncode, read) == (2, None)
    assert done.stderr == "error: give --out-dir, a folder that all machines share\n"


def test_one_machine_may_meet_itself(stage):
    done, read, _ = multinode(
        stage, "--out-dir", "a", **MEET | {"NNODES": "1", "RDZV": "localhost:1", "ADDRESS": "::1"}
    )
    assert (done.returncode, read.num_processes) == (0, 2)


# ---- slurm.sbatch ---------------------------------------------------------------------------------------------------


SRUN = """#!/bin/sh
printf '%s\\n' "$@" > "$CAPTURE"
env > "$CAPTURE.env"
/bin/sh -c "$DURING"
exit ${EXIT_CODE:-1}
"""
SCONTROL = """#!/bin/sh
if [ "$1 $2" = "show hostnames" ]; then printf '%s\\n' $MACHINES; else echo "$@" >> "$CAPTURE.requeued"; fi
"""


class Slurm:
    """A cluster whose srun does what DURING says instead of training."""

    def __init__(self, stage):
        self.stage, self.out = stage, stage.folder / "run"
        self.out.mkdir()
        stage.add("srun", SRUN)
        stage.add("scontrol", SCONTROL)

    def run(self, *arguments, during="true", **variables):
        own = {"SLURM_JOB_ID": "4711", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_NODELIST": "n[3-4]"}
        own |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "16", "MACHINES": "n3 n4", "DURING": during}
        done, captured = self.stage.run("slurm.sbatch", *arguments, **own | variables)
        return done, captured

    @property
    def variables(self):
        lines = (self.stage.folder / "captured.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    @property
    def requeued(self):
        path = self.stage.folder / "captured.requeued"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(stage):
    return Slurm(stage)


def test_slurm_starts_one_launcher_on_each_machine(slurm):
    done, captured = slurm.run("--out-dir", str(slurm.out), "--epochs", "1", EXIT_CODE="0")
    assert (done.returncode, done.stderr, slurm.requeued) == (0, "", [])
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0"} <= set(captured)
    assert captured[-5:] == [str(ROOT / "launch/multinode.sh"), "--out-dir", str(slurm.out), "--epochs", "1"]
    found = {name: slurm.variables[name] for name in ("NNODES", "RDZV", "RUN_ID", "SRUN_CPUS_PER_TASK")}
    assert found == {"NNODES": "2", "RDZV": "n3:24711", "RUN_ID": "slurm-4711", "SRUN_CPUS_PER_TASK": "16"}


def test_slurm_asks_for_what_the_script_relies_on():
    lines = (ROOT / "launch/slurm.sbatch").read_text().splitlines()
    options = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--ntasks-per-node=1", "--requeue", "--open-mode=append", "--signal=TERM@300"} <= options
    code = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(index for index, line in enumerate(lines) if line.startswith("#SBATCH")) < code, "SLURM reads no further"


LEAVES = "echo 'SIGTERM after step 12' > {out}/PREEMPTED"


def test_slurm_puts_a_run_that_was_stopped_by_the_time_limit_back_into_the_queue(slurm):
    """The launchers' exit code is 1 although all went well: the file counts."""
    done, _ = slurm.run("--out-dir", str(slurm.out), during=LEAVES.format(out=slurm.out))
    assert (done.returncode, slurm.requeued) == (0, ["requeue 4711"])
    assert "back into the queue" in done.stdout


@pytest.mark.parametrize("before", [True, False])
def test_slurm_does_not_repeat_what_fails(slurm, before):
    """Not even where an earlier turn has left the file: such a job would go round for ever."""
    if before:
        (slurm.out / "PREEMPTED").write_text("SIGTERM after step 12\n")
    done, _ = slurm.run("--out-dir", str(slurm.out), EXIT_CODE="7")
    assert (done.returncode, slurm.requeued) == (7, [])


def test_slurm_ends_what_a_person_has_stopped(slurm):
    during = f"echo 'SIGINT after step 12' > {slurm.out}/PREEMPTED"
    done, _ = slurm.run("--out-dir", str(slurm.out), during=during)
    assert (done.returncode, slurm.requeued) == (1, [])


def test_slurm_ends_what_scancel_ends(slurm):
    """scancel's signal reaches the batch script too, unlike that of the time limit."""
    during = LEAVES.format(out=slurm.out) + "; kill -TERM $(grep PPid /proc/$PPID/status | tr -dc 0-9)"
    done, _ = slurm.run("--out-dir", str(slurm.out), during=during)
    assert (done.returncode, slurm.requeued) == (1, [])


def test_slurm_gives_each_seed_of_an_array_its_folder(slurm):
    from alexnet_dist.config import parse

    (slurm.out / "seed_3").mkdir()
    during = LEAVES.format(out=slurm.out / "seed_3")
    done, captured = slurm.run(f"--out-dir={slurm.out}", "--seed", "9", during=during, SLURM_ARRAY_TASK_ID="3")
    assert (done.returncode, slurm.requeued) == (0, ["requeue 4711"])
    config = parse(captured[captured.index(str(ROOT / "launch/multinode.sh")) + 1 :])
    assert (config.seed, config.out_dir) == (3, slurm.out / "seed_3")


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ([], {}, "give --out-dir, a folder that all machines share"),
        (["--out-dir", "a"], {"SLURM_JOB_ID": ""}, "this script is for SLURM: sbatch launch/slurm.sbatch"),
        (["--out-dir", "a"], {"SLURM_SUBMIT_DIR": "/"}, "is not the repository: call sbatch from there"),
        (["--out-dir", "a"], {"MACHINES": ""}, "scontrol does not tell the machines of 'n[3-4]'"),
    ],
)
def test_slurm_refuses(slurm, arguments, variables, words):
    done, captured = slurm.run(*arguments, **variables)
    assert (done.returncode, captured) == (2, None)
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


# ---- kubernetes.yaml ------------------------------------------------------------------------------------------------


# Of the training operator's published schema (kubeflow.org/v1, release 1.9): what each object has to have.
REQUIRED = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "metadata": {"name"},
    "spec": {"pytorchReplicaSpecs"},
    "spec.pytorchReplicaSpecs.Worker.template.spec": {"containers"},
    "spec.pytorchReplicaSpecs.Worker.template.spec.containers.*": {"name"},
    "spec.pytorchReplicaSpecs.Worker.template.spec.containers.*.env.*": {"name"},
    "spec.pytorchReplicaSpecs.Worker.template.spec.containers.*.env.*.valueFrom.secretKeyRef": {"key"},
    "spec.pytorchReplicaSpecs.Worker.template.spec.containers.*.volumeMounts.*": {"mountPath", "name"},
    "spec.pytorchReplicaSpecs.Worker.template.spec.volumes.*": {"name"},
    "spec.pytorchReplicaSpecs.Worker.template.spec.volumes.*.persistentVolumeClaim": {"claimName"},
}


def within(value, path):
    """Return what lies at a path; `*` stands for each item of a list, and what is absent is left out."""
    found = [value]
    for name in filter(None, path.split(".")):
        found = [item for one in found for item in (one if name == "*" else [one[name]] if name in one else [])]
    return found


@pytest.fixture(scope="module")
def kubernetes():
    return {one["kind"]: one for one in yaml.safe_load_all((ROOT / "launch/kubernetes.yaml").read_text())}


def test_kubernetes_has_the_schemas_required_fields(kubernetes):
    for path, names in REQUIRED.items():
        found = within(kubernetes["PyTorchJob"], path)
        assert found, path
        assert all(names <= one.keys() for one in found), path


def test_kubernetes_brings_pods_back_and_keeps_their_checkpoints(kubernetes):
    job, claim = kubernetes["PyTorchJob"], kubernetes["PersistentVolumeClaim"]
    assert (job["apiVersion"], claim["spec"]["accessModes"]) == ("kubeflow.org/v1", ["ReadWriteMany"])
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] == "OnFailure"
    pod = worker["template"]["spec"]
    container = pod["containers"][0]
    assert container["name"] == "pytorch"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    variables = {one["name"]: one for one in container["env"]}
    assert variables["WANDB_API_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "wandb"
    assert pod["terminationGracePeriodSeconds"] > int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]["value"])


def test_kubernetes_calls_multinode_as_it_wants_to_be_called(kubernetes, stage):
    from alexnet_dist.config import parse

    spec = kubernetes["PyTorchJob"]["spec"]
    container = spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    stage.add_gpus(container["resources"]["limits"]["nvidia.com/gpu"])
    stage.add("python", ADDRESS)
    given = {"PATH": str(stage.bin), "CAPTURE": str(stage.folder / "captured")}
    given |= {"PET_NNODES": "2:4", "PET_RDZV_ENDPOINT": "alexnet-worker-0:23456"}
    command = [BASH, *container["command"][1:], *container["args"]]
    subprocess.run(command, env=given, cwd=ROOT, check=True, timeout=deadline(30))
    read = as_accelerate_reads((stage.folder / "captured").read_text().splitlines())
    config = parse(read.training_script_args)
    fewest, most = spec["elasticPolicy"]["minReplicas"], spec["elasticPolicy"]["maxReplicas"]
    assert all(config.data.batch_size % (size * read.num_processes) == 0 for size in range(fewest, most + 1))
    mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    assert any(config.out_dir.is_relative_to(mount) for mount in mounts), "checkpoints outlive pods"
