"""Networks of a few parameters."""

import torch
from torch import nn


def deep_network(seed=0):
    """Return a network whose hidden layers are a convolution, (4, 3 * 2 * 2), and a linear one, (6, 16)."""
    torch.manual_seed(seed)
    hidden = nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), *hidden, nn.ReLU(), nn.Linear(6, 3))
    return model.to(memory_format=torch.channels_last)


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
