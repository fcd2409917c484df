"""Topology of a run: its hosts, the links and network interfaces between them, and the bandwidth of an all-reduce."""

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist  # noqa: TID251 - an all-reduce to be timed, without Accelerate's copy of the tensor
from accelerate import Accelerator
from accelerate.utils import gather_object

from alexnet_dist.distributed.hardware import device_name, synchronize

Facts = dict[str, Any]
ROUNDS = 3  # the best of them counts, as for matrix products


def survey(accelerator: Accelerator, *, num_parameters: int, probe: bool) -> Facts:
    """Return the facts of the run's hosts and of the links between them. Every rank must call it.

    Args:
        accelerator: of the run.
        num_parameters: whose gradients the probe sends, in float32.
        probe: time an all-reduce of them: three, and one to warm up.
    """
    several = accelerator.num_processes > 1
    mine = (socket.gethostname(), device_name(accelerator.device), interconnect(os.environ))
    hosts, devices, links = zip(*gather_object([mine]), strict=True)
    facts: Facts = {
        "hosts": dict(Counter(hosts)),
        "devices": dict(Counter(devices)),
        "backend": dist.get_backend() if several else None,
        "interconnect": _joined(hosts, links) if several else None,
    }
    if several and probe:
        facts |= all_reduce(accelerator, num_bytes=4 * num_parameters)
    return facts


def all_reduce(accelerator: Accelerator, *, num_bytes: int) -> Facts:
    """Time the sum of a float32 tensor over all processes. Every rank must call it.

    Returns:
        Its bytes, the milliseconds of the fastest round on the slowest rank, and the bus bandwidth in GB/s: what each
        link carries, 2 (P - 1) / P of the bytes in that time (NVIDIA's nccl-tests, PERFORMANCE.md).
    """
    device, ranks = accelerator.device, accelerator.num_processes
    values = torch.ones(num_bytes // 4, device=device)
    dist.all_reduce(values)
    rounds = []
    for _ in range(ROUNDS):
        accelerator.wait_for_everyone()
        started = time.perf_counter()
        dist.all_reduce(values)
        synchronize(device)
        rounds.append(time.perf_counter() - started)
    slowest = torch.tensor(rounds, dtype=torch.float64, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    seconds = float(slowest.min().item())
    return {
        "allreduce_bytes": num_bytes,
        "allreduce_ms": 1000 * seconds,
        "allreduce_gb_per_second": 2 * (ranks - 1) / ranks * num_bytes / seconds / 1e9,
    }


def words(facts: Mapping[str, Any]) -> str:
    """Return the facts that `survey` returned as one line."""
    hosts = facts["hosts"]
    names = ", ".join(f"{name} ({count})" for name, count in sorted(hosts.items())[:4])
    more = ", ..." if len(hosts) > 4 else ""
    text = f"{len(hosts)} host{'s' * (len(hosts) != 1)}: {names}{more}; {facts['backend']} over {facts['interconnect']}"
    if "allreduce_ms" in facts:
        size, rate = facts["allreduce_bytes"] / 1e6, facts["allreduce_gb_per_second"]
        text += f"; all-reduce of {size:.0f} MB in {facts['allreduce_ms']:,.0f} ms, {rate:.3g} GB/s"
    return text


def interconnect(environment: Mapping[str, str], *, sysfs: Path = Path("/sys/class")) -> str:
    """Return the link by which this host reaches the first one, with its speed where the system knows it.

    InfiniBand where there is an active port, as NCCL prefers it; else the network interface that is chosen by
    GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, or that leads to MASTER_ADDR.
    """
    for state in sorted(sysfs.glob("infiniband/*/ports/*/state")):
        if "ACTIVE" in _read(state) and environment.get("NCCL_IB_DISABLE", "0") == "0" and torch.cuda.is_available():
            return f"{state.parts[-4]} ({_read(state.with_name('rate'))})"
    name = environment.get("GLOO_SOCKET_IFNAME") or environment.get("NCCL_SOCKET_IFNAME")
    name = name or interface_towards(environment.get("MASTER_ADDR", "127.0.0.1"))
    if name is None:
        return "an unknown link"
    speed = _read(sysfs / "net" / name / "speed")
    return f"{name} ({int(speed):,} Mbit/s)" if speed.isdigit() and int(speed) > 0 else name


def _joined(hosts: Sequence[str], links: Sequence[str]) -> str:
    """Return the links of all hosts; on one host with several GPUs, how these reach each other."""
    if len(set(hosts)) == 1 and torch.cuda.is_available():
        peers = all(torch.cuda.can_device_access_peer(0, other) for other in range(1, torch.cuda.device_count()))
        return "peer access (NVLink or PCIe)" if peers else "host memory"
    return ", ".join(sorted(set(links)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):  # not every interface has a speed
        return ""


# ---- interfaces -----------------------------------------------------------------------------------------------------


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
