"""The address at which nodes meet, and what stands in its way: names, ports, interfaces."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alexnet_dist.distributed.network import interface_towards
from alexnet_dist.doctor.checks_hardware import Finding, within
from alexnet_dist.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCELERATE_PORT = 29500  # of `accelerate launch`, where nothing names another
LOOK_SECONDS = 0.1  # between two attempts, or two looks for a node that has not come
CONNECT_SECONDS = 3.0  # of one attempt
STORE_SECONDS = 5.0  # for a name or a store to be answered, and for node 0's doctor to have greeted


@dataclass(frozen=True)
class Nodes:
    """Which nodes are to meet, and where."""

    least: int
    most: int
    rank: int | None
    """Of this node; None is any but 0, as they come."""
    host: str
    port: int
    launched: bool = False
    """Whether a launcher has formed the world already, and its store is there."""


def addresses(host: str, *, seconds: float = STORE_SECONDS) -> list[str]:
    """Return a host's addresses; none where its name is unknown or nobody answers."""
    try:
        found = within(seconds, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):  # TimeoutError too
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_loopback(address: str) -> bool:
    """Tell whether an address is each machine's own."""
    return address.startswith("127.") or address == "::1"


def is_here(host: str) -> bool:
    """Tell whether a host is this one, to which only its own addresses can be bound."""
    return any(port_is_free(0, at=address) for address in addresses(host))


def port_is_free(port: int, *, at: str = "") -> bool:
    """Tell whether a server could listen there: on all interfaces, as torch's store does, unless one is given."""
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((at, port))
            probe.listen()
        except OSError:
            return False
    return True


def address(nodes: Nodes) -> Finding:
    """Look at the address before anything is opened there."""
    what, place = "rendezvous", f"{nodes.host}:{nodes.port}"
    if nodes.launched:
        return Finding("ok", what, f"{place}, formed by the launcher")
    found = addresses(nodes.host)
    if not found:
        message = f"the host {nodes.host} has no address here: correct --rdzv, or give the address of node 0"
        return Finding("error", what, message)
    if nodes.rank == 0:
        if not any(port_is_free(0, at=own) for own in found):
            message = f"{nodes.host} ({found[0]}) is no address of this machine: --rdzv names node 0, which is this one"
            return Finding("error", what, message)
        if not port_is_free(nodes.port):
            message = f"port {nodes.port} is taken by another process: end it, or choose another port for all nodes"
            return Finding("error", what, message)
    if all(map(is_loopback, found)):
        message = f"{nodes.host} is each machine's own address: on several machines name one that all reach by --rdzv"
        return Finding("warning", what, message)
    return Finding("ok", what, f"{place}, {'free' if nodes.rank == 0 else found[0]}")


def launcher_port(environment: Mapping[str, str], *, processes: int) -> Finding | None:
    """Look at the port that `accelerate launch` takes for the processes of a single node; None where it needs none."""
    if processes < 2 or "WORLD_SIZE" in environment:
        return None
    if port_is_free(ACCELERATE_PORT):
        return Finding("ok", "port", f"{ACCELERATE_PORT} is free")
    message = f"{ACCELERATE_PORT} is taken, perhaps by another run here: give --main_process_port 0, or let Accelerate"
    return Finding("warning", "port", f"{message} choose one by itself")


def interface(environment: Mapping[str, str], nodes: Nodes) -> Finding | None:
    """Look where gloo will listen, over which ranks of several nodes agree even where NCCL sums gradients.

    Args:
        environment: with GLOO_SOCKET_IFNAME, if it is set.
        nodes: who is to meet; on a loopback address they are all on this machine.
    """
    known = [name for _, name in socket.if_nameindex()]
    others = ", ".join(name for name in known if name != "lo")
    if chosen := environment.get("GLOO_SOCKET_IFNAME"):
        if missing := [name for name in chosen.split(",") if name not in known]:
            return Finding("error", "interface", f"GLOO_SOCKET_IFNAME={chosen}: no {missing[0]} here, but {others}")
        return Finding("ok", "interface", f"{chosen}, by GLOO_SOCKET_IFNAME")
    if all(map(is_loopback, addresses(nodes.host))):
        return None
    if name := interface_towards(nodes.host):
        return Finding("ok", "interface", f"{name}, towards {nodes.host}")
    message = (
        f"nothing leads to {nodes.host}: set GLOO_SOCKET_IFNAME to the interface towards the other nodes ({others})"
    )
    return Finding("error", "interface", message)


def connect(host: str, port: int, *, until: float) -> socket.socket:
    """Connect, again and again: node 0 may not have begun.

    Raises:
        UserError: nobody listened until then, a time of the monotonic clock.
    """
    while True:
        left = until - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(0.1, min(CONNECT_SECONDS, left)))
        except OSError as error:
            if left <= 0:
                way_out = "start node 0, and let its port through the firewall"
                raise UserError(f"{host}:{port} cannot be reached ({first_line(error)}): {way_out}") from None
        time.sleep(LOOK_SECONDS)
