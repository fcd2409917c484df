"""Threads, measured peak and memory of the machine."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from launches import config_for
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from alexnet_dist.distributed import accelerator as accelerator_module
from alexnet_dist.distributed import hardware as hardware_module


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
    monkeypatch.setattr(hardware_module.os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    if wished is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wished)
    if local_world_size is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world_size)
    assert hardware_module.cpu_threads() == threads


def test_survey_measures_the_peak(monkeypatch):
    accelerator, precision = accelerator_module.make_accelerator(config_for(cpu=True, precision="fp32"))
    measured = []
    monkeypatch.setattr(hardware_module, "peak_flops", lambda *arguments: measured.append(arguments) or 2.5e11)
    hardware = hardware_module.survey(accelerator, precision)
    assert measured == [(torch.device("cpu"), torch.float32)]
    assert hardware.peak_flops == 2.5e11
    assert (hardware.device, hardware.world_size) == ("CPU", 1)
    assert hardware.threads == torch.get_num_threads()


def test_peak_is_that_of_the_fastest_operation(monkeypatch):
    """Of the calls that fit into the time the quickest counts; an operation that would take too long is left out."""
    calls, now = [], [0.0]
    seconds = {"product": iter([9.0, 0.04, 0.02, 0.05]), "convolution": iter([9.0, 0.2])}  # the first warms up

    def operation(name):
        def call():
            calls.append(name)
            now[0] += next(seconds[name])

        return lambda: call

    found = [(10**12, operation("too long")), (2 * 10**9, operation("convolution")), (10**9, operation("product"))]
    monkeypatch.setattr(hardware_module, "_operations", lambda *_: found)
    monkeypatch.setattr(hardware_module.time, "perf_counter", lambda: now[0])
    assert hardware_module.peak_flops(torch.device("cpu"), torch.float32) == pytest.approx(10**9 / 0.02)
    assert calls == ["product"] * 4 + ["convolution"] * 2, "the smallest first, and none of more than a quarter second"
    seconds.update(product=iter([9.0, 0.1]), convolution=iter([9.0, 0.1]))
    assert hardware_module.peak_flops(torch.device("cpu"), torch.float32) == pytest.approx(2 * 10**9 / 0.1)


def test_peak_covers_products_and_convolutions_of_alexnets_kind():
    """Floating-point operations are those that torch counts."""
    operations = list(hardware_module._operations(torch.device("cpu"), torch.bfloat16))
    kinds = []
    for flops, make in operations:
        call = make()
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            result = call()
        assert counter.get_total_flops() == flops
        kinds.append((result.ndim, result.dtype))
    assert kinds == [(2, torch.bfloat16)] * 3 + [(4, torch.bfloat16)] * 3


TOUCH_FRESH_MEMORY = """
import ctypes, resource, sys, torch
from alexnet_dist.distributed import hardware
PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # so that each page is counted, not one in 512
if sys.argv[1] == "keep":
    hardware.keep_freed_memory()
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
    monkeypatch.setattr(accelerator_module, "keep_freed_memory", lambda: calls.append("kept"))
    accelerator_module.make_accelerator(config_for(cpu=True))
    assert calls == ["kept"]


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(hardware_module.ctypes, "CDLL", lambda _name: object())
    hardware_module.keep_freed_memory()
    monkeypatch.setattr(hardware_module.sys, "platform", "darwin")
    monkeypatch.setattr(hardware_module.ctypes, "CDLL", lambda _name: pytest.fail("no business there"))
    hardware_module.keep_freed_memory()
