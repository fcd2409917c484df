"""The preflight on set-ups that are well and on set-ups that are really broken: the level, and the way out."""

import contextlib
import dataclasses
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torchvision
from ranks import free_port
from torch.distributed import TCPStore  # noqa: TID251 - stands in for a launcher's

from alexnet_dist.config import Config, parse
from alexnet_dist.data import image_data, sources
from alexnet_dist.distributed import hardware
from alexnet_dist.doctor import checks_hardware, checks_network, checks_storage, cli, compare_nodes
from alexnet_dist.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
CORES = hardware.cpu_cores()
NO_GPU = checks_hardware.Gpus(names=(), driver=None, cuda="13.0", nccl="2.30.7", trouble="")
TWO_GPUS = dataclasses.replace(NO_GPU, names=("H100", "H100"), driver="580.65.06")
WELL = "--data.dataset digits --runtime.cpu --wandb.mode disabled".split()


def assert_says(finding, level, *fragments):
    assert finding is not None
    assert finding.level == level, finding
    for fragment in fragments:
        assert fragment in finding.message, finding
    assert "\n" not in str(finding)


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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def taken():
    """A port of all interfaces on which somebody listens and never answers."""
    with socket.create_server(("", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web():
    """The address of a server that answers 404 to everything."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


# ---- a machine that is well -----------------------------------------------------------------------------------------


def test_a_healthy_machine_and_nothing_left_behind(capsys, tmp_path):
    lines = found(capsys, "--out-dir", "runs/new", code=0)
    assert set(levels(lines).values()) == {"ok"}
    assert {"GPUs", "precision", "threads", "world", "accelerate", "disk", "data", "W&B"} <= levels(lines).keys()
    assert list(tmp_path.iterdir()) == []


def test_quiet_prints_what_is_wrong_alone_and_to_stderr(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert cli.main([*WELL, "--quiet", "--out-dir", "taken"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error +run folder +taken cannot be written \(.*taken is no folder\).*--out-dir\n", err)
    for arguments in (["--quiet"], ["--quiet", "--out-dir", "taken", "--help"]):
        assert cli.main([*WELL, *arguments]) == 0
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("variable", "value"), [("ALEXNET_DIST_SKIP_DOCTOR", "1"), ("LOCAL_RANK", "1")])
def test_nothing_is_asked_where_it_is_not_wished_or_another_process_of_the_node_asks(
    capsys, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    assert cli.main(["--nnodes", "nonsense"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nnodes", "two"], "--nnodes two must be a number of nodes, or MIN:MAX"),
        (["--nnodes", "3:2"], "--nnodes 3:2 must be a number of nodes, or MIN:MAX"),
        (["--nnodes", "2", "--node-rank", "0"], "--nnodes 2 needs --rdzv HOST:PORT"),
        (["--nnodes", "2", "--node-rank", "0", "--rdzv", "head"], "--nnodes 2 needs --rdzv HOST:PORT"),
        (["--nnodes", "2", "--rdzv", "head:1", "--node-rank", "2"], "--node-rank 2 must be from 0 to 1"),
        (["--data.batchsize", "2"], "did you mean --data.batch-size?"),
    ],
)
def test_a_mistyped_command_line_is_one_line(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        cli.main(arguments)
    assert "\n" not in str(caught.value)


def test_options_of_the_run_are_taken_as_train_py_takes_them(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {batch_size: 30}\n")
    lines = found(capsys, "--config", "recipe.yaml", "--num_processes", "4", code=2)
    (message,) = [message for level, _, message in lines if level == "error"]
    assert "--data.batch-size 30" in message
    assert "28 or 32" in message


def test_a_question_that_cannot_be_asked_is_a_line_like_others(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NNODES", "many")
    (message,) = [message for level, _, message in found(capsys, code=0) if level == "warning"]
    assert message.startswith("a question could not be asked: ")


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


def test_a_batch_that_fewer_nodes_could_not_share():
    config = parse(["--data.batch-size", "64"])
    stuck = checks_hardware.fewer_nodes(config, processes=8, least=1, most=4)
    assert_says(stuck, "warning", "with 3 of 4 nodes", "--data.batch-size 64")
    assert checks_hardware.fewer_nodes(config, processes=8, least=4, most=4) is None
    assert checks_hardware.fewer_nodes(parse(["--data.batch-size", "96"]), processes=8, least=1, most=4) is None


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
    finding = checks_hardware.accelerate_file(path, default, config=parse(flags), asked=asked, gpus=gpus)
    if fault is None:
        assert_says(finding, "ok", "accelerate.yaml")
    else:
        assert_says(finding, "error", "accelerate.yaml: ", fault)


def test_the_shipped_configuration_is_fine():
    path = ROOT / "accelerate_config.yaml"
    assert_says(checks_hardware.accelerate_file(path, path, config=Config(), asked=None, gpus=2), "ok", path.name)


def test_the_hidden_configuration_is_named():
    """G6."""
    from accelerate.commands.config.config_args import default_yaml_config_file as accelerates

    hidden = checks_hardware.accelerate_default(os.environ)
    there = re.sub("^.*/huggingface/", "huggingface/", accelerates)
    assert str(hidden).endswith(there)
    finding = checks_hardware.accelerate_file(None, hidden, config=Config(), asked=None, gpus=0)
    assert_says(finding, "ok", "no configuration file")
    hidden.parent.mkdir(parents=True)
    hidden.write_text(QUOTED)
    finding = checks_hardware.accelerate_file(None, hidden, config=Config(), asked=None, gpus=0)
    assert_says(finding, "warning", str(hidden), "--config_file names another", "num_processes is missing")


# ---- the address ----------------------------------------------------------------------------------------------------


def nodes_at(host="127.0.0.1", port=1, *, rank=0, most=2, **changes):
    return checks_network.Nodes(most, most, rank, host, port, **changes)


def test_address(taken):
    port = free_port()
    with_name = checks_network.address(nodes_at("nowhere.invalid"))
    assert_says(with_name, "error", "nowhere.invalid has no address here: correct --rdzv")
    assert_says(checks_network.address(nodes_at("192.0.2.1")), "error", "no address of this machine")
    assert_says(checks_network.address(nodes_at("192.0.2.1", rank=1)), "ok", "192.0.2.1")
    assert_says(checks_network.address(nodes_at(port=taken)), "error", f"port {taken} is taken", "choose another port")
    assert_says(checks_network.address(nodes_at(port=port)), "warning", "each machine's own address")
    assert_says(checks_network.address(nodes_at(port=taken, launched=True)), "ok", "formed by the launcher")


def test_a_name_server_that_is_silent_is_left(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    began = time.monotonic()
    assert checks_network.addresses("head", seconds=0.2) == []
    assert time.monotonic() - began < 5


def test_the_port_of_a_single_node(monkeypatch, taken):
    assert checks_network.launcher_port({}, processes=1) is None
    assert checks_network.launcher_port({"WORLD_SIZE": "2"}, processes=2) is None
    monkeypatch.setattr(checks_network, "ACCELERATE_PORT", free_port())
    assert_says(checks_network.launcher_port({}, processes=2), "ok", "is free")
    monkeypatch.setattr(checks_network, "ACCELERATE_PORT", taken)
    assert_says(checks_network.launcher_port({}, processes=2), "warning", f"{taken} is taken", "--main_process_port 0")


def test_interface(monkeypatch):
    afar = nodes_at("192.0.2.1", rank=1)
    assert checks_network.interface({}, nodes_at()) is None
    monkeypatch.setattr(checks_network, "interface_towards", lambda host: f"eth3@{host}")
    assert_says(checks_network.interface({}, afar), "ok", "eth3@", f"towards {afar.host}")
    monkeypatch.setattr(checks_network, "interface_towards", lambda _: None)
    assert_says(checks_network.interface({}, afar), "error", "nothing leads to", "GLOO_SOCKET_IFNAME")
    assert_says(checks_network.interface({"GLOO_SOCKET_IFNAME": "lo"}, afar), "ok", "lo, by GLOO_SOCKET_IFNAME")
    assert_says(checks_network.interface({"GLOO_SOCKET_IFNAME": "eth77"}, afar), "error", "no eth77 here")


def test_a_host_that_lets_nobody_in():
    """Its queue is full, so that further connections are neither accepted nor refused."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(server.getsockname())
        time.sleep(0.1)
        began = time.monotonic()
        with pytest.raises(UserError, match=r"cannot be reached \(timed out\): start node 0, and let its port through"):
            checks_network.connect("127.0.0.1", server.getsockname()[1], until=began + 0.5)
        assert time.monotonic() - began < 5


# ---- folder, room, images, W&B --------------------------------------------------------------------------------------


def test_a_run_folder_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/run"):
        assert_says(checks_storage.run_folder(parse(["--out-dir", folder])), "error", "is no folder", "--out-dir")


def test_a_run_folder_on_a_full_disk(small_disk):
    with contextlib.suppress(OSError), (small_disk / "big").open("wb", buffering=0) as file:
        file.write(bytes(2 << 20))
        file.write(bytes(2 << 20))
    assert_says(
        checks_storage.run_folder(parse(["--out-dir", str(small_disk / "run")])), "error", "No space left", "--out-dir"
    )


def test_a_run_folder_that_holds_another_run(tmp_path):
    assert_says(checks_storage.run_folder(parse(["--resume", "must"])), "error", "no --out-dir is given")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert_says(
        checks_storage.run_folder(parse(["--out-dir", "."])), "error", "seed: 1 -> 0", "choose another --out-dir"
    )
    assert_says(checks_storage.run_folder(parse(["--out-dir", ".", "--seed", "1"])), "ok", "continues the run there")


def test_no_room_for_a_checkpoint(small_disk):
    assert_says(checks_storage.disk(parse(["--out-dir", str(small_disk / "run")])), "error", "685 MB and would not fit")


@pytest.mark.parametrize(
    ("free", "held", "keep", "level"), [(3.0e9, 0, 2, "ok"), (2.0e9, 0, 2, "warning"), (2.0e9, 1e9, 2, "ok")]
)
def test_room_for_some_checkpoints(*, monkeypatch, tmp_path, free, held, keep, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9e9, 0, free))
    kept = tmp_path / "checkpoints/step_00000001"
    kept.mkdir(parents=True)
    with (kept / "model.safetensors").open("wb") as file:
        file.truncate(int(held))
    finding = checks_storage.disk(parse(["--out-dir", ".", "--checkpoint.keep", str(keep)]))
    assert_says(finding, level, "up to 4", *(["--checkpoint.keep"] if level == "warning" else []))


@pytest.mark.parametrize("flags", [[], ["--optim.name", "sgd"], ["--optim.name", "lars"], ["--optim.ema", "0.9"]])
def test_the_size_of_a_checkpoint_is_that_of_its_tensors(flags):
    config = parse(flags)
    with torch.device("meta"):
        network = torchvision.models.alexnet(num_classes=10)
    copies = {"adamw": 2, "sgd": 1, "lars": 1}[config.optim.name] + 1 + bool(config.optim.ema)
    assert checks_storage.checkpoint_bytes(config) == 4 * copies * sum(p.numel() for p in network.parameters())


def test_images_that_are_not_there(tmp_path, image_folder):
    (tmp_path / "empty").mkdir()
    for name, fragment in [
        ("./gone", "no such folder"),
        ("empty", "neither parquet"),
        ("cifar", "no data set of that"),
    ]:
        assert_says(checks_storage.data_set(parse(["--data.dataset", name]).data, {}), "error", fragment)
    folder = str(image_folder())
    assert_says(checks_storage.data_set(parse(["--data.dataset", folder]).data, {}), "ok", "found")
    (tmp_path / "file").write_text("")
    blocked = parse(["--data.dataset", folder, "--data.cache-dir", "file"]).data
    assert_says(checks_storage.data_set(blocked, {}), "error", "give --data.cache-dir")


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(checks_storage.importlib.util, "find_spec", lambda _: None)
    assert_says(checks_storage.data_set(parse(["--data.dataset", "digits"]).data, {}), "error", "alexnet_dist[demo]")
    assert_says(checks_storage.data_set(parse(["--data.dataset", "synthetic"]).data, {}), "ok")


def test_a_hub_that_cannot_be_reached(web, taken):
    cifar, offline = parse([]).data, {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": web}
    assert_says(checks_storage.data_set(cifar, offline), "error", "HF_HUB_OFFLINE is set", "--data.dataset FOLDER")
    silent = {"HF_ENDPOINT": f"http://key:secret@127.0.0.1:{taken}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sources.answers.__kwdefaults__, "seconds", 0.2)
        finding = checks_storage.data_set(cifar, silent)
    assert_says(finding, "error", "127.0.0.1 does not answer", "--data.fallback digits")
    assert "secret" not in finding.message
    instead = parse(["--data.fallback", "digits"]).data
    assert_says(checks_storage.data_set(instead, offline), "warning", "TRAINS ON digits INSTEAD")
    assert_says(checks_storage.data_set(cifar, {"HF_ENDPOINT": web}), "ok", "the Hub answers")


@pytest.mark.parametrize("revision", [None, "abc"])
def test_images_that_were_decoded_before_are_found_where_the_run_finds_them(monkeypatch, revision):
    digits = sources.load(parse(["--data.dataset", "digits"]).data)
    monkeypatch.setattr(sources, "_read_hub", lambda *_: (digits.train, digits.test, digits.class_names))
    config = parse(["--data.revision", revision] if revision else []).data
    assert_says(checks_storage.data_set(config, os.environ), "error", "not here")
    assert isinstance(sources.load(config), image_data.ImageData)
    assert_says(checks_storage.data_set(config, os.environ), "ok", "decoded already")
    other = dataclasses.replace(config, revision="another")
    assert_says(checks_storage.data_set(other, os.environ), "error", "not here")


def test_images_in_the_hubs_own_cache(tmp_path):
    (tmp_path / "hub/datasets/uoft-cs___cifar10").mkdir(parents=True)
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    assert_says(checks_storage.data_set(Config().data, environment), "ok", "downloaded already")


def test_wandb(monkeypatch, web):
    monkeypatch.delenv("WANDB_MODE")
    assert_says(checks_storage.wandb(Config(), {}, records=True), "warning", "no login: run `wandb login`")
    online = parse(["--wandb.mode", "online"])
    assert_says(checks_storage.wandb(online, {}, records=True), "error", "needs a login")
    assert_says(checks_storage.wandb(parse(["--wandb.mode", "offline"]), {}, records=True), "ok", "offline (asked for)")
    assert_says(checks_storage.wandb(parse(["--log.trackers"]), {}, records=True), "ok", "not used")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789secret")
    finding = checks_storage.wandb(Config(), {"WANDB_BASE_URL": web}, records=True)
    assert_says(finding, "ok", "online (WANDB_API_KEY)")
    assert "secret" not in finding.message
    refused = {"WANDB_BASE_URL": f"http://user:secret@127.0.0.1:{free_port()}"}
    finding = checks_storage.wandb(Config(), refused, records=True)
    assert_says(finding, "warning", "127.0.0.1 does not answer", "wandb sync")
    assert "secret" not in finding.message
    assert_says(checks_storage.wandb(Config(), refused, records=False), "ok")


# ---- several nodes --------------------------------------------------------------------------------------------------

VERSIONS = {"alexnet_dist": "0.1.0", "sources": "a", "commit": "c0", "torch": "2.14.1", "python": "3.11.7"}


def report(rank, **changes):
    fields = {"host": f"host{rank}", "versions": VERSIONS, "command": {"seed": 0, "optim": {"lr": 0.1}}, **changes}
    return compare_nodes.Report(rank=rank, **fields)


@pytest.mark.parametrize(
    ("changes", "what", "level", "fragments"),
    [
        ({}, None, "ok", []),
        ({"versions": {**VERSIONS, "commit": "c1"}}, None, "ok", []),
        (
            {"versions": {**VERSIONS, "torch": "2.10.0"}},
            "versions",
            "error",
            ["torch 2.14.1 on node 0", "2.10.0 on node 1"],
        ),
        (
            {"versions": {**VERSIONS, "sources": "b", "commit": "c1"}},
            "versions",
            "error",
            ["commit c0 on node 0", "c1 on node 1"],
        ),
        ({"versions": {**VERSIONS, "python": "3.12.0"}}, "versions", "warning", ["install the same on all nodes"]),
        (
            {"command": {"seed": 0, "optim": {"lr": 0.2}}},
            "options",
            "error",
            ["optim.lr is 0.1 on", "0.2 on node 1"],
        ),
        ({"sees_token": False}, "shared", "error", ["node 1 (host1) does not see", "--out-dir that all nodes mount"]),
        ({"unreachable": "head:4711, timed out"}, "ports", "error", ["cannot reach head:4711", "open them all"]),
        ({"unnamed": "head:4711, unknown"}, "ports", "warning", ["by its name", "/etc/hosts"]),
        ({"clock": 3.0}, "clocks", "warning", ["node 1 (host1) is 3.0 s ahead of node 0 (host0)", "chrony"]),
        ({"clock": -60.0}, "clocks", "error", ["node 0 (host0) is 60.0 s ahead of node 1", "bears 15 s"]),
    ],
)
def test_nodes_are_compared(changes, what, level, fragments):
    findings = compare_nodes.compare([report(0), report(1, **changes), report(2)])
    assert [finding.what for finding in findings] == ["versions", "options", "shared", "ports", "clocks"]
    for finding in findings:
        assert_says(finding, level if finding.what == what else "ok", *(fragments if finding.what == what else []))


def test_a_node_alone_has_nothing_to_compare():
    assert compare_nodes.compare([report(0)]) == []


def meet(*attending, wait=10.0, least=2, most=2, port=None, launched=False, numbered=True):
    """Let node 0 and these, each on a thread, meet; return what each is told, or the error that it meets with."""
    port, results = port or free_port(), {}

    def attend(index, mine):
        nodes = checks_network.Nodes(least, most, mine.rank if numbered else None, "127.0.0.1", port, launched)
        try:
            results[index] = compare_nodes.attend(nodes, mine, folder=Path(), wait=wait)
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=attend, args=(i, mine)) for i, mine in enumerate(attending, start=1)]
    for thread in threads:
        thread.start()
    with compare_nodes.token_in(Path()) as token:
        nodes = checks_network.Nodes(least, most, 0, "127.0.0.1", port, launched)
        results[0] = compare_nodes.hold(nodes, report(0, errors=["data: gone"]), token=token, wait=wait)
    for thread in threads:
        thread.join()
    return results


def only(findings, what):
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def test_nodes_meet_and_all_hear_of_each_others_faults(tmp_path):
    told = meet(report(1, errors=["W&B: no login"]))
    assert_says(only(told[0], "nodes"), "ok", "all 2 are there")
    assert_says(only(told[1], "shared"), "ok")
    assert_says(only(told[0], "other node"), "error", "node 1 (host1): W&B: no login")
    assert_says(only(told[1], "other node"), "error", "node 0 (host0): data: gone")
    assert list(tmp_path.iterdir()) == []


def test_nodes_without_a_number_get_one_as_they_come():
    """As on hosts that are all given the same command."""
    told = meet(report(0, host="a"), report(0, host="b", errors=["disk: full"]), least=3, most=3, numbered=False)
    assert_says(only(told[0], "nodes"), "ok", "all 3 are there")
    assert re.search(r"^node [12] \(b\): disk: full$", only(told[0], "other node").message)
    assert [finding.what for finding in told[1]].count("other node") == 2, "node 0's fault and b's"


def test_a_node_too_many():
    told = meet(report(0), report(0, host="b"), numbered=False)
    assert sum("more nodes came to" in str(told[index]) for index in (1, 2)) == 1


def test_the_node_that_the_others_go_to_is_number_0():
    options = cli._options().parse_args(["--nnodes", "2", "--rdzv", "127.0.0.1:29500"])
    assert cli._nodes(options, {}).rank == 0
    options.rdzv = "192.0.2.1:29500"  # an address of nobody (RFC 5737)
    assert cli._nodes(options, {}).rank is None


def test_nodes_meet_in_the_store_of_their_launcher():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = meet(report(1), port=store.port, launched=True)
    assert_says(only(told[1], "nodes"), "ok", "all 2 are there")
    assert not checks_network.port_is_free(store.port)


def test_a_launcher_says_who_is_to_meet():
    options = cli._options().parse_args([])
    launched = {"GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "7"}
    assert cli._nodes(options, launched) == nodes_at("head", 7, rank=1, launched=True)
    assert cli._nodes(options, {"GROUP_WORLD_SIZE": "1"}) is None


def test_clocks_that_are_apart(monkeypatch):
    """Node 0 meets on the main thread."""

    class Clock:
        sleep, monotonic = time.sleep, time.monotonic

        @staticmethod
        def time():
            return time.time() + 42 * (threading.current_thread() is not threading.main_thread())

    monkeypatch.setattr(compare_nodes, "time", Clock)
    assert_says(only(meet(report(1))[0], "clocks"), "error", "node 1 (host1) is 42.0 s ahead", "synchronise")


def test_a_node_that_does_not_come():
    assert_says(only(meet(wait=0.3)[0], "nodes"), "error", "1 of 2 came within 0 s; missing: node 1")


def test_enough_nodes_to_begin(monkeypatch):
    monkeypatch.setattr(compare_nodes, "STORE_SECONDS", 1.0)
    began = time.monotonic()
    told = meet(report(1), least=2, most=3, wait=60)
    assert_says(only(told[1], "nodes"), "warning", "2 of 3 are there, enough to begin; missing: 2")
    assert time.monotonic() - began < 20


def test_two_nodes_of_one_rank():
    told = meet(report(1), report(1), least=3, most=3, wait=3.0)  # node 0 waits for a third: both of them have come
    assert_says(only(told[0], "nodes"), "error", "several nodes came as --node-rank 1")
    assert any("another node came" in str(told[index]) for index in (1, 2))


def test_a_host_that_accepts_and_is_silent(monkeypatch, taken):
    for module in (compare_nodes, checks_network):
        monkeypatch.setattr(module, "STORE_SECONDS", 0.3)
    with pytest.raises(UserError, match="does not answer as a rendezvous: free that port, or choose another"):
        compare_nodes.attend(nodes_at(port=taken, rank=1), report(1), folder=Path(), wait=1.0)


def test_a_launch_that_is_under_way(monkeypatch):
    monkeypatch.setattr(compare_nodes, "STORE_SECONDS", 0.3)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (finding,) = compare_nodes.attend(nodes_at(port=store.port, rank=1), report(1), folder=Path(), wait=1.0)
    assert_says(finding, "warning", "a launch is under way", "choose another port")


def test_a_node_leaves_when_the_port_is_free_again(monkeypatch):
    """Or its launcher would find the doctor's store in place of node 0's launcher."""
    port, free = free_port(), []
    attend = compare_nodes.attend

    def attend_and_look(*arguments, **keywords):
        told = attend(*arguments, **keywords)
        free.append(checks_network.port_is_free(port))
        return told

    monkeypatch.setattr(compare_nodes, "attend", attend_and_look)
    meet(report(1), port=port)
    assert free == [True]


# ---- processes of their own -----------------------------------------------------------------------------------------


def start(*arguments, cwd, program=("-m", "alexnet_dist.doctor")):
    return subprocess.Popen(
        [sys.executable, *program, *WELL, "--wait", "30", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def of_two(rank, port):
    return ["--nnodes", "2", "--node-rank", str(rank), "--rdzv", f"127.0.0.1:{port}", "--out-dir", "run"]


def test_two_processes_meet(tmp_path):
    port = free_port()
    doctors = [start(*of_two(rank, port), cwd=tmp_path) for rank in (1, 0)]
    for process in doctors:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        lines = out.splitlines()
        assert lines[-1] == "0 errors, 1 warning", "of the loopback address"
        assert [line.split()[1] for line in lines[-7:-1]] == [
            "nodes",
            "versions",
            "options",
            "shared",
            "ports",
            "clocks",
        ]
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_not_shared_and_options_that_differ(tmp_path):
    port, places = free_port(), [tmp_path / "here", tmp_path / "there"]
    for place in places:
        place.mkdir()
    doctors = [
        start(*of_two(0, port), "--quiet", cwd=places[0]),
        start(*of_two(1, port), "--quiet", "--seed", "1", cwd=places[1]),
    ]
    for process in doctors:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (2, "")
        assert re.search(r"^error +shared +node 1 .* does not see what node 0 writes", err, re.MULTILINE)
        assert re.search(r"^error +options +seed is 0 on node 0 .* and 1 on node 1", err, re.MULTILINE)
        assert "Traceback" not in err
    assert [list(place.iterdir()) for place in places] == [[], []]


def test_a_doctor_that_is_told_to_stop_leaves_no_file(tmp_path):
    """Python's own exit, which would leave one here, aborts now and then: a thread is still with the store."""
    code = "import atexit, pathlib; atexit.register(pathlib.Path('exited').touch)"
    code += "; from alexnet_dist.doctor import cli; cli.command()"
    doctor_0 = start(*of_two(0, free_port()), cwd=tmp_path, program=["-c", code])
    end = time.monotonic() + 30
    while not list(tmp_path.glob(".doctor-*")) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(tmp_path.glob(".doctor-*"))
    doctor_0.send_signal(signal.SIGTERM)
    doctor_0.communicate(timeout=30)
    assert doctor_0.returncode == 143
    assert list(tmp_path.iterdir()) == []
