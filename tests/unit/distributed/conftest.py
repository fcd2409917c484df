"""Threads as before, and a GPU or none."""

import pytest
import torch


@pytest.fixture(autouse=True)
def keep_threads():
    """Forming a process group on the CPU chooses the number of threads of the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
