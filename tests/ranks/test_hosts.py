"""Several hosts, joined by a network of their own, through launch/multinode.sh: they compute what one process does, and
survive hosts and links that fail.
"""

import json
import os
import re
import time
from pathlib import Path

import pytest
from deadlines import Deadline, deadline
from hosts import Network, needs_hosts
from ranks import run_ranks
from tiny import FLAGS, beside_launch_scripts, equal, losses, records, run, run_with_ids, summary, weights

SAME = ["--model.dropout", "0", "--data.limit", "163"]  # 10 batches of 16 an epoch, and 3 images left out
SGD = ["--optim.name", "sgd", "--optim.lr", "0.05"]
# Seconds of an idle machine.
TIMEOUT = 10  # without progress
GRACE = 20  # for messages
START = 240  # for several launchers and ranks, also to train
THREADS = "2"  # of each rank, as sums over threads are part of the bits


def elastic():
    """Return flags of a run that loses hosts."""
    return ["--epochs", "3", "--checkpoint.every-steps", "4", *impatient()]


def impatient():
    return ["--runtime.timeout-seconds", str(round(deadline(TIMEOUT)))]


def quick():
    """Return a launcher's settings: a host that is gone is given up after 3 s, a silent meeting point after 15."""
    second = round(deadline(1))
    last_call = f"last_call_timeout={second},keep_alive_interval={second},keep_alive_max_attempt=3"
    return f"{last_call},read_timeout={15 * second}"


class Cluster:
    """Launchers of one run, by launch/multinode.sh as it is shipped, beside a train.py that has the tiny network."""

    def __init__(self, network, folder, *flags, nodes, ranks=1, preflight=False, **variables):
        self.network, self.folder = network, folder
        self.flags = [*FLAGS, *SAME, *flags]  # the preflight has to see what the train.py here adds by itself
        self.run, self.notes = folder / "run", folder / "notes"
        self.notes.mkdir(parents=True)
        self.script = beside_launch_scripts(folder) / "multinode.sh"
        own = {
            "ALEXNET_DIST_SKIP_DOCTOR": "" if preflight else "1",
            "NNODES": nodes,
            "RDZV": "h0:29500",
            "CPU_RANKS": str(ranks),
            "OMP_NUM_THREADS": THREADS,
        }
        self.variables = {**own, "CHAOS": str(self.notes), "RDZV_CONF": quick(), **variables}
        self.launched = {}

    def start(self, *indices):
        """Give the one command on some hosts."""
        command = [str(self.script), *self.flags, "--out-dir", str(self.run)]
        for index in indices:
            host = self.network.hosts[index]
            output = self.folder / f"output{index}"
            self.launched[index] = host.start(command, output=output, **self.variables)

    def finish(self, *indices, within=START):
        """Return the exit codes of some hosts' launchers, or of all."""
        return [self.launched[index].wait(within) for index in indices or self.launched]

    def until(self, condition, *, alive=(), within=START):
        """Wait for something; the launchers of the hosts named may not end meanwhile."""
        end = Deadline(within)
        while not (found := condition()):
            for index in alive:
                assert self.launched[index].poll() is None, self.text()
            assert not end.has_passed(), f"nothing for {end.seconds:.0f} s\n{self.text()}"
            time.sleep(0.02)
        return found

    def steps(self, *, world, since=0):
        """Return the ledger's lines of a world size, from a number of lines on."""
        return [line for line in self.ledger()[since:] if line["world"] == world]

    def ledger(self):
        path = self.notes / "ledger.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [json.loads(line) for line in whole.splitlines()]

    def counted(self):
        """Return the lines of each step's last attempt, in the order of ranks: what is in the weights."""
        found = {}
        for line in self.ledger():
            lines = found.setdefault(line["step"], [])
            if any(line["rank"] == other["rank"] or line["world"] != other["world"] for other in lines):
                lines.clear()  # taken again
            lines.append(line)
        assert sorted(found) == list(range(len(found))), "a step was left out"
        steps = [sorted(found[step], key=lambda line: line["rank"]) for step in sorted(found)]
        assert all(len(lines) == lines[0]["world"] for lines in steps)
        return steps

    def order(self):
        """Return the global batch of each step that counts."""
        return [[image for line in lines for image in line["ids"]] for lines in self.counted()]

    def worlds(self):
        """Return [[world size, steps], …] of what counts, in order."""
        found = []
        for lines in self.counted():
            if not found or found[-1][0] != len(lines):
                found.append([len(lines), 0])
            found[-1][1] += 1
        return found

    def text(self):
        return "".join(f"==== h{index}\n{launched.text}" for index, launched in self.launched.items())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process: its run folder and its image ids of each step."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return folder, run_with_ids(folder, ["--runtime.cpu", *SAME])


