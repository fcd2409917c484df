"""The meeting of one process, and which store several have; the rest is in tests/ranks/test_meeting.py."""

from datetime import timedelta

import pytest

from alexnet_dist.distributed import meeting as meeting_module
from alexnet_dist.distributed.meeting import meeting

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environment", [{}, LAUNCHED | {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "2"}], ids=str)
def test_one_process_meets_nobody(monkeypatch, environment):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(meeting_module, "launchers_store", None)
    with meeting(timedelta(seconds=1)) as store:
        assert store is None


@pytest.mark.parametrize(
    ("rank", "keeps", "may", "hosts"),
    [
        ("0", "False", True, True),
        ("0", None, True, True),
        ("0", "True", True, False),
        ("1", None, True, False),
        ("0", None, False, False),
    ],
)
def test_rank_0_keeps_the_store_that_the_launcher_does_not(monkeypatch, *, rank, keeps, may, hosts):
    made = {}
    monkeypatch.setattr(meeting_module.dist, "TCPStore", lambda *_, **options: made.update(options))
    for name, value in (LAUNCHED | {"RANK": rank}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    if keeps is not None:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", keeps)
    meeting_module.launchers_store(timedelta(seconds=1), may_host=may)
    assert (made["is_master"], made["multi_tenant"]) == (hosts, hosts)


@pytest.mark.parametrize(("keeps", "attempt"), [("True", "3"), ("False", "0")])
def test_restarts_are_told_apart_where_the_launcher_keeps_one_store(monkeypatch, keeps, attempt):
    """Launchers that have a new store for each restart may count them differently."""
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", keeps)
    assert meeting_module._attempt() == attempt
