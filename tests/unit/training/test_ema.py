"""The average of the weights against its formula."""

import copy

import torch
from networks import small_network

from alexnet_dist.training import ema


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