@pytest.fixture(scope="module")
def descended(tmp_path_factory):
    """The same with SGD."""
    folder = tmp_path_factory.mktemp("descended") / "run"
    return folder, run_with_ids(folder, ["--runtime.cpu", *SAME, *SGD])


def check_same_as_alone(cluster, alone, *, world, rel=1e-3):
    """Adam divides a gradient by its own size, by which rounding grows: 1e-5 holds for its first steps, and for SGD."""
    assert cluster.order() == alone[1]
    ours, theirs = losses(cluster.run), losses(alone[0])
    assert ours == pytest.approx(theirs, rel=rel)
    found, expected = (
        [record["val/top1"] for record in records(run) if "val/top1" in record] for run in (cluster.run, alone[0])
    )
    assert found == pytest.approx(expected, abs=100 * rel)
    assert {len(lines) for lines in cluster.counted()} == {world}
    assert summary(cluster.run)["world_size"] == world
    assert all(record["val/num_images"] == 163 for record in records(cluster.run) if "val/num_images" in record)


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "wandb" not in path.parts)


@pytest.mark.parametrize(
    ("num_hosts", "ranks"),
    [(2, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(2, 2), (4, 1), (4, 2)])],
)
@needs_hosts
def test_hosts_compute_what_one_process_does(tmp_path, descended, num_hosts, ranks):
    """The same images, losses and evaluations; one W&B run and one set of files. With the preflight, as shipped."""
    tracked = ["--log.trackers", "wandb", "--wandb.mode", "offline"]
    with Network(num_hosts) as network:
        for host in network.hosts:
            host.is_debian = True
        settings = {"RDZV": f"{network.hosts[0].address}:29500", "WANDB_MODE": "offline"}
        nodes = str(num_hosts)
        cluster = Cluster(network, tmp_path, *tracked, *SGD, nodes=nodes, ranks=ranks, preflight=True, **settings)
        cluster.start(*range(num_hosts))
        assert cluster.finish() == [0] * num_hosts, cluster.text()
    check_same_as_alone(cluster, descended, world=num_hosts * ranks, rel=1e-5)
    assert len(list((cluster.run / "wandb").glob("offline-run-*"))) == 1
    assert files_of(cluster.run) == files_of(descended[0])
    assert cluster.text().count("-- result --") == 1


@pytest.mark.slow
@needs_hosts
def test_each_host_decodes_the_data_once(tmp_path, image_folder):
    images = image_folder(size=32, per_class=20)
    few = ["--data.dataset", str(images), "--max-steps", "2"]
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, *few, nodes="2", ranks=2)
        cluster.start(0, 1)
        assert cluster.finish() == [0, 0], cluster.text()
    assert sorted((cluster.notes / "decoded").read_text().split()) == ["h0", "h1"]
    assert {line["rank"] for line in cluster.ledger()} == {0, 1, 2, 3}


# ---- launches that are refused --------------------------------------------------------------------------------------


