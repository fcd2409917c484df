"""Nodes that meet before a run, and what differs between them."""

import re
import threading
import time
from pathlib import Path

import pytest
from preflight import VERSIONS, assert_says, nodes_at, report
from ranks import free_port
from torch.distributed import TCPStore  # noqa: TID251 - stands in for a launcher's

from alexnet_dist.doctor import checks_network, compare_nodes
from alexnet_dist.errors import UserError


@pytest.mark.parametrize(
    ("changes", "what", "level", "fragments"),
    [
        ({}, None, "ok", []),
        ({"versions": {**VERSIONS, "commit": "c1"}}, None, "ok", []),
        (
            {"versions": {**VERSIONS, "torch": "2.10.0"}},
            "versions",
            "error",
            ["torch 2.14.1 on node 0", "2.10.0 on node 1"],
        ),
        (
            {"versions": {**VERSIONS, "sources": "b", "commit": "c1"}},
            "versions",
            "error",
            ["commit c0 on node 0", "c1 on node 1"],
        ),
        ({"versions": {**VERSIONS, "python": "3.12.0"}}, "versions", "warning", ["install the same on all nodes"]),
        (
            {"command": {"seed": 0, "optim": {"lr": 0.2}}},
            "options",
            "error",
            ["optim.lr is 0.1 on", "0.2 on node 1"],
        ),
        ({"sees_token": False}, "shared", "error", ["node 1 (host1) does not see", "--out-dir that all nodes mount"]),
        ({"unreachable": "head:4711, timed out"}, "ports", "error", ["cannot reach head:4711", "open them all"]),
        ({"unnamed": "head:4711, unknown"}, "ports", "warning", ["by its name", "/etc/hosts"]),
        ({"clock": 3.0}, "clocks", "warning", ["node 1 (host1) is 3.0 s ahead of node 0 (host0)", "chrony"]),
        ({"clock": -60.0}, "clocks", "error", ["node 0 (host0) is 60.0 s ahead of node 1", "bears 15 s"]),
    ],
)
def test_nodes_are_compared(changes, what, level, fragments):
    findings = compare_nodes.compare([report(0), report(1, **changes), report(2)])
    assert [finding.what for finding in findings] == ["versions", "options", "shared", "ports", "clocks"]
    for finding in findings:
        assert_says(finding, level if finding.what == what else "ok", *(fragments if finding.what == what else []))


def test_a_node_alone_has_nothing_to_compare():
    assert compare_nodes.compare([report(0)]) == []


def meet(*attending, wait=10.0, least=2, most=2, port=None, launched=False, numbered=True):
    """Let node 0 and these, each on a thread, meet; return what each is told, or the error that it meets with."""
    port, results = port or free_port(), {}

    def attend(index, mine):
        nodes = checks_network.Nodes(least, most, mine.rank if numbered else None, "127.0.0.1", port, launched)
        try:
            results[index] = compare_nodes.attend(nodes, mine, folder=Path(), wait=wait)
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=attend, args=(i, mine)) for i, mine in enumerate(attending, start=1)]
    for thread in threads:
        thread.start()
    with compare_nodes.token_in(Path()) as token:
        nodes = checks_network.Nodes(least, most, 0, "127.0.0.1", port, launched)
        results[0] = compare_nodes.hold(nodes, report(0, errors=["data: gone"]), token=token, wait=wait)
    for thread in threads:
        thread.join()
    return results


def only(findings, what):
    (found,) = [finding for finding in findings if finding.what == what]
    return found


def test_nodes_meet_and_all_hear_of_each_others_faults(tmp_path):
    told = meet(report(1, errors=["W&B: no login"]))
    assert_says(only(told[0], "nodes"), "ok", "all 2 are there")
    assert_says(only(told[1], "shared"), "ok")
    assert_says(only(told[0], "other node"), "error", "node 1 (host1): W&B: no login")
    assert_says(only(told[1], "other node"), "error", "node 0 (host0): data: gone")
    assert list(tmp_path.iterdir()) == []


def test_nodes_without_a_number_get_one_as_they_come():
    """As on hosts that are all given the same command."""
    told = meet(report(0, host="a"), report(0, host="b", errors=["disk: full"]), least=3, most=3, numbered=False)
    assert_says(only(told[0], "nodes"), "ok", "all 3 are there")
    assert re.search(r"^node [12] \(b\): disk: full$", only(told[0], "other node").message)
    assert [finding.what for finding in told[1]].count("other node") == 2, "node 0's fault and b's"


def test_a_node_too_many():
    told = meet(report(0), report(0, host="b"), numbered=False)
    assert sum("more nodes came to" in str(told[index]) for index in (1, 2)) == 1


def test_nodes_meet_in_the_store_of_their_launcher():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = meet(report(1), port=store.port, launched=True)
    assert_says(only(told[1], "nodes"), "ok", "all 2 are there")
    assert not checks_network.port_is_free(store.port)


def test_clocks_that_are_apart(monkeypatch):
    """Node 0 meets on the main thread."""

    class Clock:
        sleep, monotonic = time.sleep, time.monotonic

        @staticmethod
        def time():
            return time.time() + 42 * (threading.current_thread() is not threading.main_thread())

    monkeypatch.setattr(compare_nodes, "time", Clock)
    assert_says(only(meet(report(1))[0], "clocks"), "error", "node 1 (host1) is 42.0 s ahead", "synchronise")


def test_a_node_that_does_not_come():
    assert_says(only(meet(wait=0.3)[0], "nodes"), "error", "1 of 2 came within 0 s; missing: node 1")


def test_enough_nodes_to_begin(monkeypatch):
    monkeypatch.setattr(compare_nodes, "STORE_SECONDS", 1.0)
    began = time.monotonic()
    told = meet(report(1), least=2, most=3, wait=60)
    assert_says(only(told[1], "nodes"), "warning", "2 of 3 are there, enough to begin; missing: 2")
    assert time.monotonic() - began < 20


def test_two_nodes_of_one_rank():
    told = meet(report(1), report(1), least=3, most=3, wait=3.0)  # node 0 waits for a third: both of them have come
    assert_says(only(told[0], "nodes"), "error", "several nodes came as --node-rank 1")
    assert any("another node came" in str(told[index]) for index in (1, 2))


def test_a_host_that_accepts_and_is_silent(monkeypatch, taken):
    for module in (compare_nodes, checks_network):
        monkeypatch.setattr(module, "STORE_SECONDS", 0.3)
    with pytest.raises(UserError, match="does not answer as a rendezvous: free that port, or choose another"):
        compare_nodes.attend(nodes_at(port=taken, rank=1), report(1), folder=Path(), wait=1.0)


def test_a_launch_that_is_under_way(monkeypatch):
    monkeypatch.setattr(compare_nodes, "STORE_SECONDS", 0.3)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (finding,) = compare_nodes.attend(nodes_at(port=store.port, rank=1), report(1), folder=Path(), wait=1.0)
    assert_says(finding, "warning", "a launch is under way", "choose another port")


def test_a_node_leaves_when_the_port_is_free_again(monkeypatch):
    """Or its launcher would find the doctor's store in place of node 0's launcher."""
    port, free = free_port(), []
    attend = compare_nodes.attend

    def attend_and_look(*arguments, **keywords):
        told = attend(*arguments, **keywords)
        free.append(checks_network.port_is_free(port))
        return told

    monkeypatch.setattr(compare_nodes, "attend", attend_and_look)
    meet(report(1), port=port)
    assert free == [True]
