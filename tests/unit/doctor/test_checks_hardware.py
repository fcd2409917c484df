"""Devices, processes and Accelerate's configuration file: the level, and the way out."""

import dataclasses
import os
import re

import pytest
import torch
from places import ROOT
from preflight import CORES, NO_GPU, TWO_GPUS, assert_says

from alexnet_dist.config import Config, parse
from alexnet_dist.doctor import checks_hardware

# ---- devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "environment", "use_cpu", "processes", "level", "fragment"),
    [
        (TWO_GPUS, {}, False, 2, "ok", "2 x H100; driver 580.65.06, CUDA 13.0, NCCL 2.30.7"),
        (TWO_GPUS, {}, True, 8, "ok", "not used: --runtime.cpu"),
        (TWO_GPUS, {}, False, 4, "error", "4 processes on this node and 2 GPUs: start 2"),
        (NO_GPU, {}, False, 1, "ok", "none: the CPU trains"),
        (NO_GPU, {"CUDA_VISIBLE_DEVICES": ""}, False, 1, "warning", "Unset it"),
        (dataclasses.replace(NO_GPU, driver="470.1", trouble="too old"), {}, False, 1, "error", "update the driver"),
        (dataclasses.replace(NO_GPU, driver="580.1", cuda=None), {}, False, 1, "error", "built without CUDA: update"),
    ],
)
def test_gpus(*, gpus, environment, use_cpu, processes, level, fragment):
    assert_says(checks_hardware.gpus(gpus, environment, use_cpu=use_cpu, processes=processes), level, fragment)


def test_gpus_are_looked_for_without_a_warning_of_torchs(recwarn):
    assert checks_hardware.find_gpus().names == ()
    assert len(recwarn) == 0


def test_precision(monkeypatch):
    assert_says(checks_hardware.precision(parse(["--runtime.precision", "bf16"]).runtime, use_cpu=True), "ok", "bf16")
    fp16 = parse(["--runtime.precision", "fp16"]).runtime
    assert_says(checks_hardware.precision(fp16, use_cpu=True), "error", "needs a GPU: choose --runtime.precision bf16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert_says(checks_hardware.precision(Config().runtime, use_cpu=False), "warning", "no bf16", "lower --optim.lr")


@pytest.mark.parametrize(
    ("environment", "quota", "processes", "level", "fragment"),
    [
        ({}, None, 1, "ok", f"{CORES} for each of 1 process"),
        ({"OMP_NUM_THREADS": "1"}, None, 1, "ok", f"{CORES} for each of 1 process"),
        ({"OMP_NUM_THREADS": "many"}, None, 1, "warning", "OMP_NUM_THREADS=many is no number and is ignored: unset"),
        ({"OMP_NUM_THREADS": "999"}, None, 1, "warning", "Unset OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "999"}, 0.5, 1, "warning", "Set OMP_NUM_THREADS=2"),
        ({}, 0.5, 1, "warning" if CORES > 1 else "ok", "taskset -c 0-0" if CORES > 1 else "1 core"),
        ({}, None, 999, "warning", "Start fewer processes"),
    ],
)
def test_threads(environment, quota, processes, level, fragment):
    environment = {"LOCAL_WORLD_SIZE": str(processes), **environment}
    assert_says(checks_hardware.threads(environment, use_cpu=True, quota=quota, processes=processes), level, fragment)


def test_threads_of_processes_on_gpus_are_no_matter():
    environment = {"OMP_NUM_THREADS": "999"}
    assert_says(checks_hardware.threads(environment, use_cpu=False, quota=None, processes=8), "ok", "on GPUs")


def test_a_containers_share_of_the_cores(tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert checks_hardware.cpu_quota(tmp_path / "cpu.max") == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert checks_hardware.cpu_quota(tmp_path / "cpu.max") is None
    assert checks_hardware.cpu_quota(tmp_path / "none") is None


def test_shared_memory_matters_between_the_gpus_of_a_node(small_disk):
    assert_says(checks_hardware.shared_memory(small_disk, gpu_processes=2), "warning", "has 1 MB", "--shm-size=1g")
    assert checks_hardware.shared_memory(small_disk, gpu_processes=1) is None


# ---- processes ------------------------------------------------------------------------------------------------------


LAUNCHED = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "flags", "asked", "nodes", "level", "fragment"),
    [
        ({}, [], None, 1, "ok", "1 process on 1 node, 256 images"),
        ({}, ["--runtime.cpu"], 4, 2, "ok", "4 processes on 2 nodes, 64 images"),
        ({**LAUNCHED, "WORLD_SIZE": "2"}, ["--runtime.cpu"], 2, 1, "ok", "2 processes on 1 node"),
        ({"WORLD_SIZE": "2"}, ["--runtime.cpu"], None, 1, "error", "left over from another launch: unset it"),
        ({**LAUNCHED, "WORLD_SIZE": "4"}, ["--runtime.cpu"], 2, 1, "error", "2 processes were asked for"),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, [], 2, 1, "error", "started 1: `accelerate launch --cpu`"),
        ({}, [], 2, 1, "error", "there is no GPU"),
        ({}, ["--runtime.cpu"], 3, 2, "error", "--num-processes counts those of all"),
        ({}, ["--runtime.cpu"], 7, 1, "error", "252 or 259"),
        ({"TORCHELASTIC_MAX_RESTARTS": "3"}, [], None, 1, "error", "needs --out-dir"),
    ],
)
def test_world_formed_against_world_asked_for(*, monkeypatch, environment, flags, asked, nodes, level, fragment):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_says(checks_hardware.world(environment, parse(flags), asked=asked, nodes=nodes), level, fragment)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "per_node", "least", "most", "stuck"),
    [
        (64, 1, 2, 1, 4, "3"),
        (64, 1, 2, 4, 4, None),
        (96, 1, 2, 1, 4, None),
        (256, 1, 8, 2, 4, "3"),
        (256, 1, 8, 1, 8, "3 or 5 or 6 or 7"),
        (252, 3, 8, 2, 4, "2 or 3"),  # nor do 4, which is an error of another check
        (256, 1, 8, 1, 2, None),
        (256, 1, 8, 2, 2, None),
    ],
)
def test_a_batch_that_fewer_nodes_could_not_share(*, batch_size, accumulate, per_node, least, most, stuck):
    config = parse(["--data.batch-size", str(batch_size), "--optim.accumulate", str(accumulate)])
    found = checks_hardware.fewer_nodes(config, processes=per_node * most, least=least, most=most)
    if stuck is None:
        assert found is None
    else:
        assert_says(found, "warning", f"with {stuck} of {most} nodes", f"--data.batch-size {batch_size}")


