"""Ranks whose data is ready wait for those that still prepare theirs, however long, and not for dead or failed ones."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from deadlines import Deadline, communicate, deadline
from places import ROOT
from ranks import free_port, rank_environment
from tiny import FLAGS, program, summary

TIMEOUT = 3  # seconds of an idle machine
FAR = 600
RUN = """
from alexnet_dist import data
rank, load = int(os.environ["RANK"]), data.load
def prepared(config):
    if rank == {slow_rank}:
        {slow}
    return load(config)
data.load = prepared
"""
MEET = """
import os, signal, sys, time
from datetime import timedelta
from alexnet_dist.commands import main
from alexnet_dist.distributed import meeting
from alexnet_dist.errors import UserError
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test session in the background ignores it
meeting.SAY_AFTER, rank = 2, int(os.environ["RANK"])
def note(name):
    open("{folder}/" + name + str(rank), "w").close()
try:
    with meeting.meeting(timedelta(seconds={timeout})) as store:
        note("loads")
        if rank == {slow_rank}:
            {slow}
        note("loaded")
except UserError as error:
    main.fail(str(error), code=2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@contextlib.contextmanager
def launched(code, *, count=2):
    """Start ranks, each as on a machine of its own."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | rank_environment(rank, 2, port) | {"LOCAL_RANK": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def meet(folder, slow, *, slow_rank=1, timeout=TIMEOUT, count=2):
    """Start ranks that meet; one of them does what takes time."""
    seconds = round(deadline(timeout))
    return launched(MEET.format(folder=folder, slow=slow, slow_rank=slow_rank, timeout=seconds), count=count)


def until(folder, *names):
    """Wait for notes of the ranks, and a little longer."""
    end = Deadline(90)
    while not all((folder / name).exists() for name in names):
        assert not end.has_passed(), f"{names} did not come"
        time.sleep(0.05)
    time.sleep(1)


def ending(process, *, within=90):
    """Return the exit code, and the one line of an error."""
    _, errors = communicate(process, within)
    assert "Traceback" not in errors
    return process.returncode, [line for line in errors.splitlines() if line.startswith("error: ")], errors


@pytest.mark.parametrize("slow_rank", [0, 1])
def test_a_ready_rank_waits_for_longer_than_the_timeout(tmp_path, slow_rank):
    timeout = round(deadline(TIMEOUT))
    flags = [*FLAGS, "--runtime.cpu", "--max-steps", "2", "--runtime.timeout-seconds", str(timeout)]
    before = RUN.format(slow_rank=slow_rank, slow=f"time.sleep({1.5 * timeout + 5})")
    with launched(program([*flags, "--out-dir", str(tmp_path / "run")], before=before)) as ranks:
        endings = [ending(process) for process in ranks]
    assert [code for code, *_ in endings] == [0, 0], endings
    assert summary(tmp_path / "run")["world_size"] == 2


def test_it_says_for_how_many_it_waits(tmp_path):
    with meet(tmp_path, "time.sleep(8)", timeout=FAR) as ranks:
        ready, slow = (ending(process) for process in ranks)
    assert (ready[0], slow[0]) == (0, 0)
    assert ready[2].count("waiting for 1 of 2 processes, which prepare their data\n") >= 2
    assert "waiting for" not in slow[2]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_those_that_wait_with_its_words(tmp_path, failing):
    with meet(tmp_path, "time.sleep(1); raise UserError('no images')", slow_rank=failing, timeout=FAR) as ranks:
        assert ending(ranks[failing])[:2] == (2, ["error: no images"])
        code, lines, errors = ending(ranks[1 - failing])
    words = f"error: rank {failing} has failed: no images"
    lost = "error: the connection to the other processes is lost: see what their machines print"
    assert code == 2, errors
    assert lines == [words] or (failing == 0 and lines == [lost]), "rank 0 keeps the store here"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_rank_is_not_waited_for(tmp_path, number):
    with meet(tmp_path, "time.sleep(1000)") as ranks:
        until(tmp_path, "loads1", "loaded0")
        ranks[1].send_signal(number)
        code, lines, errors = ending(ranks[0])
    assert code == 2, errors
    assert len(lines) == 1
    assert re.fullmatch(
        r"error: rank 1 has not been heard of for \d+ s while it prepared its data: see what .*", lines[0]
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_the_store_nobody_waits(tmp_path, number):
    with meet(tmp_path, "time.sleep(1000)", slow_rank=0) as ranks:
        until(tmp_path, "loads0", "loaded1")
        ranks[0].send_signal(number)
        code, lines, errors = ending(ranks[1])
    assert code == 2, errors
    assert len(lines) == 1
    assert ("connection to the other processes is lost" if number == signal.SIGKILL else "rank 0 has not") in lines[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_one_that_waits_answers_signals(tmp_path, number, code):
    with meet(tmp_path, "time.sleep(1000)", timeout=FAR) as ranks:
        until(tmp_path, "loads1", "loaded0")
        ranks[0].send_signal(number)
        assert ending(ranks[0], within=20)[0] == code


def test_ranks_that_do_not_come_are_told_before_data_is_prepared(tmp_path):
    with meet(tmp_path, "pass", count=1) as ranks:
        code, lines, _ = ending(ranks[0])
    assert code == 2
    assert len(lines) == 1
    assert re.match(r"error: the 2 processes have not found each other within \d+ s \(", lines[0])
    assert not (tmp_path / "loads0").exists()