@needs_hosts
def test_a_mistake_is_one_line_on_each_host_and_ends_all_without_restarts(tmp_path):
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, "--data.batch-size", "15", nodes="2", MAX_RESTARTS="5")
        cluster.start(0, 1)
        assert cluster.finish() == [1, 1]
        for launched in cluster.launched.values():
            lines = [line for line in launched.text.splitlines() if line.startswith("error: ")]
            assert len(lines) == 1, launched.text
            assert "--data.batch-size 15 is the global batch and does not divide by 2 processes" in lines[0]
    assert not cluster.run.exists()


@needs_hosts
def test_the_preflight_lets_no_host_begin_where_one_could_not(tmp_path):
    """The second host was given another learning rate; both say so, and nothing is started."""
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, nodes="2", preflight=True)
        cluster.start(0)
        cluster.flags = [*cluster.flags, "--optim.lr", "0.5"]
        cluster.start(1)
        assert cluster.finish() == [2, 2]
        for launched in cluster.launched.values():
            assert re.search(r"error +options +optim.lr is 0.0005 on node 0 \(h0\) and 0.5 on node 1", launched.text)
            assert "accelerate" not in launched.text
    assert not cluster.run.exists()


@pytest.mark.slow
@needs_hosts
def test_a_new_size_that_does_not_divide_the_batch_is_refused_once(tmp_path):
    """Two hosts train, a third comes: 16 images do not divide by 3. All end, and nobody tries again and again."""
    with Network(3) as network:
        cluster = Cluster(network, tmp_path, *elastic(), nodes="1:3", MAX_RESTARTS="5", CHAOS_SLOW_STEP="0.4")
        cluster.start(0, 1)
        cluster.until(lambda: len(cluster.steps(world=2)) >= 6, alive=(0, 1))
        cluster.start(2)
        assert 0 not in cluster.finish()
        refusals = re.findall(
            r"^error: --data.batch-size 16 .* does not divide by 3 processes.*$", cluster.text(), re.MULTILINE
        )
        assert 1 <= len(refusals) <= 3, cluster.text()  # a launcher may hear of another's end before its own rank's
    assert {line["world"] for line in cluster.ledger()} == {2}
    assert summary(cluster.run)["status"] == "stopped", "the state was saved before the third was let in"


# ---- hosts that die, and come back ----------------------------------------------------------------------------------


GRACEFUL = "closing signal SIGTERM"  # what a launcher prints when it stops its ranks to let others in


def rank_run(folder, flags):
    os.environ["OMP_NUM_THREADS"] = THREADS
    run(folder, *flags)


def repeated(folder, worlds, flags, monkeypatch):
    """Take the same steps at the same world sizes, without launchers, hosts or anything that fails."""
    monkeypatch.setenv("OMP_NUM_THREADS", THREADS)
    last = 0
    for world, num_steps in worlds:
        last += num_steps
        until = ["--runtime.cpu", *SAME, *flags, "--max-steps", str(last)]
        if world == 1:
            run(folder, *until)
        else:
            run_ranks(rank_run, folder, until, world_size=world)
    return folder


def leave_and_come_back(cluster, leave, come_back):
    """Have host 1 leave two hosts in mid-epoch, and come back once the other has taken a few steps alone."""
    cluster.start(0, 1)
    cluster.until(lambda: any(line["step"] >= 5 for line in cluster.steps(world=2)), alive=(0, 1))
    leave()
    cluster.until(lambda: len(cluster.steps(world=1)) >= 3, alive=(0,))
    (cluster.notes / "hold").touch()
    come_back()
    cluster.until(lambda: GRACEFUL in cluster.launched[0].text, alive=(0, 1))
    (cluster.notes / "hold").unlink()
    assert cluster.finish() == [0, 0], cluster.text()
    assert [world for world, _ in cluster.worlds()] == [2, 1, 2]


