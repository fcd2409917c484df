"""Optimizers against torch's unfused ones, and against steps by hand."""

import copy

import pytest
import torch
from networks import deep_network, small_network

from alexnet_dist.config import OptimConfig
from alexnet_dist.training import optimizer as optimizer_module


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
    return kind(groups, lr=config.lr, betas=(0.9, config.beta2), eps=1e-8, fused=False, foreach=False)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("weight_decay", "beta2"), [(0.0, 0.999), (0.1, 0.999), (0.1, 0.9)])
def test_steps_equal_those_of_torchs_unfused_optimizer(name, weight_decay, beta2):
    config = OptimConfig(name=name, lr=1e-2, weight_decay=weight_decay, beta2=beta2)
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


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_muons_products_are_of_the_type_that_is_asked_for(kind, monkeypatch):
    network, types = deep_network(), set()
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *a, **k: types.add(a[1].dtype) or addmm(*a, **k))
    optimizer = optimizer_module.build(network, OptimConfig(name="muon"), products=kind)
    network(torch.ones(5, 2, 4, 4)).sum().backward()
    types.clear()  # the layers' own
    optimizer.step()
    assert types == {kind}


@pytest.mark.parametrize("layers", ["convolutions", "hidden"])
@pytest.mark.parametrize("momentum", [None, 0.8])
def test_muon_is_torchs_for_hidden_layers_as_matrices_and_adamw_for_the_rest(layers, momentum):
    config = OptimConfig(name="muon", lr=0.02, weight_decay=0.1, muon_layers=layers, momentum=momentum)
    ours, theirs = deep_network(), deep_network()
    optimizer = optimizer_module.build(ours, config)
    turned = [theirs[2].weight, theirs[5].weight][: 2 if layers == "hidden" else 1]
    matrices = [torch.nn.Parameter(weight.detach().flatten(1).clone()) for weight in turned]
    rest = [value for value in theirs.parameters() if all(value is not weight for weight in turned)]
    groups = [
        {"params": [p for p in rest if p.ndim > 1]},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.1)
    settings = {"momentum": momentum or 0.95, "adjust_lr_fn": "match_rms_adamw"}
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, **settings)
    start = copy.deepcopy(ours.state_dict())
    for images in torch.randn(4, 5, 2, 4, 4, generator=torch.Generator().manual_seed(1)):
        for network in (ours, theirs):
            network.zero_grad()
            network(images).square().sum().backward()
        optimizer.step()
        for matrix, weight in zip(matrices, turned, strict=True):
            matrix.grad = weight.grad.flatten(1)
        muon.step()
        adamw.step()
        with torch.no_grad():
            for matrix, weight in zip(matrices, turned, strict=True):
                weight.copy_(matrix.view(weight.shape))
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)
        assert (mine - start[name]).abs().max() > 0.02, name


def test_muon_takes_no_step_where_it_is_blocked():
    network = deep_network()
    optimizer = optimizer_module.build(network, OptimConfig(name="muon", muon_layers="hidden", lr=0.5))
    for gradient, blocked in ((0.5, 0.0), (torch.nan, 1.0), (torch.inf, 1.0)):
        before = copy.deepcopy((network.state_dict(), optimizer.state_dict()["state"]))
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.found_inf = torch.full((), blocked)
        optimizer.step()
        same = [torch.equal(value, before[0][key]) for key, value in network.state_dict().items()]
        assert set(same) == {blocked == 1}
    after = optimizer.state_dict()["state"]
    assert all(
        torch.equal(value, before[1][key][kind]) for key, kinds in after.items() for kind, value in kinds.items()
    )


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


@pytest.mark.parametrize(
    ("name", "decay"), [("adam", 0), ("adamw", 0.5), ("sgd", 0), ("lars", 0), ("lamb", 0), ("muon", 0.5)]
)
def test_decay_that_suits_one_optimizer_is_not_another_ones_default(name, decay):
    groups = optimizer_module.build(small_network(), OptimConfig(name=name)).param_groups
    assert [group["weight_decay"] for group in groups] == [decay, 0.0, decay][: len(groups)]


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


def test_plain_momentum_with_decay_of_all_parameters_is_torchs_sgd():
    """The optimizer with which torchvision trained its AlexNet."""
    config = OptimConfig(name="sgd", lr=1e-2, weight_decay=0.1, nesterov=False, decay_biases=True)
    ours = small_network()
    theirs, other = copy.deepcopy(ours), copy.deepcopy(ours)
    train(ours, optimizer_module.build(ours, config))
    train(theirs, torch.optim.SGD(theirs.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1))
    train(other, optimizer_module.build(other, OptimConfig(name="sgd", lr=1e-2, weight_decay=0.1)))
    for mine, expected, default in zip(ours.parameters(), theirs.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(mine, default, rtol=1e-3, atol=1e-4), "both options change every parameter"
