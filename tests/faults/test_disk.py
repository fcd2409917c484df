"""R8: disks that are full, files that cannot grow, folders that cannot be written: one line, and nothing lost."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import warm
from tiny import FLAGS, equal, losses, program, records, run, weights

from alexnet_dist.config import parse
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_logger
from alexnet_dist.training import checkpoint


def command(folder: Path, *flags: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """Run train.py's tiny twin as a user does; `first` is code that runs before it."""
    before = f"from alexnet_dist.training import checkpoint\n{first}"
    code = program([*FLAGS, "--out-dir", str(folder), *flags], before=before)
    return warm.execute(code)


RARELY = ("--checkpoint.every-epochs", "1000")
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"  # a checkpoint has 7 MB


def test_a_file_that_cannot_grow_ends_the_run_with_one_line_and_the_last_checkpoint(tmp_path, finished_run):
    folder = run(tmp_path / "run", "--epochs", "2", "--max-steps", "3")
    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()}
    limited = command(folder, first=LIMIT)
    assert limited.returncode == 2, limited.stderr
    assert "step_00000006 cannot be written" in limited.stderr
    assert "Earlier checkpoints are intact" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert {path: path.read_bytes() for path in (folder / "checkpoints").rglob("*") if path.is_file()} == before
    assert command(folder).returncode == 0
    assert equal(weights(folder), weights(finished_run))
    assert losses(folder) == losses(finished_run)


def test_a_save_that_fails_in_the_background_ends_the_run_soon(tmp_path):
    """It fails at step 41; the run is told within a few steps and not at the next checkpoint, at step 82."""
    ended = command(tmp_path / "run", "--epochs", "40", "--checkpoint.every-steps", "41", *RARELY, first=LIMIT)
    assert ended.returncode == 2, ended.stderr
    assert "step_00000041 cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(losses(tmp_path / "run")) < 80
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_full_disk_under_the_metrics_is_one_line(tmp_path):
    config = parse([*FLAGS, "--out-dir", str(tmp_path)])
    log = run_logger.RunLogger(config, {}, enabled=True)
    log.open(step=0)
    log.log({"global_step": 1, "epoch": 1, "train/loss": 1.0})
    (tmp_path / "metrics.jsonl").rename(tmp_path / "kept")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written: .*No space left"):
        log.log({"global_step": 2, "epoch": 1, "train/loss": 1.0})


def test_a_full_disk_at_the_end_hides_nothing(tmp_path, monkeypatch, caplog):
    config = parse([*FLAGS, "--out-dir", str(tmp_path)])
    log = run_logger.RunLogger(config, {}, enabled=True)
    log.open(step=0)
    monkeypatch.setattr(
        run_logger.atomic_files, "write_text", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    log.write_summary({"status": "finished"})
    log.mark_preempted("SIGTERM after step 3", requeue=True)
    assert caplog.text.count("cannot be written") == 2


def test_room_is_looked_for_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    written = []
    monkeypatch.setattr(checkpoint, "_save_tensors", lambda *_: written.append(1))
    with pytest.raises(UserError, match=r"needs \d MB and the disk has 0 MB left"):
        run(tmp_path, "--max-steps", "3")
    assert not written


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    ended = command(tmp_path / "run")
    assert (ended.returncode, "cannot be written" in ended.stderr) == (2, True)


def test_a_folder_that_no_one_can_write_is_one_line():
    ended = command(Path("/proc/alexnet_dist"))
    assert ended.returncode == 2
    assert "error: the run folder /proc/alexnet_dist cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_records_of_a_half_written_line_are_whole_again(tmp_path, finished_run):
    folder = run(tmp_path / "run", "--max-steps", "3")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"global_step": 3, "epoch": 1})[:-7])
    run(folder)
    assert [r["global_step"] for r in records(folder)] == [r["global_step"] for r in records(finished_run)]
