"""Learning rates against hand-computed values and torch's schedulers; optimizers against torch's unfused ones."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from alexnet_dist.config import OptimConfig
from alexnet_dist.training import ema, lr_schedule
from alexnet_dist.training import optimizer as optimizer_module

LR = 0.2
STEPS_PER_EPOCH, TOTAL = 10, 100


def rates(total=TOTAL, steps_per_epoch=STEPS_PER_EPOCH, **options):
    config = OptimConfig(lr=LR, **options)
    return [
        lr_schedule.learning_rate(step, config, steps_per_epoch=steps_per_epoch, total_steps=total)
        for step in range(total)
    ]


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


# ---- learning rate --------------------------------------------------------------------------------------------------

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


# ---- optimizers -----------------------------------------------------------------------------------------------------


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def train(network, optimizer, steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.randn(5, 2, 4, 4, generator=generator)
        network(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def unfused(network, config):
    """Torch's own optimizer, its groups written out."""
    conv, _, hidden, _, head = network
    groups = [
        {"params": [conv.weight, hidden.weight, head.weight], "weight_decay": config.weight_decay},
        {"params": [conv.bias, hidden.bias, head.bias], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=False, foreach=False)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(groups, lr=config.lr, betas=(0.9, 0.999), eps=1e-8, fused=False, foreach=False)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_those_of_torchs_unfused_optimizer(name, weight_decay):
    config = OptimConfig(name=name, lr=1e-2, weight_decay=weight_decay)
    ours = small_network()
    theirs, start = copy.deepcopy(ours), copy.deepcopy(ours)
    train(ours, optimizer_module.build(ours, config))
    train(theirs, unfused(theirs, config))
    for mine, other, first in zip(ours.parameters(), theirs.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
        assert (mine - first).abs().max() > 1e-3, "the steps moved the weights by far more than the tolerance"


def stepped_by_hand(ours, plain, optimizer):
    """Yield four times: `optimizer` has moved `ours`, and `plain` has the same gradients, to be moved by hand."""
    for images in torch.randn(4, 5, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        for network in (ours, plain):
            network.zero_grad()
            network(images).square().sum().backward()
        optimizer.step()
        with torch.no_grad():
            yield


def zeros_like_parameters(network):
    return {name: torch.zeros_like(value) for name, value in network.named_parameters()}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_by_hand(decay):
    """With g' = trust (g + decay w), a trust ratio for each weight: v <- 0.9 v + g', w <- w - lr (g' + 0.9 v)."""
    ours = small_network().double()
    plain = copy.deepcopy(ours)
    velocity = zeros_like_parameters(plain)
    optimizer = optimizer_module.build(ours, OptimConfig(name="lars", lr=2.0, weight_decay=decay))
    for _ in stepped_by_hand(ours, plain, optimizer):
        for name, value in plain.named_parameters():
            step = value.grad
            if not name.endswith("bias"):
                trust = 0.001 * value.norm() / (value.grad.norm() + decay * value.norm())
                step = trust * (value.grad + decay * value)
            velocity[name] = 0.9 * velocity[name] + step
            value.sub_(2.0 * (step + 0.9 * velocity[name]))
    for mine, by_hand in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, by_hand, rtol=1e-9, atol=1e-12)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decay, 0.0], "as a checkpoint records it"


def test_lamb_by_hand():
    """A step of Adam with bias correction and decoupled decay, of each weight, of the length lr |w|."""
    lr, decay = 0.02, 0.1
    ours = small_network().double()
    plain = copy.deepcopy(ours)
    first, second = zeros_like_parameters(plain), zeros_like_parameters(plain)
    optimizer = optimizer_module.build(ours, OptimConfig(name="lamb", lr=lr, weight_decay=decay))
    for count, _ in enumerate(stepped_by_hand(ours, plain, optimizer), 1):
        for name, value in plain.named_parameters():
            first[name] = 0.9 * first[name] + 0.1 * value.grad
            second[name] = 0.999 * second[name] + 0.001 * value.grad**2
            step = first[name] / (1 - 0.9**count) / ((second[name] / (1 - 0.999**count)).sqrt() + 1e-8)
            if not name.endswith("bias"):
                step = step + decay * value
                step *= value.norm() / step.norm()
            value.sub_(lr * step)
    for mine, by_hand in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, by_hand, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_trust_ratios_leave_alone_what_is_zero_or_blocked(name):
    network = small_network()
    optimizer = optimizer_module.build(network, OptimConfig(name=name, lr=0.5))
    with torch.no_grad():
        network[2].weight.zero_()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    before = copy.deepcopy(network.state_dict())
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("sqrt", 4), ("linear", 16)])
def test_rates_are_scaled_to_the_batch(rule, factor):
    config = OptimConfig(lr=1e-3, scale_lr=rule)
    assert lr_schedule.peak(config, batch_size=4096) == pytest.approx(1e-3 * factor)
    assert lr_schedule.peak(config, batch_size=256) == 1e-3


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizer_is_fused_and_of_the_kind_asked_for(name, kind):
    optimizer = optimizer_module.build(small_network(), OptimConfig(name=name, lr=0.03))
    assert type(optimizer) is kind
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.03]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_groups_partition_the_parameters(name):
    network = small_network()
    groups = optimizer_module.build(network, OptimConfig(name=name, weight_decay=0.1)).param_groups
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decaying = {id(parameter) for parameter in groups[0]["params"]}
    assert decaying == {id(parameter) for parameter in network.parameters() if parameter.ndim > 1}


@pytest.mark.parametrize(("name", "decay"), [("adam", 0), ("adamw", 0.5), ("sgd", 0), ("lars", 0), ("lamb", 0)])
def test_decay_that_suits_one_optimizer_is_not_another_ones_default(name, decay):
    groups = optimizer_module.build(small_network(), OptimConfig(name=name)).param_groups
    assert [group["weight_decay"] for group in groups] == [decay, 0.0]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_biases_never_decay(name):
    network = small_network()
    before = copy.deepcopy(network.state_dict())
    optimizer = optimizer_module.build(network, OptimConfig(name=name, lr=0.1, weight_decay=0.5))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in network.state_dict().items():
        if key.endswith("bias"):
            assert torch.equal(value, before[key]), key
        else:
            assert value.norm() < before[key].norm(), key


# ---- the average of the weights -------------------------------------------------------------------------------------


def test_average_follows_the_formula():
    network = small_network()
    average = ema.Ema(network, decay=0.9)
    expected = [parameter.detach().clone() for parameter in network.parameters()]
    for step in range(3):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(step + 1.0)
        average.update(network)
        expected = [0.9 * past + 0.1 * now.detach() for past, now in zip(expected, network.parameters(), strict=True)]
    for found, value, now in zip(average.model.parameters(), expected, network.parameters(), strict=True):
        torch.testing.assert_close(found, value)
        assert not torch.allclose(found, now)


def test_average_is_a_copy_and_leaves_the_network_alone():
    network = small_network()
    average = ema.Ema(network, decay=0.5)
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in average.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(average.model.parameters(), network.parameters(), strict=True))
    with torch.no_grad():
        for parameter in average.model.parameters():
            parameter.zero_()
    before = copy.deepcopy(network.state_dict())
    average.update(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    torch.testing.assert_close(average.model[0].weight, network[0].weight / 2)


def test_average_takes_no_gradient_and_the_network_still_does():
    network = small_network()
    average = ema.Ema(network, decay=0.5)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    network(torch.ones(1, 2, 4, 4)).sum().backward()
    average.update(network)
    assert all(parameter.grad is None for parameter in average.model.parameters())
    assert all(parameter.grad is not None for parameter in network.parameters())
