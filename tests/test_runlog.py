"""The run folder is the record; trackers may fail, and only rank 0 has either."""

import dataclasses
import json
import logging
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import wandb
from PIL import Image

from alexnet_dist import config as configuration
from alexnet_dist import files, runlog
from alexnet_dist.config import Config, LogConfig, OptimConfig, UserError, WandbConfig

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


def start(folder, *, step=0, enabled=True, **changes):
    log = runlog.RunLog(config_for(folder, **changes), facts={"num_classes": 10}, enabled=enabled, step=step)
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
        runlog.check(config)
    else:
        with pytest.raises(UserError) as found:
            runlog.check(config)
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
    "data.augment": False,
    "data.normalize": False,
    "model.pretrained": True,
    "model.weights": Path("w.safetensors"),
    "model.dropout": 0.1,
    "optim.name": "sgd",
    "optim.lr": 0.001,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 1.0,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "optim.label_smoothing": 0.1,
    "optim.ema": 0.99,
    "optim.accumulate": 2,
}


@pytest.mark.parametrize("field", ALLOWED)
def test_a_continued_run_may_change_how_it_runs(field, tmp_path):
    config = config_for(tmp_path / "run")
    recorded_run(tmp_path / "run", config)
    runlog.check(changed(config, field, ALLOWED[field]))


@pytest.mark.parametrize("field", REFUSED)
def test_a_continued_run_must_not_change_what_it_computes(field, tmp_path):
    config = config_for(tmp_path / "run")
    recorded_run(tmp_path / "run", config)
    with pytest.raises(UserError, match="another configuration") as refusal:
        runlog.check(changed(config, field, REFUSED[field]))
    assert f"({field}: " in str(refusal.value)
    assert "; " not in str(refusal.value), "and nothing else is named"


def test_the_refusal_names_old_and_new_values(tmp_path):
    recorded_run(tmp_path / "run", config_for(tmp_path / "run"))
    with pytest.raises(UserError, match=r"optim\.lr: 0\.0005 -> 0\.001; seed: 0 -> 3"):
        runlog.check(config_for(tmp_path / "run", seed=3, optim=OptimConfig(lr=1e-3)))


def test_a_folder_may_have_moved(tmp_path):
    recorded_run(tmp_path / "now", config_for(tmp_path / "then"))
    runlog.check(config_for(tmp_path / "now", resume="must"))


@pytest.mark.parametrize("content", ["just words", "- a\n- list\n", "", "epochs: [1,\n", "a: b: c", b"\xff\xfe\x00bad"])
def test_a_recorded_configuration_that_cannot_be_read(content, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"config\.yaml") as refusal:
        runlog.check(config_for(tmp_path))
    assert "\n" not in str(refusal.value)


def test_online_without_login_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(UserError, match="wandb login"):
        runlog.check(config_for(tmp_path, log=LogConfig(), wandb=WandbConfig(mode="online")))
    runlog.check(config_for(tmp_path, wandb=WandbConfig(mode="online")))  # without the tracker it does not matter


# ---- choosing a folder ----------------------------------------------------------------------------------------------


def test_the_folder_asked_for_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    assert runlog.choose_folder(config_for(tmp_path / "run"), data_name="digits") == tmp_path / "run"


@pytest.fixture
def frozen_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runlog, "time", SimpleNamespace(strftime=lambda _format: "20260102-030405"))


@pytest.mark.usefixtures("frozen_second")
def test_a_chosen_folder_is_new():
    chosen = []
    for _ in range(4):
        folder = runlog.choose_folder(Config(), data_name="uoft-cs/cifar10")
        assert folder not in chosen
        chosen.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
    assert [str(folder) for folder in chosen] == [
        f"runs/cifar10-20260102-030405{end}" for end in ("", "-2", "-3", "-4")
    ]


@pytest.mark.usefixtures("frozen_second")
def test_two_runs_begun_in_the_same_second_do_not_share_a_folder():
    first, second = (runlog.choose_folder(Config(), data_name="digits") for _ in range(2))
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
    log = runlog.RunLog(config, facts={}, enabled=True, step=0)
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
    log.pictures(record(1), {"p": np.zeros((2, 2, 3), np.uint8)}, {"p": "caption"}, prefix="kernels/")
    log.write_summary({"status": "finished"})
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
    picture = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    log.pictures(record(1), {"conv1_now": picture}, {"conv1_now": "caption"}, prefix="kernels/")
    with Image.open(tmp_path / "run" / "figures" / "conv1_now.png") as image:
        assert np.array_equal(np.array(image), picture)


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
        files.write_text(tmp_path / "a.txt", text)
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


