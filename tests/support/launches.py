"""Configurations of launches."""

from alexnet_dist.config import Config, DataConfig, OptimConfig, RuntimeConfig


def config_for(*, batch_size=256, accumulate=1, **runtime):
    return Config(
        data=DataConfig(batch_size=batch_size),
        optim=OptimConfig(accumulate=accumulate),
        runtime=RuntimeConfig(**runtime),
    )
