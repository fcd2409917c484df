"""The preflight as processes of their own that meet."""

import os
import re
import signal
import subprocess
import sys
import time

from deadlines import Deadline, communicate, deadline
from places import ROOT
from preflight import (
    WELL,
    plain_environment,  # noqa: F401 - every test has it
)
from ranks import free_port


def start(*arguments, cwd, program=("-m", "alexnet_dist.doctor")):
    return subprocess.Popen(
        [sys.executable, *program, *WELL, "--wait", str(deadline(30)), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def of_two(rank, port):
    return ["--nnodes", "2", "--node-rank", str(rank), "--rdzv", f"127.0.0.1:{port}", "--out-dir", "run"]


def test_two_processes_compare_their_nodes(tmp_path):
    port = free_port()
    doctors = [start(*of_two(rank, port), cwd=tmp_path) for rank in (1, 0)]
    for process in doctors:
        out, err = communicate(process, 60)
        assert (process.returncode, err) == (0, "")
        lines = out.splitlines()
        assert lines[-1] == "0 errors, 1 warning", "of the loopback address"
        assert [line.split()[1] for line in lines[-7:-1]] == [
            "nodes",
            "versions",
            "options",
            "shared",
            "ports",
            "clocks",
        ]
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_not_shared_and_options_that_differ(tmp_path):
    port, places = free_port(), [tmp_path / "here", tmp_path / "there"]
    for place in places:
        place.mkdir()
    doctors = [
        start(*of_two(0, port), "--quiet", cwd=places[0]),
        start(*of_two(1, port), "--quiet", "--seed", "1", cwd=places[1]),
    ]
    for process in doctors:
        out, err = communicate(process, 60)
        assert (process.returncode, out) == (2, "")
        assert re.search(r"^error +shared +node 1 .* does not see what node 0 writes", err, re.MULTILINE)
        assert re.search(r"^error +options +seed is 0 on node 0 .* and 1 on node 1", err, re.MULTILINE)
        assert "Traceback" not in err
    assert [list(place.iterdir()) for place in places] == [[], []]


def test_a_doctor_that_is_told_to_stop_leaves_no_file(tmp_path):
    """Python's own exit, which would leave one here, aborts now and then: a thread is still with the store."""
    code = "import atexit, pathlib; atexit.register(pathlib.Path('exited').touch)"
    code += "; from alexnet_dist.doctor import cli; cli.command()"
    doctor_0 = start(*of_two(0, free_port()), cwd=tmp_path, program=["-c", code])
    end = Deadline(30)
    while not list(tmp_path.glob(".doctor-*")) and not end.has_passed():
        time.sleep(0.05)
    assert list(tmp_path.glob(".doctor-*"))
    doctor_0.send_signal(signal.SIGTERM)
    communicate(doctor_0, 30)
    assert doctor_0.returncode == 143
    assert list(tmp_path.iterdir()) == []
