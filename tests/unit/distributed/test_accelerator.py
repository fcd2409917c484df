"""Launches that are refused, precision and threads that are chosen, and what ranks tell each other."""

import dataclasses
import os
import platform
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType
from ranks import run_ranks

from alexnet_dist.config import Config, DataConfig, OptimConfig, RuntimeConfig
from alexnet_dist.distributed import accelerator as accelerator_module
from alexnet_dist.distributed import hardware as hardware_module
from alexnet_dist.distributed import launch_checks, network
from alexnet_dist.distributed import precision as precision_module
from alexnet_dist.errors import UserError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def config_for(*, batch_size=256, accumulate=1, **runtime):
    return Config(
        data=DataConfig(batch_size=batch_size),
        optim=OptimConfig(accumulate=accumulate),
        runtime=RuntimeConfig(**runtime),
    )


@pytest.fixture(autouse=True)
def keep_threads():
    """Forming a process group on the CPU chooses the number of threads of the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


# ---- launches that cannot do what was asked -------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpu")
def test_processes_without_devices_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes.* --runtime\.cpu"):
        launch_checks.check_launch(config_for())
    launch_checks.check_launch(config_for(cpu=True))


@pytest.mark.usefixtures("no_gpu")
def test_one_process_needs_no_device_of_its_own(monkeypatch):
    launch_checks.check_launch(config_for())
    monkeypatch.setenv("WORLD_SIZE", "1")
    launch_checks.check_launch(config_for())


@pytest.mark.usefixtures("gpu")
def test_processes_with_devices_are_fine(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    launch_checks.check_launch(config_for())


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "nearest"),
    [
        (100, 3, 1, "99 or 102"),
        (256, 7, 1, "252 or 259"),
        (100, 8, 2, "96 or 112"),
        (300, 4, 3, None),
        (6, 4, 3, "12"),
        (3, 4, 1, "4"),
        (1, 2, 1, "2"),
        (256, 8, 1, None),
        (255, 1, 5, None),
    ],
)
def test_batch_that_processes_cannot_share(batch_size, world_size, accumulate, nearest, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    config = config_for(batch_size=batch_size, accumulate=accumulate, cpu=True)
    if nearest is None:
        launch_checks.check_launch(config)
        return
    with pytest.raises(UserError) as refusal:
        launch_checks.check_launch(config)
    message = str(refusal.value)
    assert message.startswith(f"--data.batch-size {batch_size} ")
    assert f"{world_size} processes" in message
    assert message.endswith(f"that do are {nearest}")
    assert (f"--optim.accumulate {accumulate}" in message) == (accumulate > 1)
    for value in map(int, nearest.split(" or ")):
        launch_checks.check_launch(config_for(batch_size=value, accumulate=accumulate, cpu=True))


@pytest.mark.parametrize(
    ("launcher", "local_rank", "ends_it"),
    [
        ({}, "0", False),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_MAX_RESTARTS": "0"}, "0", False),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_MAX_RESTARTS": "3"}, "0", True),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_MAX_RESTARTS": "3"}, "1", True),
    ],
)
def test_a_refusal_ends_a_launcher_that_would_start_it_again(launcher, local_rank, ends_it, monkeypatch, tmp_path):
    """The first process of a machine does, once it has printed the error; the others would be too early."""
    for name, value in {**launcher, "WORLD_SIZE": "3", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    later, slept = [], []
    monkeypatch.setattr(accelerator_module.atexit, "register", lambda *call: later.append(call))
    monkeypatch.setattr(accelerator_module.time, "sleep", slept.append)
    config = dataclasses.replace(config_for(cpu=True), out_dir=tmp_path)
    with pytest.raises(UserError, match="does not divide by 3 processes"):
        launch_checks.check_launch(config)
    assert later == ([(os.kill, os.getppid(), signal.SIGTERM)] if ends_it else [])
    assert slept == ([launch_checks.WAIT_FOR_FIRST] if ends_it and local_rank == "1" else [])


@pytest.mark.parametrize(
    ("nodes", "accumulate", "odd"),
    [
        ("2:4", 1, "3"),
        ("1:8", 1, "3, 5, 6, 7"),
        ("2:4", 3, "2, 3, 4"),
        ("1:2", 1, None),
        ("2:2", 1, None),
        ("3", 1, None),
        ("", 1, None),
    ],
)
def test_sizes_that_a_run_would_end_at_are_named_before(nodes, accumulate, odd, monkeypatch, caplog):
    for name, value in {"PET_NNODES": nodes, "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    launch_checks._warn_of_sizes(256, accumulate=accumulate)
    warned = [record.getMessage() for record in caplog.records]
    expected = f"--data.batch-size 256 does not divide by the processes of {odd} machines"
    assert [expected in message for message in warned] == ([True] if odd else [])


# ---- several machines -----------------------------------------------------------------------------------------------

INTERFACES = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7"], "ib0": ["10.1.0.7", "fd00::7"]}


@pytest.mark.parametrize(
    ("own_address", "chosen", "interface"),
    [
        ("10.1.0.7", None, "ib0"),
        ("fd00::7", None, "ib0"),
        ("127.0.1.1", None, None),  # Debian's for rank 0's own name: gloo may know better
        ("127.0.0.1", None, None),
        (None, None, None),
        ("10.1.0.7", "eth0", None),  # the user's choice stays
    ],
)
def test_gloo_takes_the_interface_that_leads_to_rank_0(own_address, chosen, interface, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "there"}.items():
        monkeypatch.setenv(name, value)
    if chosen:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)

    def towards(host):
        assert host == "there"
        if own_address is None:
            raise OSError("Name or service not known")
        return own_address

    found = {name: [SimpleNamespace(address=one) for one in addresses] for name, addresses in INTERFACES.items()}
    monkeypatch.setattr(accelerator_module.psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(network, "_own_address", towards)
    assert network.gloo_interface() == interface


def test_the_own_address_is_that_of_the_way():
    assert network._own_address("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError, match=r"known|associated|resolution"):
        network._own_address("no-such-host.invalid")


@pytest.mark.parametrize("started", ["1", "4"])
def test_processes_that_do_not_find_each_other_are_one_line(started, monkeypatch):
    def form(*_arguments, **_keywords):
        raise RuntimeError("Timed out after 601 seconds waiting for clients. 1/4 clients joined.")

    monkeypatch.setenv("WORLD_SIZE", started)
    monkeypatch.setattr(accelerator_module, "_form", form)
    if started == "1":
        with pytest.raises(RuntimeError, match="Timed out"):
            accelerator_module.make_accelerator(config_for(cpu=True))
    else:
        with pytest.raises(
            UserError, match=r"the 4 processes have not found each other within 600 s \(Timed out.*wall"
        ):
            accelerator_module.make_accelerator(config_for(cpu=True))


# ---- precision ------------------------------------------------------------------------------------------------------

BF16_GPU, OLD_GPU, AMX_CPU, AVX512_CPU, OLD_CPU = "bf16 GPU", "old GPU", "AMX", "AVX-512 BF16", "old CPU"
PRECISIONS = [  # flag, launcher, device -> name, words of the reason
    ("auto", None, BF16_GPU, "bf16", "this GPU"),
    ("auto", None, OLD_GPU, "fp16", "no bf16"),
    ("auto", None, AMX_CPU, "bf16", "AMX"),
    ("auto", None, AVX512_CPU, "bf16", "AVX-512"),
    ("auto", None, OLD_CPU, "fp32", "no bf16"),
    ("auto", "no", BF16_GPU, "bf16", "this GPU"),
    ("auto", "no", OLD_CPU, "fp32", "no bf16"),
    ("auto", "bf16", OLD_GPU, "bf16", "launcher"),
    ("auto", "bf16", OLD_CPU, "bf16", "launcher"),
    ("auto", "BF16", OLD_CPU, "bf16", "launcher"),
    ("auto", "fp16", BF16_GPU, "fp16", "launcher"),
    ("fp32", "bf16", BF16_GPU, "fp32", "--runtime.precision"),
    ("fp32", "fp16", AMX_CPU, "fp32", "--runtime.precision"),
    ("bf16", "fp16", OLD_CPU, "bf16", "--runtime.precision"),
    ("fp16", "bf16", BF16_GPU, "fp16", "--runtime.precision"),
]


def pretend(monkeypatch, device):
    def is_bf16_supported(*, including_emulation):
        return device == BF16_GPU or including_emulation  # old GPUs emulate it, slowly

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    capabilities = {AMX_CPU: {"amx_bf16": True}, AVX512_CPU: {"avx512_bf16": True}}.get(device, {"avx2": True})
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    return device not in (BF16_GPU, OLD_GPU)


@pytest.mark.parametrize("case", PRECISIONS)
def test_precision(case, monkeypatch):
    flag, launcher, device, name, reason = case
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    use_cpu = pretend(monkeypatch, device)
    found = precision_module.resolve_precision(RuntimeConfig(precision=flag), use_cpu=use_cpu)
    assert found.name == name
    assert reason in found.reason


@pytest.mark.parametrize(("flag", "launcher"), [("fp16", None), ("fp16", "bf16"), ("auto", "fp16")])
def test_fp16_on_the_cpu_is_refused(flag, launcher, monkeypatch):
    if launcher is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    with pytest.raises(UserError, match=r"fp16 .*--runtime\.precision bf16 or fp32"):
        precision_module.resolve_precision(RuntimeConfig(precision=flag), use_cpu=True)


def test_an_older_torch_that_does_not_tell_what_its_cpu_can_do(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision_module.resolve_precision(RuntimeConfig(), use_cpu=True).name == "fp32"


def test_precisions_and_their_types():
    dtypes = {name: precision_module.Precision(name, "").dtype for name in ("fp32", "bf16", "fp16")}
    assert dtypes == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "wished", "local_world_size", "threads"),
    [
        (8, None, None, 8),
        (8, "1", None, 8),  # what launchers set
        (8, "3", None, 3),
        (8, "3", "4", 3),
        (8, "1", "2", 4),
        (8, None, "3", 2),
        (2, "1", "8", 1),
        (8, "0", None, 8),
        (8, "", None, 8),
        (8, "many", None, 8),
    ],
)
def test_cpu_threads(cores, wished, local_world_size, threads, monkeypatch):
    monkeypatch.setattr(accelerator_module.os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    if wished is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wished)
    if local_world_size is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world_size)
    assert hardware_module.cpu_threads() == threads


# ---- the accelerator ------------------------------------------------------------------------------------------------


def test_one_process_on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    accelerator, precision = accelerator_module.make_accelerator(config_for(cpu=True, precision="fp32"))
    assert isinstance(accelerator, Accelerator)
    assert (accelerator.num_processes, accelerator.device.type) == (1, "cpu")
    assert precision.name == "fp32"
    assert accelerator.mixed_precision == "no", "the flag wins over the launcher"
    assert accelerator.gradient_accumulation_steps == 1
    assert torch.get_num_threads() == 3
    assert accelerator.dataloader_config.split_batches
    assert not accelerator.dataloader_config.even_batches, "padding would count images twice"


def test_processes_that_would_train_independently_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # what Accelerate itself makes of it where there is no GPU
    with pytest.raises(UserError, match=r"started 2 processes and Accelerate formed a group of 1.*--runtime\.cpu"):
        accelerator_module.make_accelerator(config_for())


class StandIn:
    """What Accelerate forms, without forming it."""

    num_processes = 1
    gradient_accumulation_steps = 1
    made = None

    def __init__(self, **options):
        type(self).made = options


@pytest.mark.parametrize(("started", "formed"), [("2", 1), ("8", 1), ("1", 2), ("4", 2), (None, 2)])
def test_a_group_of_another_size_is_refused(started, formed, monkeypatch):
    monkeypatch.setattr(accelerator_module, "Accelerator", type("Formed", (StandIn,), {"num_processes": formed}))
    if started is not None:
        monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(UserError, match=f"started {started or 1} processes .* a group of {formed}"):
        accelerator_module.make_accelerator(config_for(cpu=True))


def test_a_group_of_the_same_size_is_fine(monkeypatch):
    monkeypatch.setattr(accelerator_module, "Accelerator", type("Formed", (StandIn,), {"num_processes": 4}))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert accelerator_module.make_accelerator(config_for(cpu=True))[0].num_processes == 4


def test_the_launchers_gradient_accumulation_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match=r"--optim\.accumulate"):
        accelerator_module.make_accelerator(config_for(cpu=True))


def options_of(monkeypatch, config):
    monkeypatch.setattr(accelerator_module, "Accelerator", StandIn)
    accelerator_module.make_accelerator(config)
    ddp, group = StandIn.made["kwargs_handlers"]
    return StandIn.made, ddp, group


def test_options_reach_accelerate(monkeypatch):
    made, ddp, group = options_of(
        monkeypatch, config_for(cpu=True, precision="bf16", comm_hook="bf16", timeout_seconds=77)
    )
    assert (made["cpu"], made["mixed_precision"]) == (True, "bf16")
    assert ddp.comm_hook == DDPCommunicationHookType.BF16
    assert (ddp.gradient_as_bucket_view, ddp.static_graph) == (True, True)
    assert group.timeout.total_seconds() == 77


def test_accumulation_forbids_a_static_graph(monkeypatch):
    _, ddp, _ = options_of(monkeypatch, config_for(cpu=True, accumulate=2))
    assert ddp.comm_hook == DDPCommunicationHookType.NO
    assert ddp.static_graph is False


def test_survey_measures_the_peak(monkeypatch):
    accelerator, precision = accelerator_module.make_accelerator(config_for(cpu=True, precision="fp32"))
    measured = []
    monkeypatch.setattr(hardware_module, "matmul_flops", lambda *arguments: measured.append(arguments) or 2.5e11)
    hardware = hardware_module.survey(accelerator, precision)
    assert measured == [(torch.device("cpu"), torch.float32)]
    assert hardware.peak_flops == 2.5e11
    assert (hardware.device, hardware.device_type, hardware.world_size) == ("CPU", "cpu", 1)
    assert hardware.threads == torch.get_num_threads()


def test_matrix_products_are_counted_by_hand(monkeypatch):
    ticks = iter([0.0, 0.25, 1.0, 1.5, 2.0, 2.125])  # start and end of each product
    monkeypatch.setattr(accelerator_module.time, "perf_counter", lambda: next(ticks))
    products = []
    monkeypatch.setattr(torch, "mm", lambda left, right, out=None: products.append((left.shape + right.shape, out)))
    monkeypatch.setattr(torch, "randn", lambda *shape, **_kwargs: torch.empty(shape, device="meta"))
    flops = hardware_module.matmul_flops(torch.device("cpu"), torch.float32)
    assert flops == 2 * 4096**3 / 0.25, "the best of those that fit into half a second"
    assert products == [(torch.Size([4096] * 4), None)] * 3, "one to warm up, two measured"


TOUCH_FRESH_MEMORY = """
import resource, sys, torch
from alexnet_dist import distributed
if sys.argv[1] == "keep":
    distributed.keep_freed_memory()
