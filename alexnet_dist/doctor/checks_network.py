"""Checks of the rendezvous address, its port and the network interface towards it."""

import socket
import time
from collections.abc import Mapping

from alexnet_dist.distributed.topology import interface_towards
from alexnet_dist.doctor.check_result import CheckResult, Nodes, error, ok, warning, within
from alexnet_dist.errors import UserError, first_line

ACCELERATE_PORT = 29500  # default of `accelerate launch`
LOOK_SECONDS = 0.1  # between two attempts to connect
CONNECT_SECONDS = 3.0  # until an attempt to connect fails
STORE_SECONDS = 5.0  # until a name server or a store must have answered


def addresses(host: str, *, seconds: float = STORE_SECONDS) -> list[str]:
    """Return a host's addresses; an empty list if its name is unknown or no name server answers in time."""
    try:
        found = within(seconds, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):  # TimeoutError too
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_loopback(address: str) -> bool:
    """Return whether an address is a loopback address."""
    return address.startswith("127.") or address == "::1"


def is_here(host: str) -> bool:
    """Return whether a host is this machine, that is whether one of its addresses can be bound."""
    return any(port_is_free(0, at=address) for address in addresses(host))


def port_is_free(port: int, *, at: str = "") -> bool:
    """Return whether a server could listen on a port: of one address, or of all interfaces, as torch's store does."""
    family = socket.AF_INET6 if ":" in at else socket.AF_INET
    try:
        socket.create_server((at, port), family=family).close()
    except OSError:
        return False
    return True


def address(nodes: Nodes) -> CheckResult:
    """Check the rendezvous address: it resolves, is node 0's and no loopback address, and its port is free."""
    place = f"{nodes.host}:{nodes.port}"
    if nodes.launched:
        return ok("rendezvous", f"{place}, formed by the launcher")
    if not (found := addresses(nodes.host)):
        return error("rendezvous", f"{nodes.host} has no address here: correct --rdzv, or give node 0's address")
    if nodes.rank == 0:
        if not any(port_is_free(0, at=own) for own in found):
            return error("rendezvous", f"{nodes.host} ({found[0]}) is no address of this machine: --rdzv names node 0")
        if not port_is_free(nodes.port):
            return error("rendezvous", f"port {nodes.port} is taken: free it, or choose another port for all nodes")
    if all(map(is_loopback, found)):
        remedy = "on several machines name one that all reach by --rdzv"
        return warning("rendezvous", f"{nodes.host} is each machine's own address: {remedy}")
    return ok("rendezvous", f"{place}, {'free' if nodes.rank == 0 else found[0]}")


def launcher_port(environment: Mapping[str, str], *, processes: int) -> CheckResult | None:
    """Check the port of `accelerate launch` for several processes on a single node; None if it needs no port."""
    if processes < 2 or "WORLD_SIZE" in environment:
        return None
    if port_is_free(ACCELERATE_PORT):
        return ok("port", f"{ACCELERATE_PORT} is free")
    remedy = "give --main_process_port 0, or let Accelerate choose one by itself"
    return warning("port", f"{ACCELERATE_PORT} is taken, perhaps by another run here: {remedy}")


def interface(environment: Mapping[str, str], nodes: Nodes) -> CheckResult | None:
    """Check the interface of gloo, which carries control messages between nodes even if NCCL reduces gradients.

    Args:
        environment: with GLOO_SOCKET_IFNAME, if it is set.
        nodes: the rendezvous address.

    Returns:
        The result; None for a loopback address, when all nodes are on this machine.
    """
    known = [name for _, name in socket.if_nameindex()]
    others = ", ".join(name for name in known if name != "lo")
    if chosen := environment.get("GLOO_SOCKET_IFNAME"):
        if missing := [name for name in chosen.split(",") if name not in known]:
            return error("interface", f"GLOO_SOCKET_IFNAME={chosen}: no {missing[0]} here, but {others}")
        return ok("interface", f"{chosen}, by GLOO_SOCKET_IFNAME")
    if all(map(is_loopback, addresses(nodes.host))):
        return None
    if name := interface_towards(nodes.host):
        return ok("interface", f"{name}, towards {nodes.host}")
    remedy = f"set GLOO_SOCKET_IFNAME to the interface towards the other nodes ({others})"
    return error("interface", f"nothing leads to {nodes.host}: {remedy}")


def connect(host: str, port: int, *, until: float) -> socket.socket:
    """Return a connection to node 0, which may not listen yet: attempts are repeated until the deadline.

    Args:
        host: name or address of node 0.
        port: of node 0.
        until: the deadline, by the monotonic clock, in seconds.

    Raises:
        UserError: no attempt succeeded before the deadline.
    """
    while True:
        left = until - time.monotonic()
        try:
            return socket.create_connection((host, port), timeout=max(0.1, min(CONNECT_SECONDS, left)))
        except OSError as fault:
            if left <= 0:
                remedy = "start node 0, and let its port through the firewall"
                raise UserError(f"{host}:{port} cannot be reached ({first_line(fault)}): {remedy}") from None
        time.sleep(LOOK_SECONDS)