# ---- trackers that fail ---------------------------------------------------------------------------------------------


class Recorder:
    where = "recorder"

    def __init__(self, *, breaks_at=None):
        self.calls = []
        self.breaks_at = breaks_at

    def _take(self, method):
        self.calls.append(method)
        if method == self.breaks_at:
            raise RuntimeError("the tracker is gone")

    def log(self, record):
        assert record["epoch"] == 1
        self._take("log")

    def pictures(self, record, pictures, captions):
        assert list(pictures) == list(captions) == ["kernels/p"]
        assert record["epoch"] == 1
        self._take("pictures")

    def summary(self, summary):
        assert summary == {"status": "finished"}
        self._take("summary")

    def close(self):
        self._take("close")


CALLS = ["log", "pictures", "summary", "close"]


@pytest.mark.parametrize("method", CALLS)
def test_a_tracker_that_fails_is_dropped_and_the_run_goes_on(method, tmp_path, caplog):
    log = start(tmp_path / "run")
    broken, healthy = Recorder(breaks_at=method), Recorder()
    log._trackers = [broken, healthy]
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            log.log(record(step))
            log.pictures(record(step), {"p": np.zeros((2, 2, 3), np.uint8)}, {"p": "c"}, prefix="kernels/")
        log.write_summary({"status": "finished"})
        log.close()
    assert [entry.message for entry in caplog.records] == [
        "Recorder failed and is dropped, metrics.jsonl goes on: the tracker is gone"
    ]
    assert broken.calls.count(method) == 1, "no second chance"
    assert broken.calls[-1] == method
    assert healthy.calls == ["log", "pictures", "log", "pictures", "summary", "close"]
    assert len(lines_of(log.folder)) == 2
    assert json.loads((log.folder / "summary.json").read_text()) == {"status": "finished"}


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
    run = SimpleNamespace(dir=str(tmp_path / "x" / "files"), define_metric=lambda *_a, **_k: None, finish=lambda: None)
    modes = []

    def init(*, mode, **_arguments):
        modes.append(mode)
        if mode == "online":
            raise TimeoutError("no answer")
        return run

    monkeypatch.setattr(wandb, "init", init)
    log = offline(tmp_path / "run", wandb=WandbConfig())
    assert modes == ["online", "offline"]
    assert log.tracking == f"W&B offline (not reachable), later: wandb sync {tmp_path / 'x'}"
    assert "W&B is not reachable (no answer)" in caplog.text
    assert KEY not in caplog.text + log.tracking


# ---- where W&B records go -------------------------------------------------------------------------------------------


def netrc_file(path, host="api.wandb.ai"):
    path.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    path.chmod(0o600)
    return str(path)


MODES = [  # asked for, WANDB_MODE, login -> mode, reason
    ("auto", None, False, "offline", "no login: wandb login"),
    ("auto", None, True, "online", "WANDB_API_KEY"),
    ("auto", "online", True, "online", "WANDB_MODE"),
    ("auto", "offline", True, "offline", "WANDB_MODE"),
    ("auto", "Disabled", True, "disabled", "WANDB_MODE"),
    ("auto", "", True, "online", "WANDB_API_KEY"),
    ("auto", "nonsense", False, "offline", "no login: wandb login"),
    ("online", None, True, "online", "asked for"),
    ("online", "disabled", True, "online", "asked for"),
    ("offline", None, True, "offline", "asked for"),
    ("offline", "online", True, "offline", "asked for"),
    ("disabled", "online", False, "disabled", "asked for"),
]


@pytest.mark.parametrize("case", MODES)
def test_wandb_mode(case, monkeypatch):
    asked, variable, login, mode, reason = case
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    if login:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert runlog.wandb_mode(WandbConfig(mode=asked)) == (mode, reason)


