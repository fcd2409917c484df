"""Learning rates against hand-computed values and torch's schedulers."""

import itertools
import math

import pytest
import torch
from torch import nn

from alexnet_dist.config import OptimConfig
from alexnet_dist.training.lr_schedule import BASE_BATCH, LearningRate

LR = 0.2
STEPS_PER_EPOCH, TOTAL = 10, 100


def rates(total=TOTAL, steps_per_epoch=STEPS_PER_EPOCH, **options):
    schedule = LearningRate(OptimConfig(lr=LR, **options), BASE_BATCH, steps_per_epoch, total)
    return [schedule(step) for step in range(total)]


def torchs(scheduler, total=TOTAL, **options):
    """The learning rates of one of torch's schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = scheduler(optimizer, **options)
    result = []
    for _ in range(total):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return result


FALL = {  # what is left after that share of a half cosine from 1 to 0
    "1/2": 0.5,
    "69/70": (1 + math.cos(math.pi * 69 / 70)) / 2,
    "79/80": (1 + math.cos(math.pi * 79 / 80)) / 2,
    "89/90": (1 + math.cos(math.pi * 89 / 90)) / 2,
    "99/100": (1 + math.cos(math.pi * 99 / 100)) / 2,
}
BY_HAND = [
    ({"schedule": "constant"}, {0: 1, 50: 1, 99: 1}),
    ({"schedule": "constant", "warmup_epochs": 2}, {0: 1 / 21, 10: 11 / 21, 19: 20 / 21, 20: 1, 60: 1, 99: 1}),
    ({"schedule": "constant", "warmup_epochs": 0.5}, {0: 1 / 6, 4: 5 / 6, 5: 1, 99: 1}),
    ({"schedule": "cosine"}, {0: 3 / 23, 5: 18 / 23, 6: 3 * 7 / 23}),  # a rise of 100 / 15 steps
    ({"schedule": "cosine", "warmup_epochs": 0}, {0: 1, 50: FALL["1/2"], 99: FALL["99/100"]}),
    ({"schedule": "cosine", "warmup_epochs": 2}, {0: 1 / 21, 19: 20 / 21, 20: 1, 60: FALL["1/2"], 99: FALL["79/80"]}),
    ({"schedule": "one-cycle"}, {0: 1 / 25, 15: (1 + 1 / 25) / 2, 30: 1, 65: FALL["1/2"], 99: FALL["69/70"]}),
    ({"schedule": "one-cycle", "warmup_epochs": 1}, {0: 1 / 25, 5: 13 / 25, 10: 1, 55: FALL["1/2"], 99: FALL["89/90"]}),
    ({"schedule": "one-cycle", "warmup_epochs": 0}, {0: 1, 50: FALL["1/2"], 99: FALL["99/100"]}),
]


@pytest.mark.parametrize(("options", "expected"), BY_HAND)
def test_learning_rate_by_hand(options, expected):
    found = rates(**options)
    assert {step: found[step] / LR for step in expected} == pytest.approx(expected)


def test_cosine_is_torchs():
    assert rates(schedule="cosine", warmup_epochs=0) == pytest.approx(
        torchs(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=TOTAL)
    )


@pytest.mark.parametrize("total", [10, 100, 977])
def test_one_cycle_is_torchs(total):
    # torch counts from the first step to the last, here the run's end is the moment after the last step: one more
    ours_as_torch = {"total_steps": total + 1, "pct_start": (0.3 * total + 1) / (total + 1)}
    expected = torchs(torch.optim.lr_scheduler.OneCycleLR, total, max_lr=LR, final_div_factor=math.inf, **ours_as_torch)
    assert rates(total, schedule="one-cycle") == pytest.approx(expected)


SHAPES = [
    {"schedule": schedule, "warmup_epochs": warmup}
    for schedule in ("constant", "cosine", "one-cycle")
    for warmup in (None, 0, 0.05, 0.5, 1, 3.33, 9.9, 10, 25)
]


@pytest.mark.parametrize("options", SHAPES)
def test_learning_rate_never_jumps(options):
    one_cycle = options["schedule"] == "one-cycle"
    steepest = math.pi / 2 if one_cycle else 1  # of a half cosine, and of a line
    for total in (1, 2, 7, 100, 1000):
        found = rates(total, **options)
        assert len(found) == total
        assert all(0 < rate <= LR * (1 + 1e-12) for rate in found), "never 0, never above the peak"
        if options["warmup_epochs"] is None:
            rise = total * {"one-cycle": 0.3, "cosine": 1 / 15, "constant": 0}[options["schedule"]]
        else:
            rise = options["warmup_epochs"] * STEPS_PER_EPOCH
        fall = 0 if options["schedule"] == "constant" else max(0, total - rise)
        bound = max(steepest / rise if rise else 0, math.pi / 2 / fall if fall else 0)
        steps = [abs(after - before) for before, after in itertools.pairwise(found)]
        assert max(steps, default=0) <= LR * bound * (1 + 1e-9)


@pytest.mark.parametrize("options", SHAPES)
def test_learning_rate_rises_to_the_peak_and_then_only_falls(options):
    found = rates(1000, **options)
    peak = found.index(max(found))
    assert found[peak] == pytest.approx(LR, rel=1e-3)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_a_warm_up_longer_than_the_run_only_rises():
    found = rates(20, schedule="cosine", warmup_epochs=4)
    assert found == pytest.approx([LR * (step + 1) / 41 for step in range(20)])


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 4), ("linear", 16)])
def test_rates_are_scaled_to_the_batch(rule, factor):
    config = OptimConfig(lr=1e-3, scale_lr=rule)
    assert LearningRate(config, 4096, 1, 1).peak_lr == pytest.approx(1e-3 * factor)
    assert LearningRate(config, 256, 1, 1).peak_lr == 1e-3


def test_steps_are_torchs_step_lr():
    expected = torchs(torch.optim.lr_scheduler.StepLR, step_size=3 * STEPS_PER_EPOCH, gamma=0.1)
    assert rates(schedule="step", step_epochs=3) == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) == 4
    warm = rates(schedule="step", step_epochs=3, warmup_epochs=1)
    assert warm[STEPS_PER_EPOCH:] == rates(schedule="step", step_epochs=3)[STEPS_PER_EPOCH:]
    assert warm[0] < warm[1] < LR
