"""R13: whatever W&B's server does, the run's numbers are the same, it ends soon, and nothing is lost."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deadlines import deadline
from fake_wandb import refusing, serving
from places import ROOT
from tiny import FLAGS, program, records, without_clocks

from alexnet_dist.tracking import wandb_tracker

KEY, CANARY = "0123456789" * 4, "canary-7f3a9c21e5b84d60"
INIT, FINISH = 4, 3  # seconds of an idle machine, instead of the tracker's own
PROBE = 20  # wandb's own patience, at the first table for a server that does not answer
GRACE = 40  # for the interpreter and torch


def train(folder: Path, port: int, *, finish: float = FINISH) -> tuple[subprocess.CompletedProcess[str], float]:
    """Train against a server on the loopback interface; return what it printed and the seconds after its start."""
    flags = [*FLAGS, "--out-dir", str(folder), "--log.trackers", "wandb", "--wandb.mode", "online"]
    flags += ["--log.kernels-every-epochs", "1"]
    before = (
        "from alexnet_dist.tracking import wandb_tracker\n"
        "page.write = lambda _: None\n"
        f"wandb_tracker.INIT_SECONDS, wandb_tracker.FINISH_SECONDS = {deadline(INIT)}, {deadline(finish)}\n"
    )
    code = program(flags, before=before)
    environment = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
    environment |= {"HF_TOKEN": CANARY, "MY_SECRET": CANARY}
    environment.pop("WANDB_MODE", None)
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline(300),
    )
    return ended, time.monotonic() - began


def leaks(folder: Path, ended: subprocess.CompletedProcess[str]) -> list[str]:
    """S9: name where a key or a secret of the environment can be read."""
    secrets = (KEY.encode(), CANARY.encode())
    files = [str(path) for path in folder.rglob("*") if path.is_file() and any(s in path.read_bytes() for s in secrets)]
    return files + ["printed"] * any(s.decode() in ended.stdout + ended.stderr for s in secrets)


@pytest.fixture(scope="module")
def without(finished_run):
    """The same run without a tracker."""
    return [without_clocks(record) for record in records(finished_run)]


SERVERS = {
    "refused": refusing,
    "silent": lambda: serving("silent"),
    "500": lambda: serving("500"),
    "dies in mid-run": lambda: serving("good", dies_at="file_stream", afterwards="silent"),
    "breaks in mid-run": lambda: serving("good", dies_at="file_stream", afterwards="500"),
}
LONGER = [pytest.param(name, marks=pytest.mark.slow) for name in ("500", "breaks in mid-run")]


@pytest.mark.parametrize("fault", ["refused", "silent", "dies in mid-run", *LONGER])
def test_a_faulty_server_changes_nothing(tmp_path, fault, without):
    with SERVERS[fault]() as server:
        ended, seconds = train(tmp_path, server.port)
    assert ended.returncode == 0, ended.stderr
    assert [without_clocks(record) for record in records(tmp_path)] == without
    assert seconds < deadline(2 * INIT + PROBE + FINISH + wandb_tracker.SERVICE_SECONDS + GRACE)
    assert not leaks(tmp_path, ended)
    logs = [path for path in (tmp_path / "wandb").rglob("*.wandb") if path.stat().st_size]
    assert logs, "nothing to send later"
    # A run that never was online says so on its card. One whose server went away says it at its end.
    assert "wandb sync" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_good_server_gets_the_run(tmp_path, without):
    """The faults above are the server's, not the test's."""
    with serving("good") as server:
        ended, _ = train(tmp_path, server.port, finish=GRACE)
        sent = b"".join(body for _, body in server.requests)
    assert ended.returncode == 0, ended.stderr
    assert [without_clocks(record) for record in records(tmp_path)] == without
    assert b"train/loss" in sent
    assert KEY.encode() not in sent
    assert CANARY.encode() not in sent
    assert not leaks(tmp_path, ended)
    assert b"finished" in sent or b"exitcode" in sent