@pytest.mark.parametrize(("asked", "variable"), [("online", None), ("auto", "online"), ("online", "offline")])
def test_online_needs_a_login(asked, variable, tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", netrc_file(tmp_path / "netrc", host="elsewhere.example"))
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    with pytest.raises(UserError, match="wandb login") as refusal:
        runlog.wandb_mode(WandbConfig(mode=asked))
    assert "--wandb.mode offline" in str(refusal.value)
    assert KEY not in str(refusal.value)


def test_login_by_a_file_that_NETRC_names(tmp_path, monkeypatch):  # noqa: N802 - the variable's name
    path = netrc_file(tmp_path / "logins")
    monkeypatch.setenv("NETRC", path)
    assert runlog.wandb_mode(WandbConfig()) == ("online", path)


def test_login_by_the_file_in_the_home_folder():
    path = netrc_file(Path.home() / ".netrc")
    assert runlog.wandb_mode(WandbConfig()) == ("online", path)


def test_NETRC_may_begin_with_a_tilde(monkeypatch):  # noqa: N802 - the variable's name
    netrc_file(Path.home() / "logins")
    monkeypatch.setenv("NETRC", "~/logins")  # which wandb expands
    assert runlog.wandb_mode(WandbConfig())[0] == "online"


@pytest.mark.parametrize("content", ["", "machine api.wandb.ai login", "\x00\xff", "machine api.wandb.ai"])
def test_a_login_file_without_a_login(content, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(content)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert runlog.wandb_mode(WandbConfig())[0] == "offline"


@pytest.mark.parametrize(
    ("address", "host", "mode"),
    [
        ("https://wandb.example.org", "wandb.example.org", "online"),
        ("https://wandb.example.org/", "wandb.example.org", "online"),
        ("https://wandb.example.org", "api.wandb.ai", "offline"),
        ("http://localhost:8080", "localhost:8080", "online"),  # so `wandb login --host` writes it, port included
        ("http://Wandb.Example:8080", "Wandb.Example:8080", "online"),
        ("http://localhost:8080", "localhost:9090", "offline"),
    ],
)
def test_login_of_a_server_of_ones_own(address, host, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("NETRC", netrc_file(tmp_path / "netrc", host=host))
    assert runlog.wandb_mode(WandbConfig())[0] == mode


def test_the_key_is_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", netrc_file(tmp_path / "netrc"))
    by_file = runlog.wandb_mode(WandbConfig())
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    by_variable = runlog.wandb_mode(WandbConfig())
    assert by_file[0] == by_variable[0] == "online"
    assert KEY not in f"{by_file} {by_variable}"


# ---- a real W&B run, offline ----------------------------------------------------------------------------------------


def test_an_offline_run(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    grey = np.full((8, 8, 3), 128, np.uint8)  # floats would be stretched; nothing may be
    folder = tmp_path / "run"
    log = offline(folder)
    log.log(record(1, **{"train/loss": 2.0}))
    log.pictures(record(2), {"a": picture, "b": grey}, {"a": "caption a", "b": "caption b"}, prefix="kernels/")
    log.write_summary({"best_top1": 0.5})
    log.close()
    run_id = (folder / "wandb" / "run_id").read_text()
    (made,) = (folder / "wandb").glob("offline-run-*")
    assert run_id
    assert (made / f"run-{run_id}.wandb").stat().st_size > 0
    assert log.tracking == f"W&B offline (asked for), later: wandb sync {made}"
    for name, expected in (("a", picture), ("b", grey)):
        (file,) = (made / "files" / "media" / "images" / "kernels").glob(f"{name}_*.png")
        with Image.open(file) as image:
            assert np.array_equal(np.array(image), expected), name
    assert wandb.run is None, "the run is over"

    again = offline(folder, step=1)
    assert again._trackers[0]._run.id == run_id
    again.close()
    assert (folder / "wandb" / "run_id").read_text() == run_id
    assert {path.name for path in (folder / "wandb").glob("offline-run-*/run-*.wandb")} == {f"run-{run_id}.wandb"}


@pytest.fixture
def spy(monkeypatch, tmp_path):
    """What the tracker says to wandb."""
    run = mock.Mock(dir=str(tmp_path / "x" / "files"), url="https://wandb.example/run")
    run.summary = {}
    monkeypatch.setattr(wandb, "init", mock.Mock(return_value=run))
    return run


def test_a_run_is_described_to_wandb(tmp_path, spy):
    wishes = WandbConfig(mode="offline", project="p", entity="e", tags=("t", "u"))
    offline(tmp_path / "my-run", wandb=wishes)
    (call,) = wandb.init.call_args_list
    given = call.kwargs
    assert (given["project"], given["entity"], given["name"], given["tags"]) == ("p", "e", "my-run", ["t", "u"])
    assert (given["mode"], given["resume"], given["dir"]) == ("offline", "allow", str(tmp_path / "my-run"))
    assert given["id"] == (tmp_path / "my-run" / "wandb" / "run_id").read_text()
    assert given["config"]["num_classes"] == 10, "the facts"
    assert given["config"]["optim"]["lr"] == 5e-4, "the configuration"
    json.dumps(given["config"])
    axes = {call.args[0]: call.kwargs.get("step_metric") for call in spy.define_metric.call_args_list}
    assert axes["train/*"] == axes["optim/*"] == axes["perf/*"] == "global_step"
    assert axes["val/*"] == axes["kernels/*"] == axes["per_class/*"] == "epoch"
    offline(tmp_path / "named", wandb=WandbConfig(mode="offline", name="shown"))
    assert wandb.init.call_args.kwargs["name"] == "shown"


def test_records_and_pictures_carry_their_axes(tmp_path, spy):
    log = offline(tmp_path / "run")
    log.log(record(7, **{"val/top1": 0.5}))
    log.pictures(record(7), {"a": np.zeros((2, 2, 3), np.uint8)}, {"a": "the caption"}, prefix="kernels/")
    log.write_summary({"best_top1": 0.5, "status": "finished"})
    numbers, pictures = (call.args[0] for call in spy.log.call_args_list)
    assert numbers == {"global_step": 7, "epoch": 1, "val/top1": 0.5}
    assert {key: pictures[key] for key in ("global_step", "epoch")} == {"global_step": 7, "epoch": 1}
    assert pictures["kernels/a"]._caption == "the caption"
    assert spy.summary == {"best_top1": 0.5, "status": "finished", "best/top1": 0.5}
    log.close()
    spy.finish.assert_called_once_with()


def test_disabled_goes_nowhere(tmp_path):
    log = offline(tmp_path / "run", wandb=WandbConfig(mode="disabled"))
    log.log(record(1))
    log.close()
    assert log.tracking == "W&B disabled (asked for)"
    assert not list((tmp_path / "run" / "wandb").glob("*run-*"))


# ---- TensorBoard ----------------------------------------------------------------------------------------------------


def read_events(folder):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def with_tensorboard(folder, **changes):
    pytest.importorskip("tensorboard")
    return start(folder, log=LogConfig(trackers=("tensorboard",)), **changes)


def scalars(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_events(tmp_path):
    log = with_tensorboard(tmp_path / "run")
    assert str(tmp_path / "run" / "tensorboard") in log.tracking
    log.log(record(1, **{"train/loss": 2.0}))
    log.log(record(3, **{"train/loss": 1.5, "val/top1": 0.25, "note": "words"}))
    picture = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    log.pictures(record(3), {"a": picture}, {"a": "caption"}, prefix="kernels/")
    log.write_summary({"status": "finished"})
    log.close()
    events = read_events(tmp_path / "run")
    assert scalars(events, "train/loss") == [(1, 2.0), (3, 1.5)]
    assert scalars(events, "val/top1") == [(3, 0.25)]
    assert scalars(events, "epoch") == [(1, 1.0), (3, 1.0)]
    assert set(events.Tags()["scalars"]) == {"epoch", "train/loss", "val/top1"}
    (image,) = events.Images("kernels/a")
    assert (image.step, image.width, image.height) == (3, 4, 6)
    (tmp_path / "shown.png").write_bytes(image.encoded_image_string)
    with Image.open(tmp_path / "shown.png") as shown:
        assert np.array_equal(np.array(shown), picture)


def test_tensorboard_hides_what_was_cut_by_a_resume(tmp_path):
    first = with_tensorboard(tmp_path / "run")
    for step in (1, 2, 3):
        first.log(record(step, **{"train/loss": float(step)}))
    first.close()
    again = with_tensorboard(tmp_path / "run", step=2)
    again.log(record(3, **{"train/loss": 33.0}))
    again.close()
    assert scalars(read_events(tmp_path / "run"), "train/loss") == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install"):
        start(tmp_path / "run", log=LogConfig(trackers=("tensorboard",)))
