"""What a W&B server holds of a run, down to the byte: online and offline, after kills of the run and of the server."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from chaos import ACCELERATE, Trial, port
from deadlines import deadline
from fake_wandb import serving as faking
from places import ROOT, SUPPORT
from tiny import records, summary, without_clocks
from wandb_server import KEY, PROGRAM, serving

from alexnet_dist.training import checkpoint
from alexnet_dist.visualization import kernel_images

IMAGES, EPOCHS, STEPS = 163, 6, 60
PICTURES = len(kernel_images.WHICH) * len(kernel_images.COLUMNS) + 1  # and the summary
FLAGS = f"--epochs {EPOCHS} --log.kernels-every-epochs 1 --log.every-steps 1 --log.trackers wandb".split()
FINISH = 5  # seconds of an idle machine, instead of the tracker's own
GRACE = 60  # for the rest of the run
IMPATIENT = """
import runpy, sys

del sys.argv[0]
sys.path[:0] = {paths}
from alexnet_dist.tracking import wandb_tracker

wandb_tracker.FINISH_SECONDS = {seconds}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def launch(folder, address, *flags, mode="online", attempt=0):
    """Train the tiny network on two ranks, in a project that has the folder's name."""
    folder.mkdir(exist_ok=True)
    script = folder / "impatient.py"
    script.write_text(IMPATIENT.format(paths=[str(SUPPORT), str(ROOT)], seconds=deadline(FINISH)))
    flags = [*FLAGS, "--wandb.project", folder.name, "--wandb.mode", mode, *flags]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_BASE_URL", address)
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")  # second, instead of 15
        launcher = [*port([*ACCELERATE, "--max_restarts", "0"]), str(script)]
        return Trial(folder, *flags, launcher=launcher, attempt=attempt)


def finished(folder, address, *flags, **keywords):
    """Train to the end."""
    with launch(folder, address, *flags, **keywords) as trial:
        assert trial.finish() == 0, trial.output.read_text()
    return folder


def killed(folder, address, arrived=lambda: True, **keywords):
    """Kill both ranks after the first epoch's checkpoint; return the number of epochs whose pictures may be lost."""
    with launch(folder, address, **keywords) as trial:
        trial.until(lambda: trial.saved() >= STEPS // EPOCHS and arrived())
        pids = [trial.place(rank).pid for rank in (0, 1)]
        for pid in pids:
            with suppress(ProcessLookupError):  # the launcher ends the second when the first is gone
                os.kill(pid, signal.SIGKILL)
        assert trial.finish() != 0
    assert len(records(folder / "run")) < STEPS + EPOCHS, "it was over already"
    return trial.saved() * EPOCHS // STEPS


def run_id(folder):
    return (folder / "run/wandb/run_id").read_text()


def held_by(server, folder):
    """Return what the server holds of the project's only run."""
    assert server.runs(folder.name) == [run_id(folder)]
    return server.run(folder.name, run_id(folder))


def has_arrived(server, folder):
    """Tell whether the server has lines of the run's history."""
    return server.file(folder.name, run_id(folder), "wandb-history.jsonl").count(b"train/loss") > 2


def sync(server, folder, *, attempt=0):
    """Do what the run's output says."""
    output = (folder / f"output{attempt}").read_text()
    *_, command = re.findall(r"(?:later|in time): (.*)", output)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, **server.environment, "PATH": f"{scripts}:{os.environ['PATH']}"}
    environment.pop("WANDB_MODE", None)
    subprocess.run(command, shell=True, env=environment, cwd=folder, check=True, timeout=deadline(120))


def steps(rows):
    """Return rows as a set, without clocks: a step that is taken again gives the same numbers."""
    return {frozenset(without_clocks(row).items()) for row in rows}


def sent(server, folder, held, key, epoch):
    """Return the contents of the files that came under a key in an epoch."""
    files = {media["path"] for row, media in held.media(key) if row["epoch"] == epoch}
    return {server.file(folder.name, run_id(folder), name) for name in files}


def check_complete(server, folder, *, after=0, tables=True):
    """All of metrics.jsonl is there and nothing else, and the pictures of each epoch after that one, to the byte."""
    held, run = held_by(server, folder), folder / "run"
    assert steps(held.numbers) == steps(records(run))
    for epoch in range(after + 1, EPOCHS + 1):
        figures = (run / f"figures/epoch_{epoch:04d}").glob("*.png")
        pictures = [path for path in figures if path.stem not in ("errors", "right")]  # tables of W&B's hold these
        assert len(pictures) == PICTURES
        for path in pictures:
            assert sent(server, folder, held, f"kernels/{path.stem}", epoch) == {path.read_bytes()}, path
        for table in sent(server, folder, held, "confusion_table", epoch):
            assert sum(count for _, _, count in json.loads(table)["data"]) == IMAGES
    if tables:
        assert {row["epoch"] for row, _ in held.media("confusion_table")} >= set(range(after + 1, EPOCHS + 1))
    for key, value in summary(run).items():
        assert held.summary.get(key) == value, key
    assert held.summary["best/top1"] == summary(run)["best_top1"]
    assert held.state == "finished"
    return held


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if not PROGRAM:
        pytest.skip("openwandb is not installed")
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def uninterrupted(server, tmp_path_factory):
    """The run that others are compared with."""
    return finished(tmp_path_factory.mktemp("uninterrupted"), server.address)


