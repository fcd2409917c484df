"""The interface and the address by which machines reach each other."""

from types import SimpleNamespace

import pytest

from alexnet_dist.distributed import network

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
    monkeypatch.setattr(network.psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(network, "_own_address", towards)
    assert network.gloo_interface() == interface


def test_the_own_address_is_that_of_the_way():
    assert network._own_address("127.0.0.1") == "127.0.0.1"
    with pytest.raises(OSError, match=r"known|associated|resolution"):
        network._own_address("no-such-host.invalid")
