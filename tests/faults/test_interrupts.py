"""Signals and requests in mid-run: saved at the step where they are agreed on, and continued from there to the bit."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import warm
from deadlines import Deadline, communicate
from places import ROOT
from ranks import run_ranks
from tiny import equal, losses, records, run, summary, weights

from alexnet_dist.distributed.signals import StoppedError
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_dir
from alexnet_dist.training import checkpoint, metrics, train_loop

STEPS = 6  # of tiny.py's two epochs


def names(folder) -> list[str]:
    return [path.name for path in checkpoint.checkpoints(folder / "checkpoints")]


# ---- one process ----------------------------------------------------------------------------------------------------


SECOND_SIGNAL = """
import signal, sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from alexnet_dist.distributed import signals
signals.REPEAT_SECONDS = float(sys.argv[2])
alone = SimpleNamespace(is_main_process=True, num_processes=1)
with signals.Requests(alone, Path(sys.argv[1]), timeout=timedelta(seconds=1)).listening():
    for name in sys.argv[3:]:
        signal.raise_signal(signal.Signals[name])
print("alive")
"""


def ending(folder, signals, *, repeat_seconds):
    return warm.execute(SECOND_SIGNAL, str(folder), str(repeat_seconds), *signals).returncode


@pytest.mark.parametrize(
    ("signals", "code"),
    [(["SIGTERM"], 0), (["SIGINT", "SIGTERM"], 0), (["SIGTERM"] * 2, -15), (["SIGINT", "SIGTERM", "SIGINT"], -2)],
)
def test_the_same_signal_again_ends_at_once(tmp_path, signals, code):
    assert ending(tmp_path, signals, repeat_seconds=0) == code


def test_sigterm_from_a_scheduler_and_once_more_from_the_launcher_is_one(tmp_path):
    """SLURM signals all processes of a step, and the launcher among them passes its own on to its ranks."""
    assert ending(tmp_path, ["SIGTERM"] * 2, repeat_seconds=60) == 0
    assert ending(tmp_path, ["SIGINT"] * 2, repeat_seconds=60) == -2


def signal_at(monkeypatch, *, step=None, evaluation=None, number=signal.SIGTERM):
    """Send this process a signal within a training step, or within the evaluation after an epoch."""
    train_step, add = train_loop.train_step, metrics.EvalCounts.add
    evaluations = []

    def spy(context, batch, draws, **keywords):
        if keywords["step"] == step:
            os.kill(os.getpid(), number)
        return train_step(context, batch, draws, **keywords)

    def count(self, *arguments, **keywords):
        if self not in evaluations:
            evaluations.append(self)
            if len(evaluations) == evaluation:
                os.kill(os.getpid(), number)
        return add(self, *arguments, **keywords)

    monkeypatch.setattr(train_loop, "train_step", spy)
    monkeypatch.setattr(metrics.EvalCounts, "add", count)


@pytest.mark.parametrize(
    ("moment", "saved"),
    [
        ({"step": 0}, 1),
        ({"step": 1}, 2),
        ({"step": 2}, 3),  # the last of its epoch: saved before the evaluation, which the continued run makes up for
        ({"evaluation": 1}, 3),
        ({"step": 4}, 5),
        ({"step": 5}, 6),
        ({"evaluation": 2}, 6),
    ],
    ids=str,
)
def test_a_stopped_run_continues_to_the_same_weights(tmp_path, monkeypatch, finished_run, moment, saved):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_at(patch, **moment)
        with pytest.raises(StoppedError) as stop:
            run(folder)
    assert stop.value.exit_code == 143
    assert names(folder)[-1] == f"step_{saved:08d}"
    assert (folder / "PREEMPTED").read_text() == f"SIGTERM after step {saved}\n"
    assert summary(folder)["status"] == "stopped"
    run(folder)
    assert not (folder / "PREEMPTED").exists()
    assert summary(folder)["status"] == "finished"
    assert equal(weights(folder), weights(finished_run))
    assert equal(weights(folder, name="optimizer"), weights(finished_run, name="optimizer"))
    assert losses(folder) == losses(finished_run)
    for key in ("best_top1", "final_top1", "final_train_loss", "global_step", "epochs"):
        assert summary(folder)[key] == summary(finished_run)[key], key


def test_usr1_saves_and_changes_nothing(tmp_path, monkeypatch, finished_run):
    signal_at(monkeypatch, step=1, number=signal.SIGUSR1)
    folder = run(tmp_path / "run", "--checkpoint.keep", "9")
    assert names(folder) == ["step_00000002", "step_00000003", "step_00000006"]
    assert equal(weights(folder), weights(finished_run))
    assert losses(folder) == losses(finished_run)


def test_usr1_between_two_records_saves_what_continues_to_the_same_weights(tmp_path, monkeypatch, finished_run):
    """The record at that step is what brings the sums of the epoch up to date."""
    folder = tmp_path / "run"
    flags = ["--log.every-steps", "100", "--checkpoint.keep", "9"]
    with monkeypatch.context() as patch:
        signal_at(patch, step=1, number=signal.SIGUSR1)
        run(folder, *flags)
    for name in ("step_00000003", "step_00000006"):
        shutil.rmtree(folder / "checkpoints" / name)
    run(folder, *flags)
    assert equal(weights(folder), weights(finished_run))
    ours, theirs = ([r for r in records(run) if "val/loss" in r] for run in (folder, finished_run))
    for key in ("train/epoch_loss", "samples_seen", "val/loss"):
        assert [record[key] for record in ours] == pytest.approx([record[key] for record in theirs], rel=1e-12), key


def test_a_run_stopped_at_its_last_step_takes_no_further_one(tmp_path, monkeypatch):
    flags = ["--max-steps", "4"]  # in the middle of the second epoch
    with monkeypatch.context() as patch:
        signal_at(patch, step=3)
        with pytest.raises(StoppedError):
            run(tmp_path / "run", *flags)
    assert names(tmp_path / "run")[-1] == "step_00000004"
    folder, uninterrupted = run(tmp_path / "run", *flags), run(tmp_path / "uninterrupted", *flags)
    assert summary(folder)["global_step"] == 4
    assert summary(folder)["final_top1"] == summary(uninterrupted)["final_top1"]
    assert equal(weights(folder), weights(uninterrupted))


@contextlib.contextmanager
def training(folder):
    """Start train.py as a user does, and wait until it has taken a step."""
    flags = "--data.dataset synthetic --data.limit 52 --data.batch-size 16 --data.image-size 64 --epochs 1000 "
    flags += f"--log.every-steps 1 --log.trackers --checkpoint.every-epochs 1000 --runtime.cpu --out-dir {folder}"
    process = subprocess.Popen(
        [sys.executable, "train.py", *flags.split()],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        end = Deadline(120)
        while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
            assert not end.has_passed(), "no step in two minutes"
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()


def check_stopped(folder):
    """The state is saved at the step that PREEMPTED names, and nothing was done beyond it."""
    step = int(re.fullmatch(r"SIGTERM after step (\d+)\n", (folder / "PREEMPTED").read_text())[1])
    assert names(folder) == [f"step_{step:08d}"]
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["global_step"] == step


def test_sigterm_ends_train_py_with_143_and_one_line(tmp_path):
    with training(tmp_path / "run") as process:
        process.send_signal(signal.SIGTERM)
        _, errors = communicate(process, 60)
    assert process.returncode == 143
    assert "Traceback" not in errors
    assert "stopped by SIGTERM" in errors.splitlines()[-1]
    check_stopped(tmp_path / "run")


# ---- two ranks ------------------------------------------------------------------------------------------------------


CPU = ["--runtime.cpu"]


def stopped_rank(folder, flags, number, signalled_rank, step):
    """Run on a rank of two; one of them gets the signal."""
    torch.set_num_threads(1)
    if int(os.environ["RANK"]) == signalled_rank:
        signal_at(pytest.MonkeyPatch(), step=step, number=number)
    try:
        run(folder, *flags)
    except StoppedError as stop:
        return stop.exit_code
    return 0


@pytest.fixture(scope="module")
def uninterrupted_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair") / "run"
    assert run_ranks(stopped_rank, folder, CPU, signal.SIGTERM, -1, -1) == [0, 0]
    return folder


@pytest.mark.parametrize("signalled_rank", [0, 1])
def test_a_signal_to_one_rank_stops_both_at_the_same_step(tmp_path, uninterrupted_pair, signalled_rank):
    folder = tmp_path / "run"
    codes = run_ranks(stopped_rank, folder, CPU, signal.SIGTERM, signalled_rank, 2)
    assert codes == [143, 143]
    (last,) = names(folder)[-1:]
    assert last in ("step_00000003", "step_00000004"), "within a step of the signal"
    assert run_ranks(stopped_rank, folder, CPU, signal.SIGTERM, -1, -1) == [0, 0]
    assert equal(weights(folder), weights(uninterrupted_pair))
    assert losses(folder) == losses(uninterrupted_pair)


def test_usr1_to_the_other_rank_saves(tmp_path, uninterrupted_pair):
    folder = tmp_path / "run"
    flags = [*CPU, "--checkpoint.keep", "9"]
    assert run_ranks(stopped_rank, folder, flags, signal.SIGUSR1, 1, 0) == [0, 0]
    assert names(folder)[0] in ("step_00000001", "step_00000002")
    assert equal(weights(folder), weights(uninterrupted_pair))


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_two_runs_cannot_write_into_one_folder(tmp_path):
    folder = tmp_path / "run"
    other = run_dir.RunDirLock()
    other.take(folder)
    with pytest.raises(UserError, match=re.escape(f"another run is writing into {folder}")):
        run(folder)
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]
    other.release()
    run(folder, "--epochs", "1")
    run(folder, "--epochs", "2")


def test_a_killed_run_leaves_its_folder_free(tmp_path):
    script = "import sys, os, signal; from pathlib import Path; from alexnet_dist.tracking import run_dir as runlog; "
    script += "lock = runlog.RunDirLock(); lock.take(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    killed = warm.execute(script, str(tmp_path))
    assert killed.returncode == -signal.SIGKILL
    lock = run_dir.RunDirLock()
    lock.take(tmp_path)
    lock.release()


def test_a_disk_without_room_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    folder = run(tmp_path / "run", "--epochs", "1")
    before = names(folder)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    with pytest.raises(
        UserError, match=r"it needs [\d,]+ MB and the disk has 1 MB left.*Earlier checkpoints are intact"
    ):
        run(folder)
    assert names(folder) == before
    assert [path.name for path in (folder / "checkpoints").iterdir()] == before
