"""Every option of a run: frozen dataclasses, the command line made from them, YAML files that mirror it."""

from alexnet_dist.config.cli import changed_fields, flat, parse, to_dict, to_yaml
from alexnet_dist.config.schema import (
    LARGEST_IMAGE,
    CheckpointConfig,
    Config,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    WandbConfig,
)
from alexnet_dist.errors import UserError

__all__ = [
    "LARGEST_IMAGE", "CheckpointConfig", "Config", "DataConfig", "LogConfig", "ModelConfig", "OptimConfig",
    "RuntimeConfig", "UserError", "WandbConfig", "changed_fields", "flat", "parse", "to_dict", "to_yaml",
]  # fmt: skip
