"""Where a run runs: links as the system describes them, words, and the interface by which machines reach each other."""

from types import SimpleNamespace

import pytest
import torch
from tiny import run, summary

from alexnet_dist.distributed import topology

ONE = {"hosts": {"a": 1}, "devices": {"CPU": 1}, "backend": None, "interconnect": None}


@pytest.fixture
def system(tmp_path):
    """A host with one link of known speed, one of unknown, and an InfiniBand port."""
    for name, speed in (("eth0", "25000\n"), ("veth1", "-1\n")):
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "speed").write_text(speed)
    port = tmp_path / "infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("200 Gb/sec (4X HDR)\n")
    return tmp_path


@pytest.mark.parametrize(
    ("chosen", "words"), [("eth0", "eth0 (25,000 Mbit/s)"), ("veth1", "veth1"), ("gone0", "gone0")]
)
def test_a_chosen_interface_and_its_speed(system, chosen, words):
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        assert topology.interconnect({variable: chosen}, sysfs=system) == words


def test_the_interface_that_leads_to_the_first_host(system):
    assert topology.interconnect({"MASTER_ADDR": "127.0.0.1"}, sysfs=system).startswith("lo")
    assert topology.interconnect({"MASTER_ADDR": "no.such.host.invalid"}, sysfs=system) == "an unknown link"


def test_infiniband_where_gpus_use_it(system, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    environment = {"GLOO_SOCKET_IFNAME": "eth0"}
    assert topology.interconnect(environment, sysfs=system) == "mlx5_0 (200 Gb/sec (4X HDR))"
    assert topology.interconnect({**environment, "NCCL_IB_DISABLE": "1"}, sysfs=system) == "eth0 (25,000 Mbit/s)"
    (system / "infiniband/mlx5_0/ports/1/state").write_text("1: DOWN\n")
    assert topology.interconnect(environment, sysfs=system) == "eth0 (25,000 Mbit/s)"


def test_words():
    facts = {"hosts": {"b": 4, "a": 4}, "backend": "nccl", "interconnect": "eth0 (25,000 Mbit/s)"}
    assert topology.words(facts) == "2 hosts: a (4), b (4); nccl over eth0 (25,000 Mbit/s)"
    many = {**facts, "hosts": dict.fromkeys("abcdef", 1), "allreduce_bytes": 228_179_240}
    many |= {"allreduce_ms": 1234.5, "allreduce_gb_per_second": 0.3456}
    assert topology.words(many).startswith("6 hosts: a (1), b (1), c (1), d (1), ...; nccl")
    assert topology.words(many).endswith("; all-reduce of 228 MB in 1,234 ms, 0.346 GB/s")


def test_one_process_has_no_network(tmp_path, capsys):
    found = summary(run(tmp_path / "run", "--max-steps", "1", "--runtime.probe-network"))
    assert list(found["hosts"].values()) == [1]
    assert (found["backend"], found["interconnect"], found["devices"]) == (None, None, {"CPU": 1})
    assert "allreduce_ms" not in found
    assert "hosts  " not in capsys.readouterr().out


# ---- interfaces -----------------------------------------------------------------------------------------------------


INTERFACES = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7"], "ib0": ["10.1.0.7", "fd00::7"]}


@pytest.mark.parametrize(
    ("own_address", "chosen", "interface"),
    [
        ("10.1.0.7", None, "ib0"),
        ("fd00::7", None, "ib0"),
        ("127.0.1.1", None, None),  # Debian's for rank 0's own name: gloo may know better
        ("127.0.0.1", None, None),
        (None, None, None),
        ("10.1.0.7", "eth0", None),  # the user's choice stays
    ],
)
def test_gloo_takes_the_interface_that_leads_to_rank_0(own_address, chosen, interface, monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "there"}.items():
        monkeypatch.setenv(name, value)
    if chosen:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", chosen)

    def towards(host):
        assert host == "there"
        if own_address is None:
            raise OSError("Name or service not known")
        return own_address

    found = {name: [SimpleNamespace(address=one) for one in addresses] for name, addresses in INTERFACES.items()}
    monkeypatch.setattr(topology.psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(topology, "_own_address", towards)
    assert topology.gloo_interface() == interface


def test_the_own_address_is_that_of_the_way():
    assert topology._own_address("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError, match=r"known|associated|resolution"):
        topology._own_address("no-such-host.invalid")
