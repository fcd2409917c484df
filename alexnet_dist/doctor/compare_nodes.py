"""Comparison of all nodes before a launch: reports exchanged through a torch TCPStore, and the checks over them.

Node 0 opens the store at the address that the launcher is about to use. The other nodes return only after node 0 has
closed it, so that no launcher connects to this store in place of its own.

The exchange, by keys of the store:
1. node 0 sets `start`, the file and the port that the other nodes are to probe;
2. each other node takes a number from `arrivals`, probes, takes a number from `probed` and sets `report/NUMBER`;
3. node 0 sets `reports`, all reports in that order;
4. each other node sets `left/NUMBER`, and node 0 closes the store.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined] # noqa: TID251 - before any group

from alexnet_dist.config import flat
from alexnet_dist.doctor.check_result import CheckResult, Nodes, error, ok, warning, within
from alexnet_dist.doctor.checks_network import CONNECT_SECONDS, LOOK_SECONDS, STORE_SECONDS, connect
from alexnet_dist.errors import UserError, first_line

LEAVE_SECONDS = 10.0  # wait for every node to read the reports, and for node 0 to close the store
TOKEN_SECONDS = 3.0  # wait for a new file to become visible through a network file system
# torch's c10d rendezvous counts a node as dead whose heartbeat seems older than 15 s (dynamic_rendezvous.py).
CLOCK_ERROR, CLOCK_WARNING = 10.0, 1.0  # seconds
BACKLOG = 4096  # connections that wait at node 0's probe port; they are never accepted
VITAL = ("torch", "alexnet_dist", "sources", "nccl")  # versions that must not differ


@dataclass(frozen=True)
class Report:
    """State of one node, as the other nodes receive it."""

    rank: int
    """Node rank; a node without `--node-rank` takes its arrival number."""
    host: str
    versions: Mapping[str, str]
    command: Mapping[str, Any]
    """The run's configuration and the number of nodes and processes, nested as in the YAML file."""
    errors: Sequence[str] = ()
    """Errors of the checks on that node alone."""
    sees_token: bool = True
    """Whether the file that node 0 wrote into the run folder is visible on that node."""
    unreachable: str = ""
    """Why a port of node 0 besides the rendezvous port cannot be reached; empty if it can."""
    unnamed: str = ""
    """Why node 0 cannot be reached by its own host name; empty if it can."""
    clock: float = 0.0
    """Seconds by which the node's clock is ahead of node 0's, too small by the network's delay."""

    def __str__(self) -> str:
        return f"node {self.rank} ({self.host})"


# ---- exchange of reports --------------------------------------------------------------------------------------------


def serve(nodes: Nodes, mine: Report, *, token: Path, wait: float) -> list[CheckResult]:
    """Return the comparison of all nodes, on node 0, which serves the store; every other node calls `join`.

    Args:
        nodes: how many nodes, and the store's address.
        mine: node 0's report.
        token: path of the file in the run folder that the other nodes look for.
        wait: seconds until a node counts as missing.
    """
    store = _open(nodes, is_master=not nodes.launched)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    reports, end = [mine], time.monotonic() + wait
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=BACKLOG) as probe:
        store.set("start", json.dumps({"token": token.name, "name": socket.getfqdn(), "port": probe.getsockname()[1]}))
        while len(reports) < nodes.most:
            if len(reports) >= nodes.least:
                end = min(end, time.monotonic() + STORE_SECONDS)
            if (received := _receive(store, f"report/{len(reports)}", seconds=end - time.monotonic())) is None:
                break
            reports.append(Report(**received["report"] | {"clock": received["time"] - time.time()}))
    store.set("reports", json.dumps([asdict(report) for report in reports]))
    with contextlib.suppress(RuntimeError):  # a lost node must not delay the others
        store.wait([f"left/{number}" for number in range(1, len(reports))], timedelta(seconds=LEAVE_SECONDS))
    return compare(reports, 0, nodes, wait=wait)


