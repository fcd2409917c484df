"""Which folder a run may write into, and which run may be continued."""

import dataclasses
import errno
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import tiny
from run_logs import BLACK, config_for, lines_of, record, start

from alexnet_dist import config as configuration
from alexnet_dist.config import Config, LogConfig, OptimConfig, WandbConfig
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_dir, wandb_tracker
from alexnet_dist.tracking.tracker import Media

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
        run_dir.check_run_dir(config)
    else:
        with pytest.raises(UserError) as found:
            run_dir.check_run_dir(config)
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
    run_dir.check_run_dir(changed(config, field, ALLOWED[field]))


@pytest.mark.parametrize("field", REFUSED)
def test_a_continued_run_must_not_change_what_it_computes(field, tmp_path):
    config = config_for(tmp_path / "run")
    recorded_run(tmp_path / "run", config)
    with pytest.raises(UserError, match="another configuration") as refusal:
        run_dir.check_run_dir(changed(config, field, REFUSED[field]))
    assert f"({field}: " in str(refusal.value)
    assert "; " not in str(refusal.value), "and nothing else is named"


@pytest.mark.parametrize("resume", ["auto", "never", "must"])
def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path, resume):
    """safetensors writes there, and cannot read it again."""
    with pytest.raises(UserError, match=r"--out-dir .*caf\\xe9 is not UTF-8 here: choose another"):
        run_dir.check_run_dir(config_for(tmp_path / "caf\udce9", resume=resume))


def test_the_refusal_names_old_and_new_values(tmp_path):
    recorded_run(tmp_path / "run", config_for(tmp_path / "run"))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.0005 -> 0\.001; seed: 0 -> 3"):
        run_dir.check_run_dir(config_for(tmp_path / "run", seed=3, optim=OptimConfig(lr=1e-3)))


def test_a_folder_may_have_moved(tmp_path):
    recorded_run(tmp_path / "now", config_for(tmp_path / "then"))
    run_dir.check_run_dir(config_for(tmp_path / "now", resume="must"))


@pytest.mark.parametrize("content", ["just words", "- a\n- list\n", "", "epochs: [1,\n", "a: b: c", b"\xff\xfe\x00bad"])
def test_a_recorded_configuration_that_cannot_be_read(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"config\.yaml") as refusal:
        run_dir.check_run_dir(config_for(tmp_path))
    assert "\n" not in str(refusal.value)


def test_online_without_login_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match="wandb login"):
        wandb_tracker.check(config_for(tmp_path, log=LogConfig(), wandb=WandbConfig(mode="online")))
    wandb_tracker.check(config_for(tmp_path, wandb=WandbConfig(mode="online")))  # W&B is no tracker: no matter


# ---- choosing a folder ----------------------------------------------------------------------------------------------


def test_the_folder_asked_for_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    assert run_dir.choose_run_dir(config_for(tmp_path / "run"), data_name="digits") == tmp_path / "run"


@pytest.fixture
def frozen_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_dir, "time", SimpleNamespace(strftime=lambda _format: "20260102-030405"))


@pytest.mark.usefixtures("frozen_second")
def test_a_chosen_folder_has_a_name_that_the_locale_can_write(monkeypatch):
    assert run_dir.choose_run_dir(Config(), data_name="org/caf\u00e9").name == "caf\u00e9-20260102-030405"
    monkeypatch.setattr(run_dir.sys, "getfilesystemencoding", lambda: "ascii")  # as under LC_ALL=C PYTHONUTF8=0
    assert run_dir.choose_run_dir(Config(), data_name="caf\u00e9").name == r"caf\xe9-20260102-030405"


@pytest.mark.usefixtures("frozen_second")
def test_a_chosen_folder_has_a_name_that_file_systems_take():
    name = run_dir.choose_run_dir(Config(), data_name="\u5199" * 80).name
    assert name == "\u5199" * 26 + "-20260102-030405"


@pytest.mark.usefixtures("frozen_second")
def test_a_chosen_folder_is_new():
    chosen = []
    for _ in range(4):
        folder = run_dir.choose_run_dir(Config(), data_name="uoft-cs/cifar10")
        assert folder not in chosen
        chosen.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
    assert [str(folder) for folder in chosen] == [
        f"runs/cifar10-20260102-030405{end}" for end in ("", "-2", "-3", "-4")
    ]


@pytest.mark.usefixtures("frozen_second")
def test_two_runs_begun_in_the_same_second_do_not_share_a_folder():
    first, second = (run_dir.choose_run_dir(Config(), data_name="digits") for _ in range(2))
    assert first != second, "between choosing and writing lie seconds, in which another run may choose"


# ---- who may read it ------------------------------------------------------------------------------------------------


def mode_of(path):
    return path.stat().st_mode & 0o777


def modes(folder):
    """The modes of a run folder's files and sub-folders, by name; private ones left out."""
    found = {path.name: mode_of(path) for path in folder.iterdir()}
    return {name: mode for name, mode in found.items() if mode != (0o700 if (folder / name).is_dir() else 0o600)}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("made_by", ["lock", "logger", "choice"])
def test_a_new_run_folder_can_be_entered_by_others(made_by, tmp_path, monkeypatch):
    """S12."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a" / "run"
    if made_by == "lock":
        lock = run_dir.RunDirLock()
        lock.take(folder)
        lock.release()
    elif made_by == "logger":
        start(folder).close()
    else:
        folder = run_dir.choose_run_dir(Config(), data_name="digits")
    assert mode_of(folder) == 0o755
    assert modes(folder) == {}


@pytest.mark.usefixtures("umask")
def test_what_a_run_folder_holds_is_private(tmp_path):
    trackers = ("wandb", "tensorboard") if importlib.util.find_spec("tensorboard") else ("wandb",)
    folder = tmp_path / "run"
    for step in (0, 1):  # begun, and continued
        log = start(folder, step=step, log=LogConfig(trackers=trackers), wandb=WandbConfig(mode="disabled"))
        log.log(record(1))
        log.show(record(1), lambda: Media({"kernels/p": BLACK}))
        log.write("evaluation.json", {})
        log.write_summary({})
        log.mark_preempted("SIGTERM", requeue=True)
        log.close()
    run_dir.private_folder(folder, "profile")
    assert mode_of(folder) == 0o755
    assert modes(folder) == {}
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "evaluation.json", "summary.json", "PREEMPTED"),
        *("figures", "profile", *trackers),
    }


def test_a_whole_run_keeps_its_files_private(tmp_path):
    before = os.umask(0)
    try:
        folder = tiny.run(tmp_path / "run", "--profile", "--epochs", "3", reported=True)
    finally:
        os.umask(before)
    assert {*modes(folder)} <= {"checkpoints"}
    assert {path.name for path in folder.iterdir()} >= {"profile", "figures", "report.html"}


@pytest.mark.usefixtures("umask")
def test_folders_that_exist_keep_their_mode(tmp_path):
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    folder.chmod(0o2770)
    (folder / "figures").chmod(0o750)
    lock = run_dir.RunDirLock()
    lock.take(folder)
    log = start(folder)
    log.show(record(1), lambda: Media({"kernels/p": BLACK}))
    log.close()
    lock.release()
    assert folder.stat().st_mode & 0o7777 == 0o2770
    assert mode_of(folder / "figures") == 0o750


def test_a_file_system_without_modes_does_not_stop_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "chmod", mock.Mock(side_effect=OSError(errno.ENOTSUP, "no modes here")))
    start(tmp_path / "run").log(record(1))
    assert lines_of(tmp_path / "run") == [record(1)]
