"""Precision as asked for, or as the device computes fastest."""

import pytest
import torch

from alexnet_dist.config import RuntimeConfig
from alexnet_dist.distributed import precision as precision_module
from alexnet_dist.errors import UserError

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