@needs_hosts
def test_a_host_dies_and_comes_back(tmp_path, monkeypatch):
    """The other one goes on from the checkpoint, alone and then with it again, with the same global batches.

    The weights are those of the same steps at the same sizes, to the bit.
    """
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, *elastic(), nodes="1:2", CHAOS_SLOW_STEP="0.1")
        leave_and_come_back(cluster, network.hosts[1].kill, lambda: cluster.start(1))
    assert "rank 1 has not been heard of" in cluster.launched[0].text
    expected = repeated(tmp_path / "expected", cluster.worlds(), elastic(), monkeypatch)
    for name in ("model", "optimizer"):
        assert equal(weights(cluster.run, name=name), weights(expected, name=name))
    assert losses(cluster.run) == losses(expected)


def notices(cluster, index, words, *, within):
    """Wait until a host's ranks say that they have lost somebody."""
    cluster.until(lambda: re.search(words, cluster.launched[index].text), within=within)


@pytest.mark.slow
@needs_hosts
def test_a_host_loses_its_power_and_comes_back(tmp_path):
    """Nobody is told, unlike of a killed process, whose system closes its connections: only time tells."""
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, *elastic(), nodes="1:2", CHAOS_SLOW_STEP="0.1")

        def leave():
            network.hosts[1].cut()
            network.hosts[1].kill()
            notices(cluster, 0, r"error: rank 1 has not been heard of for \d+ s", within=TIMEOUT + GRACE)

        def come_back():
            network.hosts[1].join()
            cluster.start(1)

        leave_and_come_back(cluster, leave, come_back)


@pytest.mark.slow
@needs_hosts
def test_a_cut_link_is_noticed_on_both_sides_and_only_one_goes_on(tmp_path):
    """The side without the meeting point does not, although one host would be enough. It is back once its link is."""
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, *elastic(), nodes="1:2", CHAOS_SLOW_STEP="0.1")

        def leave():
            network.hosts[1].cut()
            notices(cluster, 0, r"error: rank 1 has not been heard of for \d+ s", within=TIMEOUT + GRACE)
            notices(cluster, 1, "error: the store of the launcher does not answer", within=TIMEOUT + GRACE)

        leave_and_come_back(cluster, leave, network.hosts[1].join)
    assert {line["host"] for line in cluster.steps(world=1)} == {"h0"}


@pytest.mark.slow
@needs_hosts
def test_the_host_of_the_meeting_dies_and_the_same_command_continues(tmp_path, alone):
    few = ["--checkpoint.every-steps", "4", *impatient()]
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, *few, nodes="2", CHAOS_SLOW_STEP="0.1")
        cluster.start(0, 1)
        cluster.until(lambda: any(line["step"] >= 5 for line in cluster.ledger()), alive=(0, 1))
        network.hosts[0].kill()
        assert cluster.finish(1, within=TIMEOUT + GRACE) == [1]
        cluster.start(0, 1)
        assert cluster.finish() == [0, 0], cluster.text()
    check_same_as_alone(cluster, alone, world=2)


@pytest.mark.slow
@needs_hosts
def test_the_host_of_rank_0_dies_and_the_others_agree_on_another(tmp_path):
    """The meeting is on another host here, so it goes on. Ranks go by addresses: h0 is first again once it is back."""
    flags = [*elastic(), "--data.batch-size", "12"]
    with Network(3) as network:
        cluster = Cluster(network, tmp_path, *flags, nodes="2:3", RDZV="h2:29500", CHAOS_SLOW_STEP="0.1")
        cluster.start(0, 1, 2)
        cluster.until(lambda: any(line["step"] >= 5 for line in cluster.steps(world=3)), alive=(0, 1, 2))
        network.hosts[0].kill()
        cluster.until(lambda: len(cluster.steps(world=2)) >= 6, alive=(1, 2))
        cluster.start(0)
        assert cluster.finish() == [0, 0, 0], cluster.text()
    assert [world for world, _ in cluster.worlds()] == [3, 2, 3]