def join(nodes: Nodes, mine: Report, *, token: Path, wait: float) -> list[CheckResult]:
    """Return the comparison of all nodes, on a node other than 0; see `serve`.

    Args:
        nodes: how many nodes, and the store's address.
        mine: this node's report.
        token: a path in the run folder, where node 0's file must be visible.
        wait: seconds until node 0 must listen, and until all reports must have come.

    Raises:
        UserError: node 0 cannot be reached or does not answer, or `nodes.most` nodes have come already.
    """
    place = f"{nodes.host}:{nodes.port}"
    connect(nodes.host, nodes.port, until=time.monotonic() + wait).close()
    try:
        store = _open(nodes, is_master=False)
    except (RuntimeError, TimeoutError):
        message = f"what listens at {place} does not answer as a rendezvous: free that port, or choose another"
        raise UserError(message) from None
    if (start := _receive(store, "start", seconds=STORE_SECONDS)) is None:
        message = f"a launch is under way at {place}: unless this node comes back to it, choose another port"
        return [warning("nodes", message)]
    if (arrival := store.add("arrivals", 1)) >= nodes.most:
        raise UserError(f"node {arrival + 1} came to {place}, more than --nnodes has: stop it, or raise --nnodes")
    mine = _probe(replace(mine, rank=nodes.rank or arrival), start, nodes.host, token.parent)
    number = store.add("probed", 1)  # not the arrival number: a slow or lost node delays no other
    store.set(f"report/{number}", json.dumps({"report": asdict(mine), "time": time.time()}))
    if (received := _receive(store, "reports", seconds=wait + 3 * STORE_SECONDS)) is None:
        raise UserError(f"node 0 at {place} no longer answers: see what it prints")
    store.set(f"left/{number}", "")
    if not nodes.launched:
        with contextlib.suppress(RuntimeError):  # the connection ends when node 0 closes the store
            store.wait(["closed"], timedelta(seconds=LEAVE_SECONDS))
    return compare([Report(**fields) for fields in received], number, nodes, wait=wait)


def _open(nodes: Nodes, *, is_master: bool) -> Any:  # noqa: ANN401 - a store
    """Return a store with a prefix for its keys: the store may be the launcher's and outlive its restarts."""
    prefix = f"alexnet_dist/doctor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    timeout = timedelta(seconds=STORE_SECONDS)
    store = partial(TCPStore, nodes.host, nodes.port, is_master=is_master, wait_for_workers=False, timeout=timeout)
    # The constructor itself has no deadline for a server that accepts and is silent.
    return PrefixStore(prefix, within(2 * STORE_SECONDS, store))


def _receive(store: Any, key: str, *, seconds: float) -> Any:  # noqa: ANN401 - JSON from a store
    """Return the value of a key; None if the key is not set in time or the server is gone."""
    try:
        store.wait([key], timedelta(seconds=max(0.1, seconds)))  # 0 would be no deadline
        return json.loads(store.get(key))
    except RuntimeError:
        return None


def _probe(mine: Report, start: Mapping[str, Any], host: str, folder: Path) -> Report:
    """Return a report with the fields about node 0 set: whether its file is visible, its port and name reachable."""
    end = time.monotonic() + TOKEN_SECONDS
    while not (seen := (folder / start["token"]).exists()) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    unreachable, unnamed = (_connection_fault(name, start["port"]) for name in (host, start["name"]))
    return replace(mine, sees_token=seen, unreachable=unreachable, unnamed=unnamed)


def _connection_fault(host: str, port: int) -> str:
    """Return why a port cannot be reached; empty if it can."""
    try:
        within(2 * CONNECT_SECONDS, lambda: socket.create_connection((host, port), timeout=CONNECT_SECONDS).close())
    except (OSError, UnicodeError) as fault:
        return f"{host}:{port}, {first_line(fault)}"
    return ""


# ---- checks over all reports ----------------------------------------------------------------------------------------


def compare(reports: Sequence[Report], own: int, nodes: Nodes, *, wait: float) -> list[CheckResult]:
    """Return the results of all checks over the reports, and the errors of every node but `reports[own]`."""
    ordered = sorted(reports, key=lambda report: report.rank)
    others = (report for report in ordered if report is not reports[own])
    errors = [error("other node", f"{report}: {fault}") for report in others for fault in report.errors]
    checks = (versions, options, shared_folder, ports, clocks) if len(reports) > 1 else ()
    return [presence([report.rank for report in ordered], nodes, wait=wait), *(c(ordered) for c in checks), *errors]


