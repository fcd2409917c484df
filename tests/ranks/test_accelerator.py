"""What two ranks have from their accelerator."""

import os

import torch
from launches import config_for
from ranks import run_ranks

from alexnet_dist.distributed import accelerator as accelerator_module
from alexnet_dist.distributed import hardware as hardware_module
from alexnet_dist.distributed import precision as precision_module
from alexnet_dist.errors import UserError

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
    hardware_module.peak_flops = lambda *_arguments: 10.0 + rank
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