@pytest.mark.slow
@needs_hosts
def test_a_host_that_is_told_to_go_costs_no_step(tmp_path):
    """As Kubernetes drains a node: SIGTERM to one launcher, whose ranks have all others save at the same step."""
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, *elastic(), nodes="1:2", CHAOS_SLOW_STEP="0.1")
        cluster.start(0, 1)
        cluster.until(lambda: any(line["step"] >= 5 for line in cluster.ledger()), alive=(0, 1))
        cluster.launched[1].terminate()
        assert cluster.finish(1) == [1], cluster.text()
        assert cluster.finish(0) == [0], cluster.text()
    taken = [(line["step"], line["rank"]) for line in cluster.ledger()]
    assert len(taken) == len(set(taken)), "no step was taken again"
    assert [world for world, _ in cluster.worlds()] == [2, 1]


@pytest.mark.slow
@needs_hosts
def test_a_scheduler_that_signals_every_process_has_them_save(tmp_path, alone):
    """As SLURM does before the time limit: launchers and ranks get SIGTERM, and the ranks their launchers' as well."""
    few = ["--checkpoint.every-epochs", "1000"]
    with Network(2) as network:
        cluster = Cluster(network, tmp_path, *few, nodes="2", ranks=2, CHAOS_SLOW_STEP="0.1")
        cluster.start(0, 1)
        cluster.until(lambda: any(line["step"] >= 5 for line in cluster.ledger()), alive=(0, 1))
        for launched in cluster.launched.values():
            launched.terminate_all()
        assert cluster.finish() == [1, 1]
        assert (cluster.run / "PREEMPTED").read_text().startswith("SIGTERM after step ")
        cluster.start(0, 1)
        assert cluster.finish() == [0, 0], cluster.text()
    assert not (cluster.run / "PREEMPTED").exists()
    taken = [(line["step"], line["rank"]) for line in cluster.ledger()]
    assert len(taken) == len(set(taken)), "no step was taken again"
    check_same_as_alone(cluster, alone, world=4)


# ---- the hosts themselves -------------------------------------------------------------------------------------------


SEND = """
import socket, sys, time
with socket.create_connection(("h0", 5000), timeout=float(sys.argv[1])) as connection:
    began = time.monotonic()
    connection.sendall(bytes(4_000_000))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
print(time.monotonic() - began)
"""
RECEIVE = """
import socket
with socket.create_server(("h0", 5000)) as server:
    while True:
        connection, _ = server.accept()
        while connection.recv(1 << 20): pass
        connection.close()
"""


@needs_hosts
def test_links_are_slowed_and_cut_and_all_is_removed(tmp_path):
    with Network(2) as network:
        first, second = network.hosts
        first.shape("16mbit")
        server = first.start(["python", "-c", RECEIVE], output=tmp_path / "server")
        reach = f"import socket; socket.create_connection(('h0', 5000), timeout={deadline(2)})"
        reach = ["python", "-c", reach]
        wait_until(lambda: second.start(reach, output=tmp_path / "tries").wait(20) == 0)
        assert second.start(["python", "-c", SEND, str(deadline(10))], output=tmp_path / "sent").wait(60) == 0
        assert float((tmp_path / "sent").read_text()) > 1.5, "32 Mbit take two seconds, less the shaper's burst"
        first.cut()
        assert second.start(reach, output=tmp_path / "cut").wait(20) != 0
        first.join()
        wait_until(lambda: second.start(reach, output=tmp_path / "joined").wait(20) == 0)
        namespaces = [host.namespace for host in network.hosts] + [network.switch]
        assert all(Path("/run/netns", name).exists() for name in namespaces)
    assert server.poll() is not None
    assert not any(Path("/run/netns", name).exists() for name in namespaces)


def wait_until(condition):
    end = Deadline(30)
    while not condition():
        assert not end.has_passed()
        time.sleep(0.1)
