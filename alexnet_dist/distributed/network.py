"""Network interfaces: over which one the ranks reach each other."""

import os
import socket

import psutil


def gloo_interface() -> str | None:
    """Return the network interface over which gloo should connect the ranks; None leaves the choice to it.

    By itself it takes the interface of the host's name, which Debian gives a loopback address: other machines would be
    told to connect to themselves. Where all ranks are on this machine, loopback is right, as gloo's connections are
    neither authenticated nor encrypted; else it is the interface that leads to rank 0.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "LOCAL_WORLD_SIZE" not in os.environ or "GLOO_SOCKET_IFNAME" in os.environ:
        return None
    if world_size == int(os.environ["LOCAL_WORLD_SIZE"]):
        return _loopback()
    found = interface_towards(os.environ["MASTER_ADDR"])
    return None if found == _loopback() else found


def _loopback() -> str | None:
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)


def interface_towards(host: str) -> str | None:
    """Return the network interface by which a packet to a host would leave, or None for an unknown host."""
    try:
        address = _own_address(host)
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    names = [name for name, addresses in interfaces if any(found.address == address for found in addresses)]
    return next((name for name in names if name != _loopback()), names[0] if names else None)


def _own_address(host: str) -> str:
    """Return the address under which a host sees this one; nothing is sent."""
    family, *_, target = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as way:
        way.connect(target)
        return str(way.getsockname()[0])
