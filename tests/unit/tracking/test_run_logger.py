"""The run folder is the record; trackers may fail, and only rank 0 has either."""

import dataclasses
import json
import logging
import math
import os
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import wandb
from PIL import Image

from alexnet_dist import atomic_files
from alexnet_dist import config as configuration
from alexnet_dist.config import Config, LogConfig, OptimConfig, WandbConfig
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import code_version as code_version_module
from alexnet_dist.tracking import run_dir, run_logger, wandb_tracker
from alexnet_dist.tracking.tracker import Media, Tracker

BLACK = np.zeros((2, 2, 3), np.uint8)
KEY = "0123456789abcdef0123456789abcdef01234567"  # of the length of a real one


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No choice and no login in the environment, and what wandb or the tracker set there goes again."""
    with mock.patch.dict(os.environ):
        for variable in list(os.environ):
            if variable.startswith("WANDB_"):
                monkeypatch.delenv(variable)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        yield


def config_for(folder, **changes):
    return Config(**{"out_dir": folder, "log": LogConfig(trackers=()), **changes})


def record(step, **numbers):
    return {"global_step": step, "epoch": 1, **numbers}


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start(folder, *, step=0, enabled=True, tags=(), stop=None, **changes):
    log = run_logger.RunLog(
        config_for(folder, **changes), facts={"num_classes": 10}, tags=tags, enabled=enabled, step=step, stop=stop
    )
    log.open()
    return log


# ---- before all else ------------------------------------------------------------------------------------------------


def recorded_run(folder, config):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(configuration.to_yaml(config))


@pytest.mark.parametrize(
    ("resume", "place", "refusal"),
    [
        ("auto", "run", None),
        ("auto", "empty", None),
        ("auto", "missing", None),
        ("auto", "none given", None),
        ("never", "run", "holds a run already"),
        ("never", "empty", None),
        ("never", "missing", None),
        ("never", "none given", None),
        ("must", "run", None),
        ("must", "empty", "holds no run"),
        ("must", "missing", "holds no run"),
        ("must", "none given", "no --out-dir is given"),
    ],
)
def test_resume_rules(resume, place, refusal, tmp_path):
    folder = None if place == "none given" else tmp_path / "run"
    config = config_for(folder, resume=resume)
    if place == "run":
        recorded_run(folder, config)
    elif place == "empty":
        folder.mkdir()
    before = sorted(tmp_path.rglob("*"))
    if refusal is None:
        run_dir.check(config)
    else:
        with pytest.raises(UserError) as found:
            run_dir.check(config)
        assert refusal in str(found.value)
        assert {"never": "--resume auto", "must": "--resume must"}[resume] in str(found.value)
        assert folder is None or str(folder) in str(found.value)
    assert sorted(tmp_path.rglob("*")) == before, "a check makes no files"


def changed(config, field, value):
    section, _, name = field.rpartition(".")
    if not section:
        return dataclasses.replace(config, **{name: value})
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


ALLOWED = {
    "epochs": 20,
    "max_steps": 3,
    "resume": "must",
    "data.cache_dir": Path("elsewhere"),
    "data.fallback": "digits",
    "runtime.precision": "fp32",
    "runtime.cpu": True,
    "runtime.timeout_seconds": 5,
    "runtime.probe_network": True,
    "log.every_steps": 1,
    "log.conv2_kernel": 7,
    "wandb.project": "other",
    "wandb.tags": ("a", "b"),
    "checkpoint.keep": 5,
    "checkpoint.every_steps": 10,
}
REFUSED = {
    "seed": 1,
    "data.dataset": "digits",
    "data.revision": "abc",
    "data.batch_size": 512,
    "data.image_size": 112,
    "data.limit": 10,
    "data.val_fraction": 0.1,
    "data.cutout": 0.5,
    "data.mixup": 0.2,
    "data.cutmix": 1.0,
    "data.augment": False,
    "data.normalize": False,
    "model.pretrained": True,
    "model.weights": Path("w.safetensors"),
    "model.init": "he",
    "model.dropout": 0.1,
    "optim.name": "sgd",
    "optim.lr": 0.001,
    "optim.scale_lr": "sqrt",
    "optim.schedule": "one-cycle",
    "optim.warmup_epochs": 1.0,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "optim.label_smoothing": 0.2,
    "optim.ema": 0.99,
    "optim.accumulate": 2,
}


@pytest.mark.parametrize("field", ALLOWED)
def test_a_continued_run_may_change_how_it_runs(field, tmp_path):
    config = config_for(tmp_path / "run")
    recorded_run(tmp_path / "run", config)
    run_dir.check(changed(config, field, ALLOWED[field]))


@pytest.mark.parametrize("field", REFUSED)
def test_a_continued_run_must_not_change_what_it_computes(field, tmp_path):
    config = config_for(tmp_path / "run")
    recorded_run(tmp_path / "run", config)
    with pytest.raises(UserError, match="another configuration") as refusal:
        run_dir.check(changed(config, field, REFUSED[field]))
    assert f"({field}: " in str(refusal.value)
    assert "; " not in str(refusal.value), "and nothing else is named"


def test_the_refusal_names_old_and_new_values(tmp_path):
    recorded_run(tmp_path / "run", config_for(tmp_path / "run"))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.0005 -> 0\.001; seed: 0 -> 3"):
        run_dir.check(config_for(tmp_path / "run", seed=3, optim=OptimConfig(lr=1e-3)))


def test_a_folder_may_have_moved(tmp_path):
    recorded_run(tmp_path / "now", config_for(tmp_path / "then"))
    run_dir.check(config_for(tmp_path / "now", resume="must"))


@pytest.mark.parametrize("content", ["just words", "- a\n- list\n", "", "epochs: [1,\n", "a: b: c", b"\xff\xfe\x00bad"])
def test_a_recorded_configuration_that_cannot_be_read(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"config\.yaml") as refusal:
        run_dir.check(config_for(tmp_path))
    assert "\n" not in str(refusal.value)


def test_online_without_login_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match="wandb login"):
        run_dir.check(config_for(tmp_path, log=LogConfig(), wandb=WandbConfig(mode="online")))
    run_dir.check(config_for(tmp_path, wandb=WandbConfig(mode="online")))  # without the tracker it does not matter


# ---- choosing a folder ----------------------------------------------------------------------------------------------


def test_the_folder_asked_for_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    assert run_dir.choose_folder(config_for(tmp_path / "run"), data_name="digits") == tmp_path / "run"


@pytest.fixture
def frozen_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_logger, "time", SimpleNamespace(strftime=lambda _format: "20260102-030405"))


@pytest.mark.usefixtures("frozen_second")
def test_a_chosen_folder_is_new():
    chosen = []
    for _ in range(4):
        folder = run_dir.choose_folder(Config(), data_name="uoft-cs/cifar10")
        assert folder not in chosen
        chosen.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
    assert [str(folder) for folder in chosen] == [
        f"runs/cifar10-20260102-030405{end}" for end in ("", "-2", "-3", "-4")
    ]


@pytest.mark.usefixtures("frozen_second")
def test_two_runs_begun_in_the_same_second_do_not_share_a_folder():
    first, second = (run_dir.choose_folder(Config(), data_name="digits") for _ in range(2))
    assert first != second, "between choosing and writing lie seconds, in which another run may choose"


# ---- records --------------------------------------------------------------------------------------------------------


def test_records_are_the_lines_of_metrics_jsonl(tmp_path):
    log = start(tmp_path / "run")
    given = [record(1, **{"train/loss": 0.1 + 0.2}), record(2, **{"train/loss": 1e-30}), record(2, **{"val/top1": 0.5})]
    for one in given:
        log.log(one)
        assert lines_of(log.folder)[-1] == one, "on the disk at once, for whoever watches"
    log.log(None)
    log.close()
    assert lines_of(log.folder) == log.records == given
    assert (log.folder / "metrics.jsonl").read_text().endswith("}\n")


def test_lines_are_json_even_where_a_number_is_not_finite(tmp_path):
    # under fp16 the gradient's norm is infinite at every overflow that the scaler deals with
    log = start(tmp_path / "run")
    log.log(record(1, **{"train/grad_norm": math.inf, "val/loss": math.nan, "train/loss": 2.0}))
    log.write_summary({"final_train_loss": math.nan, "status": "finished"})

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse)["train/loss"] == 2.0
    assert json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=refuse)["status"] == "finished"


def test_configuration_in_the_folder_reads_back_equal(tmp_path):
    config = config_for(tmp_path / "a" / "run", seed=3, optim=OptimConfig(lr=3e-4, ema=0.99))
    log = run_logger.RunLog(config, facts={}, enabled=True, step=0)
    log.open()
    log.close()
    assert configuration.parse(["--config", str(tmp_path / "a" / "run" / "config.yaml")]) == config


def test_resuming_cuts_later_records_and_a_torn_line(tmp_path):
    first = start(tmp_path / "run")
    for step in (1, 2, 3, 4):
        first.log(record(step, **{"train/loss": float(step)}))
    with (first.folder / "metrics.jsonl").open("a") as file:
        file.write('{"global_step": 2, "epoch": 1, "train/lo')  # killed while writing
    again = start(tmp_path / "run", step=2)
    kept = [record(1, **{"train/loss": 1.0}), record(2, **{"train/loss": 2.0})]
    assert again.records == lines_of(again.folder) == kept
    again.log(record(3, **{"train/loss": 33.0}))
    assert lines_of(again.folder) == [*kept, record(3, **{"train/loss": 33.0})]


def test_resuming_skips_lines_that_are_no_records(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('[1]\n3\n\n{"epoch": 1}\n{"global_step": 1, "epoch": 1}\n\x00\x00\x00')
    assert start(tmp_path, step=5).records == [{"global_step": 1, "epoch": 1}]


def test_a_run_that_begins_anew_keeps_no_old_records(tmp_path):
    first = start(tmp_path / "run")
    first.log(record(1))
    assert start(tmp_path / "run", step=0).records == []
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_other_ranks_write_nothing(tmp_path):
    log = start(tmp_path / "run", enabled=False, log=LogConfig(), wandb=WandbConfig(mode="offline"))
    log.log(record(1))
    log.show(record(1), lambda: pytest.fail("drawn"))
    log.write_summary({"status": "finished"})
    log.mark_preempted("SIGTERM", requeue=True)
    log.close()
    assert not (tmp_path / "run").exists()
    assert log.records == []
    assert log.tracking == "none"


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        start(tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        start(tmp_path / "file" / "run")


def test_pictures_are_saved_as_they_are(tmp_path):
    log = start(tmp_path / "run")
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (7, 5, 3), dtype=np.uint8) for _ in range(3)]
    for epoch, picture in enumerate(pictures):
        at = {"global_step": 5 * epoch, "epoch": epoch}
        log.show(at, lambda picture=picture: Media({"kernels/conv1_now": picture}))
    log.close()
    figures = tmp_path / "run" / "figures"
    for folder, expected in [*((f"epoch_{epoch:04d}", pictures[epoch]) for epoch in range(3)), (".", pictures[2])]:
        with Image.open(figures / folder / "conv1_now.png") as image:
            assert np.array_equal(np.array(image), expected)


def test_a_picture_that_cannot_be_drawn_or_written_costs_nothing_else(tmp_path, caplog):
    log = start(tmp_path / "run")
    log._trackers = [recorder := Recorder()]
    log.show(record(1), lambda: 1 / 0)
    (tmp_path / "run" / "figures").write_text("in the way")
    log.show(record(1), lambda: Media({"kernels/p": BLACK}))
    log.log(record(1))
    log.close()
    assert recorder.calls == ["log", "close"]
    assert caplog.text.count("left out") == 2
    assert lines_of(log.folder) == [record(1)]


def test_some_pictures_are_the_folders_alone(tmp_path):
    log = start(tmp_path / "run")
    log._trackers = [recorder := Recorder()]
    log.show(record(1), lambda: Media({"errors": BLACK}), send=False)
    log.close()
    assert (tmp_path / "run" / "figures" / "errors.png").exists()
    assert recorder.calls == ["close"]


def test_nested_numbers_that_are_not_finite_become_null(tmp_path):
    start(tmp_path / "run").write("evaluation.json", {"worst": [{"loss": math.inf, "id": 3}]})
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == {"worst": [{"loss": None, "id": 3}]}


def test_code_version_is_a_commit_of_this_checkout(tmp_path, monkeypatch):
    source = tmp_path / "checkout" / "alexnet_dist" / "runlog.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    monkeypatch.setattr(code_version_module, "__file__", str(source))

    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path / "checkout"), *identity, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert code_version_module.code_version() is None, "no checkout"
    git("init")
    assert code_version_module.code_version() is None, "installed within somebody else's checkout"
    git("add", ".")
    git("commit", "-m", "all")
    commit = git("rev-parse", "HEAD")
    assert code_version_module.code_version() == commit
    source.write_text("changed")
    assert code_version_module.code_version() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert code_version_module.code_version() is None, "no git"


# ---- the summary ----------------------------------------------------------------------------------------------------


def test_summary_is_valid_json(tmp_path):
    log = start(tmp_path / "run")
    summary = {"status": "finished", "best_top1": 0.5, "best_epoch": None, "versions": {"torch": "2"}, "name": "é"}
    log.write_summary(summary)
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8")) == summary
    assert sorted(path.name for path in log.folder.iterdir()) == ["config.yaml", "metrics.jsonl", "summary.json"]


def test_summary_is_replaced_in_one_step(tmp_path, monkeypatch):
    log = start(tmp_path / "run")
    log.write_summary({"status": "old"})
    seen = []

    def look(self, target):
        seen.append((target.read_text(), json.loads(self.read_text())))
        raise OSError("the power fails here")

    monkeypatch.setattr(Path, "replace", look)
    log.write_summary({"status": "new"})
    assert seen == [(json.dumps({"status": "old"}, indent=1) + "\n", {"status": "new"})], "new is whole, old untouched"
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"status": "old"}


def test_write_text_replaces_and_leaves_nothing_behind(tmp_path):
    for text in ("one", "zwölf\n"):
        atomic_files.write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


# ---- trackers that fail ---------------------------------------------------------------------------------------------


class Recorder(Tracker):
    where = "recorder"

    def __init__(self, *, breaks_at=None):
        self.calls = []
        self.threads = set()
        self.breaks_at = breaks_at

    def __getattribute__(self, name):
        return (lambda *_: self._take(name)) if name in CALLS else super().__getattribute__(name)

    def _take(self, method):
        self.calls.append(method)
        self.threads.add(threading.current_thread())
        if method == self.breaks_at:
            raise RuntimeError("the tracker is gone")


CALLS = ["log", "show", "confusion", "table", "alert", "publish", "summary", "preempted", "close"]


def call_all(log):
    log.log(record(1))
    log.show(record(1), lambda: Media({"kernels/p": BLACK}))
    log.confusion(record(1), np.eye(2, dtype=np.int64), ("a", "b"))
    log.table(record(1), "errors", list)
    log.alert("title", "text", level="INFO")
    log.publish(None)
    log.write_summary({"status": "finished"})
    log.mark_preempted("SIGTERM", requeue=True)


@pytest.mark.parametrize("method", CALLS)
def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(method, tmp_path, caplog):
    log = start(tmp_path / "run")
    broken, healthy = Recorder(breaks_at=method), Recorder()
    log._trackers = [broken, healthy]
    with caplog.at_level(logging.WARNING):
        call_all(log)
        log.log(record(2))
        log.close()
    assert [entry.message for entry in caplog.records] == [
        "Recorder failed and is dropped, metrics.jsonl goes on: the tracker is gone"
    ]
    assert broken.calls.count(method) == 1, "no second chance"
    assert broken.calls[-1] == method
    assert sorted(healthy.calls) == sorted([*CALLS, "log"])
    assert healthy.calls[-1] == "close", "pictures come from another thread, and before the end"
    assert len(lines_of(log.folder)) == 2
    assert json.loads((log.folder / "summary.json").read_text()) == {"status": "finished"}


def test_trackers_are_called_on_a_thread_of_their_own_that_ends(tmp_path):
    log = start(tmp_path / "run")
    log._trackers = [recorder := Recorder()]
    call_all(log)
    log.close()
    (thread,) = recorder.threads
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


class Hanging(Tracker):
    """A server that never answers, until the test is over."""

    def __init__(self):
        self.over = threading.Event()
        self.shown = 0

    def log(self, record):
        del record
        self.over.wait()

    def show(self, record, media):
        del record, media
        self.over.wait()
        self.shown += 1


@pytest.fixture
def hanging(monkeypatch):
    for module, name in (
        (run_logger, "PATIENCE_SECONDS"),
        (run_logger, "GRACE_SECONDS"),
        (wandb_tracker, "FINISH_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.1)
    tracker = Hanging()
    yield tracker
    tracker.over.set()


def test_a_tracker_that_hangs_holds_nobody(tmp_path, monkeypatch, caplog, hanging):
    monkeypatch.setattr(run_logger, "MOST_RECORDS", 5)
    log = start(tmp_path / "run")
    log._trackers = [hanging]
    began = time.monotonic()
    for step in range(1, 20):
        log.log(record(step))
    log.close()
    assert time.monotonic() - began < 5
    assert "a tracker hangs" in caplog.text
    assert len(lines_of(log.folder)) == 19


def test_pictures_for_a_tracker_that_hangs_are_written_and_do_not_pile_up(tmp_path, caplog, hanging):
    log = start(tmp_path / "run")
    log._trackers = [hanging]
    for epoch in range(1, 21):
        log.show({"global_step": epoch, "epoch": epoch}, lambda: Media({"kernels/p": BLACK}))
    log.close()
    assert len(list((tmp_path / "run" / "figures").glob("epoch_*/p.png"))) == 20
    assert f"{20 - run_logger.MOST_MEDIA} records or sets of pictures were too many" in caplog.text
    assert hanging.shown <= 1


def test_training_waits_where_too_much_is_still_to_be_drawn(tmp_path):
    """Each set waits with its weights, so memory would grow without an end where epochs are short."""
    log = start(tmp_path / "run")
    drawn, go = [], threading.Event()

    def draw():
        go.wait(60)
        drawn.append(1)
        return Media()

    def hand_over():
        for _ in range(10):
            log.show(record(1), draw)

    training = threading.Thread(target=hand_over)
    training.start()
    training.join(0.5)
    assert training.is_alive(), "four wait, and one is being drawn"
    go.set()
    training.join(60)
    log.close()
    assert len(drawn) == 10


def offline(folder, **changes):
    return start(folder, **{"log": LogConfig(), "wandb": WandbConfig(mode="offline"), **changes})


def test_a_tracker_that_cannot_start_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wandb, "init", mock.Mock(side_effect=OSError("disk on fire")))
    log = offline(tmp_path / "run")
    assert "wandb cannot be started and is left out: disk on fire" in caplog.text
    assert log.tracking == "none"
    log.log(record(1))
    assert lines_of(log.folder) == [record(1)]


def test_an_unreachable_server_means_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = SimpleNamespace(
        dir=str(tmp_path / "x" / "files"), define_metric=lambda *_a, **_k: None, finish=lambda **_k: None
    )
    modes = []

    def init(*, mode, **_arguments):
        modes.append(mode)
        if mode == "online":
            raise TimeoutError("no answer")
        return run

    monkeypatch.setattr(wandb, "init", init)
    log = offline(tmp_path / "run", wandb=WandbConfig())
    assert modes == ["online", "offline"]
    assert log.tracking == f"W&B offline (not reachable), later: wandb sync {tmp_path / 'run' / 'wandb'}"
    assert "W&B is not reachable (no answer)" in caplog.text
    assert KEY not in caplog.text + log.tracking
