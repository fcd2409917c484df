"""The accelerator: groups that are refused, and options that reach Accelerate."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType
from launches import config_for

from alexnet_dist.distributed import accelerator as accelerator_module
from alexnet_dist.errors import UserError

# ---- several machines -----------------------------------------------------------------------------------------------


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


def test_from_main_on_one_process():
    accelerator, _ = accelerator_module.make_accelerator(config_for(cpu=True))
    assert accelerator_module.from_main(accelerator, lambda: {"a": 1}) == {"a": 1}
    assert accelerator_module.from_main(accelerator, lambda: None) is None

    def fail():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        accelerator_module.from_main(accelerator, fail)
