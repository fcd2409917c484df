"""Nodes that meet before a launch, through a store of torch's as the launcher's own, and compare what they have.

Node 0 opens the store at the address that the launcher is about to use, and closes it when all have left: the others
wait for that, so that no launcher of theirs finds this store in place of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist  # noqa: TID251 - its store, before there is a group

from alexnet_dist.config import flat
from alexnet_dist.doctor.checks_hardware import Finding, within
from alexnet_dist.doctor.checks_network import CONNECT_SECONDS, LOOK_SECONDS, STORE_SECONDS, Nodes, connect
from alexnet_dist.errors import UserError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

LEAVE_SECONDS = 10.0  # for all to leave
TOKEN_SECONDS = 3.0  # for a file to be seen through a network file system
# torch's c10d rendezvous takes a node for dead whose heartbeat looks older than 15 s (dynamic_rendezvous.py).
CLOCK_ERROR, CLOCK_WARNING = 10.0, 1.0  # seconds
MOST_WAITING = 4096  # connections to node 0 that nobody takes
VITAL = ("torch", "alexnet_dist", "sources", "nccl")  # versions that must be the same


@dataclass(frozen=True)
class Report:
    """What a node tells the others."""

    rank: int
    """0 is the one that the others go to; one that comes without a rank gets it there."""
    host: str
    versions: Mapping[str, str]
    command: Mapping[str, Any]
    """Its configuration, and the processes that it was told."""
    errors: Sequence[str] = ()
    """What is wrong on that node alone."""
    sees_token: bool = True
    """Whether the file is there that node 0 wrote into the run folder."""
    unreachable: str = ""
    """Why a port of node 0 other than the rendezvous's cannot be reached."""
    unnamed: str = ""
    """Why node 0 cannot be reached by its own name."""
    clock: float = 0.0
    """Seconds by which this node's clock is ahead of node 0's, too large by the network's delay."""

    def __str__(self) -> str:
        return f"node {self.rank} ({self.host})"


# ---- the meeting ----------------------------------------------------------------------------------------------------


def _key(*words: object) -> str:
    """Return a key in the store, which may be the launcher's and outlive its restarts."""
    return "/".join(map(str, ("alexnet_dist/doctor", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), *words)))


def _open(nodes: Nodes, *, serve: bool) -> Any:  # noqa: ANN401 - a store
    timeout = timedelta(seconds=STORE_SECONDS)
    return within(
        2 * STORE_SECONDS,  # a server that accepts and is silent would hold the constructor for ever
        lambda: dist.TCPStore(  # type: ignore[attr-defined] # missing from its list of names
            nodes.host, nodes.port, is_master=serve, wait_for_workers=False, timeout=timeout
        ),
    )


@contextlib.contextmanager
def token_in(folder: Path) -> Iterator[Path]:
    """Make a file that the other nodes look for; it goes, however the block ends. Node 0 alone calls it."""
    token = folder / f".doctor-{secrets.token_hex(8)}"
    try:
        with contextlib.suppress(OSError):  # said of the run folder already; then nobody sees it
            token.touch()
        yield token
    finally:
        with contextlib.suppress(OSError):
            token.unlink()


def hold(nodes: Nodes, mine: Report, *, token: Path, wait: float) -> list[Finding]:
    """Wait for the other nodes on node 0, compare all, and tell all what came of it.

    Args:
        nodes: who is to come.
        mine: node 0's report.
        token: the file that the others look for.
        wait: seconds until a node counts as missing.

    Returns:
        What is wrong between the nodes, and on each other one.
    """
    store = _open(nodes, serve=not nodes.launched)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=MOST_WAITING) as listener:
        greeting = {"token": token.name, "name": socket.getfqdn(), "port": listener.getsockname()[1]}
        store.set(_key("greeting"), json.dumps(greeting))
        came = _gather(store, nodes, wait=wait)
    ranks = sorted(came)
    reports = [mine, *(Report(**json.loads(store.get(_key("report", rank)))) for rank in ranks)]
    store.set(_key("clock"), repr(time.time()))
    offsets = _collect(store, "offset", ranks, seconds=STORE_SECONDS)
    reports = [replace(report, clock=float(offsets.get(report.rank, 0))) for report in reports]
    findings = [_presence(came, nodes, wait=wait), *compare(reports)]
    shared = [asdict(finding) for finding in findings]
    errors = {report.rank: [f"{report}: {error}" for error in report.errors] for report in reports}
    store.set(_key("verdict"), json.dumps({"findings": shared, "errors": errors}))
    _collect(store, "bye", ranks, seconds=LEAVE_SECONDS)
    return findings + [Finding("error", "other node", text) for rank in ranks for text in errors[rank]]