def presence(ranks: Sequence[int], nodes: Nodes, *, wait: float) -> CheckResult:
    """Check that enough nodes came, each with a rank of its own."""
    if twice := [rank for rank in ranks if ranks.count(rank) > 1]:
        return error("nodes", f"several nodes came as --node-rank {twice[0]}: give each node its own")
    missing = ", ".join(str(rank) for rank in range(nodes.most) if rank not in ranks)
    if len(ranks) < nodes.least:
        came = f"{len(ranks)} of {nodes.least} came within {wait:.0f} s; missing: node {missing}"
        return error("nodes", f"{came}. Start the same there with its --node-rank, or see what it says")
    if missing:
        return warning("nodes", f"{len(ranks)} of {nodes.most} are there, enough to begin; missing: {missing}")
    return ok("nodes", f"all {len(ranks)} are there")


def versions(reports: Sequence[Report]) -> CheckResult:
    """Check that all nodes have the same software."""
    head, differing, level = reports[0], [], warning
    for key in head.versions:
        other = next((report for report in reports if report.versions.get(key) != head.versions[key]), None)
        if other is None or key == "commit":  # two commits with the same sources do not differ
            continue
        level = error if key in VITAL else level
        shown, subject = ("commit", "the sources differ: commit") if key == "sources" else (key, key)
        differing.append(f"{subject} {head.versions[shown]} on {head}, {other.versions.get(shown)} on {other}")
    if differing:
        return level("versions", f"{'; '.join(differing)}: install the same on all nodes")
    return ok("versions", f"alexnet_dist {head.versions['alexnet_dist']}, torch {head.versions['torch']}")


def options(reports: Sequence[Report]) -> CheckResult:
    """Check that all nodes have the same options."""
    head = reports[0]
    if (other := next((report for report in reports if report.command != head.command), None)) is None:
        return ok("options", "the same on all nodes")
    mine, theirs = flat(dict(head.command)), flat(dict(other.command))
    key = next(key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key))
    values = f"{mine.get(key)} on {head} and {theirs.get(key)} on {other}"
    return error("options", f"{key} is {values}: give all the same options")


def shared_folder(reports: Sequence[Report]) -> CheckResult:
    """Check that all nodes see the file that node 0 wrote into the run folder."""
    written = f"what node 0 writes to {reports[0].command.get('out_dir') or 'runs'}"
    if blind := next((report for report in reports if not report.sees_token), None):
        return error("shared", f"{blind} does not see {written}: name a folder by --out-dir that all nodes mount")
    return ok("shared", f"all nodes see {written}")


def ports(reports: Sequence[Report]) -> CheckResult:
    """Check that all nodes reach node 0 on a port other than the rendezvous's, and by its host name."""
    if closed := next((report for report in reports if report.unreachable), None):
        remedy = "ranks use ports that the system chooses; open them all"
        return error("ports", f"{closed} cannot reach {closed.unreachable}: {remedy}")
    if closed := next((report for report in reports if report.unnamed), None):
        remedy = "the c10d rendezvous gives ranks that name; put it into /etc/hosts, or use --rdzv_backend static"
        return warning("ports", f"{closed} cannot reach node 0 by its name ({closed.unnamed}): {remedy}")
    return ok("ports", "all nodes reach node 0 on a port of its system's choice, and by its name")


def clocks(reports: Sequence[Report]) -> CheckResult:
    """Check the clocks: the difference between the earliest and the latest, an error from `CLOCK_ERROR` seconds on."""
    early, late = (choose(reports, key=lambda report: report.clock) for choose in (min, max))
    skew = late.clock - early.clock
    if skew < CLOCK_WARNING:
        return ok("clocks", f"within {max(skew, 0.1):.1f} s")
    fault = f"{late} is {skew:.1f} s ahead of {early}, and torch's rendezvous bears 15 s"
    level = error if skew >= CLOCK_ERROR else warning
    return level("clocks", f"{fault}: synchronise the clocks (chrony or systemd-timesyncd)")
