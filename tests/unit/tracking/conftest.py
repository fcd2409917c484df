"""No W&B in the environment."""

import os
from unittest import mock

import pytest
import wandb


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No choice and no login in the environment, and what wandb or the tracker set there goes again."""
    with mock.patch.dict(os.environ):
        for variable in list(os.environ):
            if variable.startswith("WANDB_"):
                monkeypatch.delenv(variable)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        yield


@pytest.fixture
def spy(monkeypatch, tmp_path):
    """What the tracker says to wandb."""
    run = mock.Mock(dir=str(tmp_path / "x" / "files"), url="https://wandb.example/run")
    run.summary = {}
    monkeypatch.setattr(wandb, "init", mock.Mock(return_value=run))
    return run