def attend(nodes: Nodes, mine: Report, *, folder: Path, wait: float) -> list[Finding]:
    """Tell node 0 about this one and return what it says of all; see `hold`.

    Args:
        nodes: who is to come.
        mine: this node's report.
        folder: in which node 0's file must be found.
        wait: seconds for node 0 to begin, and for the others to come.

    Raises:
        UserError: node 0 cannot be reached, does not answer, or has this node already.
    """
    place = f"{nodes.host}:{nodes.port}"
    with connect(nodes.host, nodes.port, until=time.monotonic() + wait) as line:
        try:
            store = _open(nodes, serve=False)
        except (RuntimeError, TimeoutError):
            message = f"what listens at {place} does not answer as a rendezvous: free that port, or choose another"
            raise UserError(message) from None
        greeting = _wait_for(store, "greeting", seconds=STORE_SECONDS)
        if greeting is None:
            message = f"a launch is under way at {place}: unless this node comes back to it, choose another port"
            return [Finding("warning", "nodes", message)]
        if nodes.rank is None:
            mine = replace(mine, rank=store.add(_key("places"), 1))
            if mine.rank >= nodes.most:
                raise UserError(f"more nodes came to {place} than --nnodes has: this one is number {mine.rank + 1}")
        if store.add(_key("came", mine.rank), 1) > 1:
            raise UserError(f"another node came to {place} as --node-rank {mine.rank}: give each node its own")
        store.set(_key("report", mine.rank), json.dumps(asdict(_look_round(mine, nodes, json.loads(greeting), folder))))
        clock = _wait_for(store, "clock", seconds=wait + STORE_SECONDS)
        offset = time.time() - float(clock or 0)
        store.set(_key("offset", mine.rank), repr(offset))
        verdict = _wait_for(store, "verdict", seconds=2 * STORE_SECONDS) if clock else None
        if verdict is None:
            raise UserError(f"node 0 at {place} went silent: see what it says")
        store.set(_key("bye", mine.rank), "")
        if not nodes.launched:
            line.settimeout(LEAVE_SECONDS)
            with contextlib.suppress(OSError):
                line.recv(1)  # nothing comes: it ends when node 0 closes the store
    said = json.loads(verdict)
    others = [text for rank, texts in said["errors"].items() if int(rank) != mine.rank for text in texts]
    return [Finding(**finding) for finding in said["findings"]] + [Finding("error", "other node", t) for t in others]


def _look_round(mine: Report, nodes: Nodes, greeting: Mapping[str, Any], folder: Path) -> Report:
    """Add to a report what only another node than the first can see."""
    token, end = folder / greeting["token"], time.monotonic() + TOKEN_SECONDS
    while not (seen := token.exists()) and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
    return replace(
        mine,
        sees_token=seen,
        unreachable=_connection_fault(nodes.host, greeting["port"]),
        unnamed=_connection_fault(greeting["name"], greeting["port"]),
    )


def _connection_fault(host: str, port: int) -> str:
    try:
        within(2 * CONNECT_SECONDS, lambda: socket.create_connection((host, port), timeout=CONNECT_SECONDS).close())
    except (OSError, UnicodeError) as error:
        return f"{host}:{port}, {first_line(error)}"
    return ""


def _wait_for(store: Any, name: str, *, seconds: float) -> str | None:  # noqa: ANN401 - a store
    try:
        store.wait([_key(name)], timedelta(seconds=seconds))
        return str(store.get(_key(name)).decode())
    except RuntimeError:  # time is up, or the other end is gone
        return None


def _gather(store: Any, nodes: Nodes, *, wait: float) -> Counter[int]:  # noqa: ANN401 - a store
    """Wait for all nodes, or for the fewest that do and a little longer; return how many came under each rank."""
    end, expected = time.monotonic() + wait, range(1, nodes.most)
    while True:
        here = [rank for rank in expected if store.check([_key("report", rank)])]
        if len(here) + 1 >= nodes.least:
            end = min(end, time.monotonic() + STORE_SECONDS) if nodes.least < nodes.most else end
        if len(here) == len(expected) or time.monotonic() >= end:
            return Counter({rank: store.add(_key("came", rank), 0) for rank in here})
        time.sleep(LOOK_SECONDS)


def _collect(store: Any, name: str, ranks: Sequence[int], *, seconds: float) -> dict[int, str]:  # noqa: ANN401 - a store
    """Return what each rank set under a name, without those that did not in time."""
    end = time.monotonic() + seconds
    while missing := [rank for rank in ranks if not store.check([_key(name, rank)])]:
        if time.monotonic() >= end:
            break
        time.sleep(LOOK_SECONDS)
    return {rank: store.get(_key(name, rank)).decode() for rank in ranks if rank not in missing}


# ---- what is compared -----------------------------------------------------------------------------------------------


