"""Runs without drawings, which take a third of their time."""

import pytest

from alexnet_dist.commands import results


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(results, "draw", lambda *_: None)
