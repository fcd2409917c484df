"""The train command's own functions; whole runs are in tests/integration/test_train.py."""

import logging
from types import SimpleNamespace

import checkpoints
import pytest
import torch

from alexnet_dist.commands import train
from alexnet_dist.config import Config, WandbConfig
from alexnet_dist.errors import UserError
from alexnet_dist.training.progress import Progress

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, process_index=0, scaler=None)
DATA = SimpleNamespace(fingerprint="f00d")
PROGRESS = {"step": 7, "epoch": 2, "top1": 0.5, "best_top1": 0.6, "best_epoch": 1}


def context_of(model, optimizer):
    wrapped = SimpleNamespace(optimizer=optimizer)
    return SimpleNamespace(accelerator=ALONE, network=model, optimizer=wrapped, ema=None)


# ---- resuming -------------------------------------------------------------------------------------------------------


def test_a_folder_without_checkpoints_is_a_beginning(tmp_path):
    assert train.resume(tmp_path, DATA, context_of(*checkpoints.trained())) == Progress()


def test_a_run_continues_where_its_checkpoint_stands(tmp_path):
    model, optimizer = checkpoints.trained(steps=5)
    state = {"fingerprint": "f00d", "progress": PROGRESS}
    checkpoints.save(tmp_path / "checkpoints", step=7, model=model, optimizer=optimizer, **state)
    fresh = checkpoints.trained(steps=1, model=checkpoints.network(seed=1))
    assert train.resume(tmp_path, DATA, context_of(*fresh)) == Progress(**PROGRESS)
    assert all(torch.equal(fresh[0].state_dict()[key], value) for key, value in model.state_dict().items())
    expected, found = (one.state_dict()["state"] for one in (optimizer, fresh[1]))
    assert all(torch.equal(found[number]["exp_avg"], state["exp_avg"]) for number, state in expected.items())


def test_a_run_does_not_continue_on_other_images(tmp_path):
    checkpoints.save(tmp_path / "checkpoints", step=7, fingerprint="other", progress=PROGRESS)
    with pytest.raises(UserError, match="was trained on other images"):
        train.resume(tmp_path, DATA, context_of(*checkpoints.trained()))


# ---- endings --------------------------------------------------------------------------------------------------------


SUMMARY = {"dataset": "digits", "final_top1": 0.5, "best_top1": 0.6, "best_epoch": 1, "global_step": 7}
SUMMARY |= {"wall_seconds": 3.0}


class Log:
    """Notes which calls come, with what they are given."""

    def __init__(self, folder, *, enabled=True):
        self.folder, self.enabled, self.calls = folder, enabled, []

    def __getattr__(self, name):
        return lambda *given, **_: self.calls.append((name, *given))


@pytest.fixture
def finish(tmp_path, monkeypatch):
    """End a run, and return what its log was told."""

    def end(*, exit_code, wish="final", enabled=True, write=lambda _: None):
        log = Log(tmp_path, enabled=enabled)
        monkeypatch.setattr(train.page, "write", lambda folder: (log.calls.append(("page",)), write(folder)))
        monkeypatch.setattr(train.network_file, "publish_best_and_last", lambda log: log.calls.append(("publish",)))
        run = SimpleNamespace(log=log, config=Config(wandb=WandbConfig(artifacts=wish)))
        train.finish(run, SUMMARY, exit_code=exit_code)
        return log.calls

    return end


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"exit_code": 0}, ["alert", "publish", "write_summary", "close", "page"]),
        ({"exit_code": 0, "wish": "none"}, ["alert", "write_summary", "close", "page"]),
        ({"exit_code": 143}, ["write_summary", "close", "page"]),
        ({"exit_code": 0, "enabled": False}, ["write_summary", "close"]),
    ],
    ids=["finished", "no artifacts", "stopped", "another rank"],
)
def test_an_ending_is_recorded_and_only_a_good_one_is_published(finish, how, expected):
    calls = finish(**how)
    assert [name for name, *_ in calls] == expected
    assert ("write_summary", SUMMARY) in calls
    assert ("close", how["exit_code"]) in calls


def test_a_report_that_fails_is_a_warning(finish, caplog):
    with caplog.at_level(logging.WARNING):
        finish(exit_code=0, write=lambda _: 1 / 0)
    assert "report.html cannot be written: division by zero" in caplog.text


def test_a_result_is_that_of_the_progress(tmp_path):
    result = train.result_of(tmp_path, Progress(**PROGRESS), status="max_steps")
    assert result == train.TrainResult(tmp_path, "max_steps", top1=0.5, best_top1=0.6, best_epoch=1)
