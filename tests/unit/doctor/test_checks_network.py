"""The address, the port and the interface: the level, and the way out."""

import contextlib
import socket
import time

import pytest
from deadlines import deadline
from preflight import assert_says, nodes_at
from ranks import free_port

from alexnet_dist.doctor import checks_network
from alexnet_dist.errors import UserError


def test_address(taken):
    port = free_port()
    with_name = checks_network.address(nodes_at("nowhere.invalid"))
    assert_says(with_name, "error", "nowhere.invalid has no address here: correct --rdzv")
    assert_says(checks_network.address(nodes_at("192.0.2.1")), "error", "no address of this machine")
    assert_says(checks_network.address(nodes_at("192.0.2.1", rank=1)), "ok", "192.0.2.1")
    assert_says(checks_network.address(nodes_at(port=taken)), "error", f"port {taken} is taken", "choose another port")
    assert_says(checks_network.address(nodes_at(port=port)), "warning", "each machine's own address")
    assert_says(checks_network.address(nodes_at(port=taken, launched=True)), "ok", "formed by the launcher")


def test_a_name_server_that_is_silent_is_left(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(30))
    began = time.monotonic()
    assert checks_network.addresses("head", seconds=0.2) == []
    assert time.monotonic() - began < deadline(5)


def test_the_port_of_a_single_node(monkeypatch, taken):
    assert checks_network.launcher_port({}, processes=1) is None
    assert checks_network.launcher_port({"WORLD_SIZE": "2"}, processes=2) is None
    monkeypatch.setattr(checks_network, "ACCELERATE_PORT", free_port())
    assert_says(checks_network.launcher_port({}, processes=2), "ok", "is free")
    monkeypatch.setattr(checks_network, "ACCELERATE_PORT", taken)
    assert_says(checks_network.launcher_port({}, processes=2), "warning", f"{taken} is taken", "--main_process_port 0")


def test_interface(monkeypatch):
    afar = nodes_at("192.0.2.1", rank=1)
    assert checks_network.interface({}, nodes_at()) is None
    monkeypatch.setattr(checks_network, "interface_towards", lambda host: f"eth3@{host}")
    assert_says(checks_network.interface({}, afar), "ok", "eth3@", f"towards {afar.host}")
    monkeypatch.setattr(checks_network, "interface_towards", lambda _: None)
    assert_says(checks_network.interface({}, afar), "error", "nothing leads to", "GLOO_SOCKET_IFNAME")
    assert_says(checks_network.interface({"GLOO_SOCKET_IFNAME": "lo"}, afar), "ok", "lo, by GLOO_SOCKET_IFNAME")
    assert_says(checks_network.interface({"GLOO_SOCKET_IFNAME": "eth77"}, afar), "error", "no eth77 here")


def test_a_host_that_lets_nobody_in():
    """Its queue is full, so that further connections are neither accepted nor refused."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(server.getsockname())
        time.sleep(0.1)
        began = time.monotonic()
        with pytest.raises(UserError, match=r"cannot be reached \(timed out\): start node 0, and let its port through"):
            checks_network.connect("127.0.0.1", server.getsockname()[1], until=began + 0.5)
        assert time.monotonic() - began < deadline(5)