def _presence(came: Counter[int], nodes: Nodes, *, wait: float) -> Finding:
    """Say which nodes are there."""
    if twice := [rank for rank, times in came.items() if times > 1]:
        message = f"several nodes came as --node-rank {twice[0]}: give each node its own"
        return Finding("error", "nodes", message)
    present = len(came) + 1
    missing = ", ".join(str(rank) for rank in range(1, nodes.most) if rank not in came)
    if present < nodes.least:
        way_out = "start the same there with its --node-rank, or see what it says"
        message = f"{present} of {nodes.least} came within {wait:.0f} s; missing: node {missing}. {way_out[0].upper()}"
        return Finding("error", "nodes", message + way_out[1:])
    if missing:
        return Finding("warning", "nodes", f"{present} of {nodes.most} are there, enough to begin; missing: {missing}")
    return Finding("ok", "nodes", f"all {present} are there")


def compare(reports: Sequence[Report]) -> list[Finding]:
    """Compare what the nodes told, node 0 first."""
    if len(reports) == 1:
        return []
    return [versions(reports), commands(reports), shared_folder(reports), ports(reports), clocks(reports)]


def _first_other(reports: Sequence[Report], value: Callable[[Report], object]) -> Report | None:
    """Return the first node that differs from node 0."""
    return next((report for report in reports if value(report) != value(reports[0])), None)


def versions(reports: Sequence[Report]) -> Finding:
    """Look for a node with other software."""
    head, differing, level = reports[0], [], "ok"
    for key in head.versions:
        other = _first_other(reports, lambda report, key=key: report.versions.get(key))  # type: ignore[misc]
        if other is None or key == "commit":  # of two commits with the same sources, nothing differs
            continue
        level = "error" if key in VITAL or level == "error" else "warning"
        shown = "commit" if key == "sources" else key
        here, there = (report.versions.get(shown) for report in (head, other))
        subject = "the sources differ: commit" if key == "sources" else key
        differing.append(f"{subject} {here} on {head}, {there} on {other}")
    if differing:
        return Finding(level, "versions", f"{'; '.join(differing)}: install the same on all nodes")  # type: ignore[arg-type]
    return Finding("ok", "versions", f"alexnet_dist {head.versions['alexnet_dist']}, torch {head.versions['torch']}")


def commands(reports: Sequence[Report]) -> Finding:
    """Look for a node that was told to do something else."""
    head = reports[0]
    other = _first_other(reports, lambda report: report.command)
    if other is None:
        return Finding("ok", "options", "the same on all nodes")
    mine, theirs = flat(dict(head.command)), flat(dict(other.command))
    named = next(key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key))
    message = f"{named} is {mine.get(named)} on {head} and {theirs.get(named)} on {other}: give all the same options"
    return Finding("error", "options", message)


def shared_folder(reports: Sequence[Report]) -> Finding:
    """Look for a node that does not see what node 0 writes."""
    folder = reports[0].command.get("out_dir") or "runs"
    blind = next((report for report in reports if not report.sees_token), None)
    if blind is None:
        return Finding("ok", "shared", f"all nodes see what node 0 writes to {folder}")
    message = f"{blind} does not see what node 0 writes to {folder}: name a folder by --out-dir that all nodes mount"
    return Finding("error", "shared", message)


def ports(reports: Sequence[Report]) -> Finding:
    """Look for a node that reaches nothing of node 0 but the rendezvous."""
    if closed := next((report for report in reports if report.unreachable), None):
        message = f"{closed} cannot reach {closed.unreachable}: ranks use ports that the system chooses; open them all"
        return Finding("error", "ports", message)
    if closed := next((report for report in reports if report.unnamed), None):
        way_out = "the c10d rendezvous gives ranks that name; put it into /etc/hosts, or use --rdzv_backend static"
        return Finding("warning", "ports", f"{closed} cannot reach node 0 by its name ({closed.unnamed}): {way_out}")
    return Finding("ok", "ports", "all nodes reach node 0 on a port of its system's choice, and by its name")


def clocks(reports: Sequence[Report]) -> Finding:
    """Compare the clocks: the earliest and the latest of all."""
    early, late = (choose(reports, key=lambda report: report.clock) for choose in (min, max))
    skew = late.clock - early.clock
    message = f"{late} is {skew:.1f} s ahead of {early}"
    way_out = "synchronise the clocks (chrony or systemd-timesyncd)"
    if skew >= CLOCK_ERROR:
        return Finding("error", "clocks", f"{message}, and torch's rendezvous bears 15 s: {way_out}")
    if skew >= CLOCK_WARNING:
        return Finding("warning", "clocks", f"{message}: {way_out}")
    return Finding("ok", "clocks", f"within {max(skew, 0.1):.1f} s")
