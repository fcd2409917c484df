"""Mixed precision: which dtype the network computes in, and why."""

import os
from dataclasses import dataclass

import torch

from alexnet_dist.config import RuntimeConfig
from alexnet_dist.errors import UserError


@dataclass(frozen=True)
class Precision:
    """The type of the network's arithmetic; weights, optimizer state and loss are float32 in any case."""

    name: str
    """fp32, bf16 or fp16."""
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The torch type."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]


def resolve_precision(config: RuntimeConfig, *, use_cpu: bool) -> Precision:
    """Decide the precision and say why.

    A launcher's "no" is taken for no choice: `accelerate launch` passes it whenever nobody chose.

    Raises:
        UserError: fp16 without a GPU, where Accelerate would silently compute in float32.
    """
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if config.precision != "auto":
        precision = Precision(config.precision, "asked for by --runtime.precision")
    elif launcher in ("bf16", "fp16"):
        precision = Precision(launcher, "the launcher's choice")
    elif not use_cpu and torch.cuda.is_bf16_supported(including_emulation=False):
        precision = Precision("bf16", "this GPU computes in it")
    elif not use_cpu:
        precision = Precision("fp16", "this GPU has no bf16")
    elif capabilities.get("amx_bf16"):
        precision = Precision("bf16", "this CPU has AMX")
    elif capabilities.get("avx512_bf16"):
        precision = Precision("bf16", "this CPU has AVX-512 BF16")
    else:
        precision = Precision("fp32", "this CPU has no bf16 instructions")
    if precision.name == "fp16" and use_cpu:
        raise UserError(f"fp16 ({precision.reason}) needs a GPU: choose --runtime.precision bf16 or fp32")
    return precision