for turn in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del_me = [torch.ones(16 << 20) for _ in range(4)]  # 64 MB each: what the features of a batch need
    del del_me
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    def page_faults(mode):
        command = [sys.executable, "-c", TOUCH_FRESH_MEMORY, mode]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    pages = 4 * (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert page_faults("return") > pages / 2, "or the test shows nothing"
    assert page_faults("keep") < pages / 50


def test_a_cpu_run_keeps_freed_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(hardware_module, "keep_freed_memory", lambda: calls.append("kept"))
    accelerator_module.make_accelerator(config_for(cpu=True))
    assert calls == ["kept"]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(accelerator_module.ctypes, "CDLL", lambda _name: object())
    hardware_module.keep_freed_memory()
    monkeypatch.setattr(accelerator_module.sys, "platform", "darwin")
    monkeypatch.setattr(accelerator_module.ctypes, "CDLL", lambda _name: pytest.fail("no business there"))
    hardware_module.keep_freed_memory()


def test_from_main_on_one_process():
    accelerator, _ = accelerator_module.make_accelerator(config_for(cpu=True))
    assert accelerator_module.from_main(accelerator, lambda: {"a": 1}) == {"a": 1}
    assert accelerator_module.from_main(accelerator, lambda: None) is None

    def fail():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        accelerator_module.from_main(accelerator, fail)


# ---- two ranks ------------------------------------------------------------------------------------------------------


def on_a_rank():
    accelerator, _ = accelerator_module.make_accelerator(config_for(cpu=True, timeout_seconds=60))
    rank, calls = accelerator.process_index, []

    def compute():
        calls.append(rank)
        return {"rank": rank, "words": ["a", "longer", "list"], "none": None}

    def refuse():
        calls.append(rank)
        raise UserError(f"refused by rank {rank}")

    value = accelerator_module.from_main(accelerator, compute)
    try:
        error = f"no error but {accelerator_module.from_main(accelerator, refuse)}"
    except UserError as raised:
        error = str(raised)
    after = accelerator_module.from_main(accelerator, lambda: f"still talking: {rank}")
    hardware_module.matmul_flops = lambda *_arguments: 10.0 + rank
    hardware = hardware_module.survey(accelerator, precision_module.Precision("fp32", ""))
    accelerator.end_training()
    return {
        "world": (rank, accelerator.num_processes, accelerator.is_main_process),
        "calls": calls,
        "value": value,
        "error": error,
        "after": after,
        "peak": hardware.peak_flops,
        "threads": torch.get_num_threads(),
    }


def test_from_main_tells_every_rank():
    answers = run_ranks(on_a_rank, world_size=2)
    assert [answer["world"] for answer in answers] == [(0, 2, True), (1, 2, False)]
    assert [answer["calls"] for answer in answers] == [[0, 0], []], "only rank 0 computes"
    for answer in answers:
        assert answer["value"] == {"rank": 0, "words": ["a", "longer", "list"], "none": None}
        assert answer["error"] == "refused by rank 0"
        assert answer["after"] == "still talking: 0"
        assert answer["peak"] == 21.0, "summed over ranks"
        assert answer["threads"] == max(1, CORES // 2), "the host's cores are shared"