def test_slurm():
    job = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    step = {**job, "SLURM_STEP_NUM_NODES": "2"}
    assert checks_hardware.slurm({}, nodes=1) is None
    assert_says(
        checks_hardware.slurm({**step, "SLURM_STEP_NUM_TASKS": "2"}, nodes=2), "ok", "2 nodes, one launcher each"
    )
    assert_says(checks_hardware.slurm({**step, "SLURM_STEP_NUM_TASKS": "16"}, nodes=2), "error", "--ntasks-per-node=1")
    assert_says(checks_hardware.slurm(job, nodes=1), "error", "has 2 nodes and the launch 1", "--nnodes $SLURM_NNODES")


QUOTED = 'distributed_type: "MULTI_GPU"\nmixed_precision: "no"\n'


@pytest.mark.parametrize(
    ("content", "flags", "asked", "gpus", "fault"),
    [
        (QUOTED + "num_processes: 2", [], None, 2, None),
        (QUOTED, [], 2, 2, None),
        ('distributed_type: "NO"', [], None, 0, None),
        (QUOTED + "num_processes: 2", ["--runtime.cpu"], None, 0, None),
        (QUOTED, [], 1, 0, None),
        (QUOTED, [], None, 2, "num_processes is missing"),  # G1
        (QUOTED + "num_processes: 2", [], None, 0, "MULTI_GPU on a machine without GPUs"),  # G2
        ('distributed_type: "MULTI_CPU"\nnum_processes: 2', ["--runtime.cpu"], None, 0, "MULTI_CPU starts one"),  # G3
        ('distributed_type: "NO"\nnum_processes: 2', [], None, 0, "NO starts one process and not 2"),
        ("distributed_type: NO", [], None, 0, 'write distributed_type: "no"'),  # G4
        ('distributed_type: "NO"\nmixed_precision: no', [], None, 0, 'write mixed_precision: "no"'),
        ("mixed_precision: fp16", [], None, 0, "distributed_type is missing"),
        ("- a list", [], None, 0, "accelerate config"),
        ("a: b: c", [], None, 0, "cannot be read"),
        (None, [], None, 0, "cannot be read"),
    ],
)
def test_accelerates_configuration(*, tmp_path, content, flags, asked, gpus, fault):
    path, default = tmp_path / "accelerate.yaml", tmp_path / "default_config.yaml"
    if content is not None:
        path.write_text(content)
    result = checks_hardware.accelerate_file(path, default, config=parse(flags), asked=asked, gpus=gpus)
    if fault is None:
        assert_says(result, "ok", "accelerate.yaml")
    else:
        assert_says(result, "error", "accelerate.yaml: ", fault)


def test_the_shipped_configuration_is_fine():
    path = ROOT / "accelerate_config.yaml"
    assert_says(checks_hardware.accelerate_file(path, path, config=Config(), asked=None, gpus=2), "ok", path.name)


def test_the_hidden_configuration_is_named():
    """G6."""
    from accelerate.commands.config.config_args import default_yaml_config_file as accelerates

    hidden = checks_hardware.accelerate_default(os.environ)
    there = re.sub("^.*/huggingface/", "huggingface/", accelerates)
    assert str(hidden).endswith(there)
    result = checks_hardware.accelerate_file(None, hidden, config=Config(), asked=None, gpus=0)
    assert_says(result, "ok", "no configuration file")
    hidden.parent.mkdir(parents=True)
    hidden.write_text(QUOTED)
    result = checks_hardware.accelerate_file(None, hidden, config=Config(), asked=None, gpus=0)
    assert_says(result, "warning", str(hidden), "--config_file names another", "num_processes is missing")
