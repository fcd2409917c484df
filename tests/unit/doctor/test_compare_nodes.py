"""Nodes that meet before a run, and what differs between them."""

import re
import threading
import time
from pathlib import Path

import pytest
from deadlines import deadline
from preflight import VERSIONS, assert_says, nodes_at, report
from ranks import free_port
from torch.distributed import TCPStore  # noqa: TID251 - stands in for a launcher's

from alexnet_dist.doctor import check_result, checks_network, cli, compare_nodes
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
    reports = [report(0), report(1, **changes), report(2)]
    results = compare_nodes.compare(reports, 0, nodes_at(most=3), wait=1.0)
    assert [result.check for result in results] == ["nodes", "versions", "options", "shared", "ports", "clocks"]
    for result in results:
        assert_says(result, level if result.check == what else "ok", *(fragments if result.check == what else []))


def test_a_node_alone_has_nothing_to_compare():
    (only_result,) = compare_nodes.compare([report(0)], 0, nodes_at(most=1), wait=1.0)
    assert_says(only_result, "ok", "all 1 are there")


def exchange(*joining, wait=10.0, least=2, most=2, port=None, launched=False, numbered=True):
    """Serve these nodes, each on a thread, on node 0; return the results of each node, or its error."""
    port, results, token = port or free_port(), {}, Path(".doctor-0")

    def join(index, mine):
        nodes = check_result.Nodes(least, most, mine.rank if numbered else None, "127.0.0.1", port, launched)
        try:
            results[index] = compare_nodes.join(nodes, mine, token=Path(f".doctor-{index}"), wait=wait)
        except UserError as error:
            results[index] = str(error)

    threads = [threading.Thread(target=join, args=(i, mine)) for i, mine in enumerate(joining, start=1)]
    for thread in threads:
        thread.start()
    token.touch()
    nodes = check_result.Nodes(least, most, 0, "127.0.0.1", port, launched)
    results[0] = compare_nodes.serve(nodes, report(0, errors=["data: gone"]), token=token, wait=wait)
    for thread in threads:
        thread.join()
    token.unlink()
    return results


def only(results, what):
    (found,) = [result for result in results if result.check == what]
    return found


def test_nodes_report_to_each_other_what_is_wrong(tmp_path):
    told = exchange(report(1, errors=["W&B: no login"]))
    assert_says(only(told[0], "nodes"), "ok", "all 2 are there")
    assert_says(only(told[1], "shared"), "ok")
    assert_says(only(told[0], "other node"), "error", "node 1 (host1): W&B: no login")
    assert_says(only(told[1], "other node"), "error", "node 0 (host0): data: gone")
    assert list(tmp_path.iterdir()) == []


def test_nodes_without_a_number_get_one_as_they_come():
    """As on hosts that are all given the same command."""
    told = exchange(report(0, host="a"), report(0, host="b", errors=["disk: full"]), least=3, most=3, numbered=False)
    assert_says(only(told[0], "nodes"), "ok", "all 3 are there")
    assert re.search(r"^node [12] \(b\): disk: full$", only(told[0], "other node").message)
    assert [result.check for result in told[1]].count("other node") == 2, "node 0's fault and b's"


@pytest.mark.parametrize("rank", [None, 1])
def test_a_node_too_many(rank):
    """One more has come to node 0 already, which is still there."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set("alexnet_dist/doctor/0/start", "{}")
    store.add("alexnet_dist/doctor/0/arrivals", 1)
    with pytest.raises(UserError, match=r"node 3 came to .*, more than --nnodes has"):
        compare_nodes.join(nodes_at(port=store.port, rank=rank), report(1), token=Path("token"), wait=1.0)


def test_a_file_of_a_sub_package_is_part_of_the_sources(tmp_path):
    package = tmp_path / "package"
    (package / "wing").mkdir(parents=True)
    hashes = set()
    for path in (package / "__init__.py", package / "wing/module.py", tmp_path / "train.py"):
        for text in ("a = 1", "a = 2"):
            path.write_text(text)
            hashes.add(cli.hash_of_sources(package))
    assert len(hashes) == 6


def test_nodes_exchange_reports_in_the_store_of_their_launcher():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = exchange(report(1), port=store.port, launched=True)
    assert_says(only(told[1], "nodes"), "ok", "all 2 are there")
    assert not checks_network.port_is_free(store.port)


def test_clocks_that_are_apart(monkeypatch):
    """Node 0 is on the main thread."""

    class Clock:
        sleep, monotonic = time.sleep, time.monotonic

        @staticmethod
        def time():
            return time.time() + 42 * (threading.current_thread() is not threading.main_thread())

    monkeypatch.setattr(compare_nodes, "time", Clock)
    result = only(exchange(report(1))[0], "clocks")
    assert_says(result, "error", "synchronise")
    seconds = re.match(r"node 1 \(host1\) is ([\d.]+) s ahead of node 0", result.message)[1]
    assert 40 < float(seconds) <= 42, "less by what a busy machine takes to deliver the report"


def test_a_node_that_does_not_come():
    assert_says(only(exchange(wait=0.3)[0], "nodes"), "error", "1 of 2 came within 0 s; missing: node 1")


def test_enough_nodes_to_begin(monkeypatch):
    monkeypatch.setattr(compare_nodes, "STORE_SECONDS", 1.0)
    began = time.monotonic()
    told = exchange(report(1), least=2, most=3, wait=60)
    assert_says(only(told[1], "nodes"), "warning", "2 of 3 are there, enough to begin; missing: 2")
    assert time.monotonic() - began < deadline(20)


def test_two_nodes_of_one_rank():
    told = exchange(report(1), report(1, host="b"), least=3, most=3)
    for results in told.values():
        assert_says(only(results, "nodes"), "error", "several nodes came as --node-rank 1: give each node its own")


def test_a_host_that_accepts_and_is_silent(monkeypatch, taken):
    for module in (compare_nodes, checks_network):
        monkeypatch.setattr(module, "STORE_SECONDS", 0.3)
    with pytest.raises(UserError, match="does not answer as a rendezvous: free that port, or choose another"):
        compare_nodes.join(nodes_at(port=taken, rank=1), report(1), token=Path("token"), wait=1.0)


def test_a_launch_that_is_under_way(monkeypatch):
    monkeypatch.setattr(compare_nodes, "STORE_SECONDS", 0.3)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (result,) = compare_nodes.join(nodes_at(port=store.port, rank=1), report(1), token=Path("token"), wait=1.0)
    assert_says(result, "warning", "a launch is under way", "choose another port")


def test_a_node_leaves_when_the_port_is_free_again(monkeypatch):
    """Or its launcher would find the doctor's store in place of node 0's launcher."""
    port, free = free_port(), []
    join, compare = compare_nodes.join, compare_nodes.compare

    def slow_at_node_0(reports, own, *arguments, **keywords):
        time.sleep(0.0 if own else 1.0)  # node 0 still has its store
        return compare(reports, own, *arguments, **keywords)

    def join_and_look(*arguments, **keywords):
        told = join(*arguments, **keywords)
        free.append(checks_network.port_is_free(port))
        return told

    monkeypatch.setattr(compare_nodes, "join", join_and_look)
    monkeypatch.setattr(compare_nodes, "compare", slow_at_node_0)
    exchange(report(1), port=port)
    assert free == [True]
