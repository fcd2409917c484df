"""Launches that cannot do what was asked are refused."""

import dataclasses
import os
import signal

import pytest
from launches import config_for

from alexnet_dist.config import parse
from alexnet_dist.distributed import launch_checks
from alexnet_dist.errors import UserError


@pytest.mark.usefixtures("no_gpu")
def test_processes_without_devices_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes.* --runtime\.cpu"):
        launch_checks.check_launch(config_for())
    launch_checks.check_launch(config_for(cpu=True))


@pytest.mark.usefixtures("no_gpu")
def test_one_process_needs_no_device_of_its_own(monkeypatch):
    launch_checks.check_launch(config_for())
    monkeypatch.setenv("WORLD_SIZE", "1")
    launch_checks.check_launch(config_for())


@pytest.mark.usefixtures("gpu")
def test_processes_with_devices_are_fine(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    launch_checks.check_launch(config_for())


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "nearest"),
    [
        (100, 3, 1, "99 or 102"),
        (256, 7, 1, "252 or 259"),
        (100, 8, 2, "96 or 112"),
        (300, 4, 3, None),
        (6, 4, 3, "12"),
        (3, 4, 1, "4"),
        (1, 2, 1, "2"),
        (256, 8, 1, None),
        (255, 1, 5, None),
    ],
)
def test_batch_that_processes_cannot_share(batch_size, world_size, accumulate, nearest, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    config = config_for(batch_size=batch_size, accumulate=accumulate, cpu=True)
    if nearest is None:
        launch_checks.check_launch(config)
        return
    with pytest.raises(UserError) as refusal:
        launch_checks.check_launch(config)
    message = str(refusal.value)
    assert message.startswith(f"--data.batch-size {batch_size} ")
    assert f"{world_size} processes" in message
    assert message.endswith(f"that do are {nearest}")
    assert (f"--optim.accumulate {accumulate}" in message) == (accumulate > 1)
    for value in map(int, nearest.split(" or ")):
        launch_checks.check_launch(config_for(batch_size=value, accumulate=accumulate, cpu=True))


@pytest.mark.parametrize(
    ("launcher", "local_rank", "ends_it"),
    [
        ({}, "0", False),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_MAX_RESTARTS": "0"}, "0", False),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_MAX_RESTARTS": "3"}, "0", True),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_MAX_RESTARTS": "3"}, "1", True),
    ],
)
def test_a_refusal_ends_a_launcher_that_would_start_it_again(launcher, local_rank, ends_it, monkeypatch, tmp_path):
    """The first process of a machine does, once it has printed the error; the others would be too early."""
    for name, value in {**launcher, "WORLD_SIZE": "3", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    later, slept = [], []
    monkeypatch.setattr(launch_checks.atexit, "register", lambda *call: later.append(call))
    monkeypatch.setattr(launch_checks.time, "sleep", slept.append)
    config = dataclasses.replace(config_for(cpu=True), out_dir=tmp_path)
    with pytest.raises(UserError, match="does not divide by 3 processes"):
        launch_checks.check_launch(config)
    assert later == ([(os.kill, os.getppid(), signal.SIGTERM)] if ends_it else [])
    assert slept == ([launch_checks.WAIT_FOR_FIRST] if ends_it and local_rank == "1" else [])


def test_restarts_without_a_folder_to_find_again_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UserError, match="--max_restarts needs --out-dir"):
        launch_checks.check_launch(parse([]))
    launch_checks.check_launch(parse(["--out-dir", str(tmp_path)]))
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    launch_checks.check_launch(parse([]))