@pytest.mark.wandb_server
def test_two_ranks_are_one_run(server, uninterrupted):
    held, run = check_complete(server, uninterrupted), uninterrupted / "run"
    assert held.numbers == records(run), "each line once, in order, clocks and all"
    assert held.config.items() >= {"world_size": 2, "num_train_images": IMAGES}.items()
    for section, values in yaml.safe_load((run / "config.yaml").read_text()).items():
        assert held.config[section] == values, section
    assert "2 processes" in held.tags
    assert sent(server, uninterrupted, held, "inputs/first_batch", 0) == {
        (run / "figures/first_batch.png").read_bytes()
    }
    (errors,) = sent(server, uninterrupted, held, "errors", EPOCHS)
    assert len(json.loads(errors)["data"]) == len(json.loads((run / "evaluation.json").read_text())["worst"])


@pytest.mark.wandb_server
def test_a_killed_run_goes_on_as_one(tmp_path, server):
    folder = tmp_path / "killed"
    done = killed(folder, server.address, lambda: has_arrived(server, folder))
    finished(folder, server.address, attempt=1)
    check_complete(server, folder, after=done)


@pytest.mark.wandb_server
def test_a_killed_run_offline_is_one_when_it_is_sent(tmp_path, server):
    """Though the first part of it ends in the middle of a line."""
    folder = tmp_path / "offline"
    done = killed(folder, server.address, mode="offline")
    finished(folder, server.address, mode="offline", attempt=1)
    parts = list((folder / "run/wandb").glob("offline-run-*"))
    assert len(parts) in (1, 2), "the first is deleted where the kill came before wandb had written a whole record"
    assert server.runs(folder.name) == []
    sync(server, folder, attempt=1)
    check_complete(server, folder, after=done)


@pytest.mark.wandb_server
def test_a_server_that_is_killed_gets_the_rest_later(tmp_path, uninterrupted):
    folder = tmp_path / "lonely"
    with serving(tmp_path) as server:
        with launch(folder, server.address) as trial:
            trial.until(lambda: trial.saved() and has_arrived(server, folder))
            server.kill()
            killed_at = time.monotonic()
            assert trial.finish() == 0, trial.output.read_text()
            assert time.monotonic() - killed_at < deadline(FINISH + GRACE)
        ours, theirs = ([without_clocks(record) for record in records(run / "run")] for run in (folder, uninterrupted))
        assert ours == theirs
        server.start()
        sync(server, folder)
        check_complete(server, folder, tables=False)  # which wandb does not record before it has asked the server


@pytest.mark.slow
@pytest.mark.wandb_server
def test_a_shared_run_has_the_machines_of_all_ranks(tmp_path, server):
    folder = finished(tmp_path / "shared", server.address, "--wandb.shared")
    check_complete(server, folder)
    measured = json.loads(server.get(f"api/v2/runs/{run_id(folder)}/system_metrics"))["system_metrics"]
    assert {name.rpartition("/l:")[2] for name in measured} == {"rank0", "rank1"}


# ---- what this server lacks, from one that has nothing else ----------------------------------------------------------


@pytest.mark.parametrize("which", ["final", pytest.param("all", marks=pytest.mark.slow)])
def test_weights_are_artifacts(tmp_path, which):
    with faking("good") as server:
        folder = finished(tmp_path / "weights", f"http://127.0.0.1:{server.port}", "--wandb.artifacts", which)
        versions = [artifact for artifact in server.artifacts if artifact.type == "model"]
    saved = checkpoint.checkpoints(folder / "run/checkpoints")
    best, last = checkpoint.best_of(saved), saved[-1]
    assert len(versions) == (EPOCHS if which == "all" else len({best, last}))
    for alias, path in (("best", best), ("latest", last)):
        (version,) = [version for version in versions if alias in version.aliases]
        assert version.committed
        assert version.metadata["step"] == checkpoint.read_state(path)["progress"]["step"]
        assert version.files["model.safetensors"] == (path / "model.safetensors").read_bytes()
        assert len(json.loads(version.files["class_names.json"])) == 10
        assert b"load_state_dict" in version.files["README.md"]
    assert large_files(folder / "run/wandb") == []


def large_files(folder):
    """Return what is as large as the network."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1_000_000]


def test_weights_of_an_offline_run_are_sent_from_its_checkpoints(tmp_path):
    with faking("good") as server:
        address = f"http://127.0.0.1:{server.port}"
        folder = finished(tmp_path / "offline", address, "--wandb.artifacts", "final", mode="offline")
        assert large_files(folder / "run/wandb") == []
        environment = os.environ | {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}
        wandb = Path(sys.executable).with_name("wandb")
        subprocess.run([wandb, "sync", folder / "run/wandb"], env=environment, check=True, capture_output=True)
        versions = [artifact for artifact in server.artifacts if artifact.type == "model"]
    last = checkpoint.checkpoints(folder / "run/checkpoints")[-1]
    (latest,) = [version for version in versions if "latest" in version.aliases]
    assert latest.files["model.safetensors"] == (last / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_stop_on_the_runs_page(tmp_path):
    """wandb asks for it every 15 s."""
    with faking("good") as server:
        server.stopped = True
        with launch(tmp_path / "stopped", f"http://127.0.0.1:{server.port}", "--epochs", "1000") as trial:
            assert trial.finish() != 0
        ending = [json.loads(body) for path, body in server.requests if path.endswith("/file_stream")][-1]
    assert "its state is saved" in trial.output.read_text()
    assert summary(trial.folder)["status"] == "stopped"
    assert trial.saved() == summary(trial.folder)["global_step"]
    assert (ending["complete"], ending["exitcode"]) == (True, 130)
