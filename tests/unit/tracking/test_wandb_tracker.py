"""What W&B gets, and on which axes; modes and logins; one run per folder."""

import copy
import functools
import json
import queue
import threading
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image
from run_logs import KEY, offline, record, show, start

from alexnet_dist.config import WandbConfig
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_logger, wandb_tracker
from alexnet_dist.tracking.tracker import Media, Weights

BLACK = np.zeros((2, 2, 3), np.uint8)


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
    ("auto", "run", True, "online", "WANDB_MODE"),
    ("auto", "dryrun", True, "offline", "WANDB_MODE"),
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
    assert wandb_tracker.wandb_mode(WandbConfig(mode=asked)) == (mode, reason)


def test_WANDB_DISABLED_disables(monkeypatch):  # noqa: N802 - the variable's name
    """Transformers know it; wandb itself does not."""
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert wandb_tracker.wandb_mode(WandbConfig()) == ("disabled", "WANDB_DISABLED")
    assert wandb_tracker.wandb_mode(WandbConfig(mode="offline"))[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_tracker.wandb_mode(WandbConfig())[0] == "offline"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_DISABLED", "false")
    assert wandb_tracker.wandb_mode(WandbConfig())[0] == "offline"


@pytest.mark.parametrize(("asked", "variable"), [("online", None), ("auto", "online"), ("online", "offline")])
def test_online_needs_a_login(asked, variable, tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", netrc_file(tmp_path / "netrc", host="elsewhere.example"))
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    with pytest.raises(UserError, match="wandb login") as refusal:
        wandb_tracker.wandb_mode(WandbConfig(mode=asked))
    assert "--wandb.mode offline" in str(refusal.value)
    assert KEY not in str(refusal.value)


def test_login_by_a_file_that_NETRC_names(tmp_path, monkeypatch):  # noqa: N802 - the variable's name
    path = netrc_file(tmp_path / "logins")
    monkeypatch.setenv("NETRC", path)
    assert wandb_tracker.wandb_mode(WandbConfig()) == ("online", path)


def test_login_by_the_file_in_the_home_folder():
    path = netrc_file(Path.home() / ".netrc")
    assert wandb_tracker.wandb_mode(WandbConfig()) == ("online", path)


def test_NETRC_may_begin_with_a_tilde(monkeypatch):  # noqa: N802 - the variable's name
    netrc_file(Path.home() / "logins")
    monkeypatch.setenv("NETRC", "~/logins")  # which wandb expands
    assert wandb_tracker.wandb_mode(WandbConfig())[0] == "online"


@pytest.mark.parametrize("content", ["", "machine api.wandb.ai login", "\x00\xff", "machine api.wandb.ai"])
def test_a_login_file_without_a_login(content, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(content)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_tracker.wandb_mode(WandbConfig())[0] == "offline"


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
    assert wandb_tracker.wandb_mode(WandbConfig())[0] == mode


def test_the_key_is_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("NETRC", netrc_file(tmp_path / "netrc"))
    by_file = wandb_tracker.wandb_mode(WandbConfig())
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    by_variable = wandb_tracker.wandb_mode(WandbConfig())
    assert by_file[0] == by_variable[0] == "online"
    assert KEY not in f"{by_file} {by_variable}"


# ---- a real W&B run, offline ----------------------------------------------------------------------------------------


def test_an_offline_run(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    grey = np.full((8, 8, 3), 128, np.uint8)  # floats would be stretched; nothing may be
    folder = tmp_path / "run"
    log = offline(folder)
    log.log(record(1, **{"train/loss": 2.0}))
    show(
        log,
        record(2),
        {"kernels/a": picture, "kernels/b": grey},
        {"kernels/a": "caption a"},
        **{"kernels/n": np.ones(3)},
    )
    log.confusion(record(2), np.array([[3, 1], [0, 2]]), ("cat", "dog"))
    log.table(record(2), "errors", lambda: [{"image": picture, "id": 7}])
    log.write_summary({"best_top1": 0.5})
    log.close()
    run_id = (folder / "wandb" / "run_id").read_text()
    (made,) = (folder / "wandb").glob("offline-run-*")
    assert run_id
    assert (made / f"run-{run_id}.wandb").stat().st_size > 0
    assert log.tracking == f"W&B offline (asked for), later: wandb sync {folder / 'wandb'}"
    for name, expected in (("a", picture), ("b", grey)):
        (file,) = (made / "files" / "media" / "images" / "kernels").glob(f"{name}_*.png")
        with Image.open(file) as image:
            assert np.array_equal(np.array(image), expected), name
    assert wandb.run is None, "the run is over"

    (counts,) = (made / "files" / "media" / "table").glob("confusion_table*.json")
    assert json.loads(counts.read_text())["data"] == [
        ["cat", "cat", 3],
        ["cat", "dog", 1],
        ["dog", "cat", 0],
        ["dog", "dog", 2],
    ]

    again = offline(folder, step=1)
    assert again._trackers[0]._run.id == run_id
    again.close()
    assert (folder / "wandb" / "run_id").read_text() == run_id
    assert {path.name for path in (folder / "wandb").glob("offline-run-*/run-*.wandb")} == {f"run-{run_id}.wandb"}


def test_WANDB_DIR_takes_wandbs_files(tmp_path, monkeypatch):  # noqa: N802 - the variable's name
    """They are found again there, among those of other runs."""
    place = tmp_path / "all"
    place.mkdir()
    other = place / "wandb" / "offline-run-1-other" / "run-other.wandb"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"torn")
    monkeypatch.setenv("WANDB_DIR", str(place))
    log = offline(tmp_path / "run")
    log.log(record(1))
    run_id = (tmp_path / "run" / "wandb" / "run_id").read_text()
    (made,) = (place / "wandb").glob(f"offline-run-*-{run_id}")
    assert log.tracking.endswith(f"later: wandb sync {place}/wandb/*run-*-{run_id}")
    log.close()
    assert not list((tmp_path / "run" / "wandb").glob("*run-*"))
    part = made / f"run-{run_id}.wandb"
    whole = part.read_bytes()
    part.write_bytes(whole + b"a part of a record")
    (tmp_path / "run" / "wandb" / "unfinished").touch()  # killed
    offline(tmp_path / "run", step=1).close()
    assert part.read_bytes() == whole
    assert other.read_bytes() == b"torn"


def test_a_run_that_must_be_there_and_is_not_is_the_users_matter(tmp_path, spy, monkeypatch):
    del spy
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_RESUME", "must")
    wandb.init.side_effect = wandb.errors.UsageError("resume='must' but could not resume")
    with pytest.raises(UserError, match="W&B refuses this run: resume='must' but could not resume"):
        offline(tmp_path / "run", wandb=WandbConfig(mode="online"))
    assert wandb.init.call_args.kwargs["resume"] == "must"


def test_a_run_is_described_to_wandb(tmp_path, spy):
    wishes = WandbConfig(mode="offline", project="p", entity="e", group="seeds", tags=("t", "u"))
    offline(tmp_path / "my-run", wandb=wishes, tags=["digits", "t"])
    (call,) = wandb.init.call_args_list
    given = call.kwargs
    assert (given["project"], given["entity"], given["name"], given["tags"]) == (
        "p",
        "e",
        "my-run",
        ["t", "u", "digits"],
    )
    assert (given["mode"], given["resume"], given["dir"]) == ("offline", "allow", str(tmp_path / "my-run"))
    assert given["id"] == (tmp_path / "my-run" / "wandb" / "run_id").read_text()
    assert given["config"]["num_classes"] == 10, "the facts"
    assert given["config"]["optim"]["lr"] == 5e-4, "the configuration"
    json.dumps(given["config"])
    assert (given["group"], given["job_type"]) == ("seeds", "train")
    axes = {call.args[0]: call.kwargs.get("step_metric") for call in spy.define_metric.call_args_list}
    assert axes["train/*"] == axes["optim/*"] == axes["perf/*"] == "global_step"
    assert axes["val/*"] == axes["kernels/*"] == axes["per_class/*"] == axes["best/*"] == "epoch"
    offline(tmp_path / "named", wandb=WandbConfig(mode="offline", name="shown"))
    assert wandb.init.call_args.kwargs["name"] == "shown"


def test_records_and_pictures_carry_their_axes(tmp_path, spy):
    log = offline(tmp_path / "run")
    log.log(record(7, **{"val/top1": 0.5}))
    show(log, record(7), {"kernels/a": BLACK}, {"kernels/a": "the caption"}, **{"kernels/norms": np.arange(4.0)})
    log.write_summary({"best_top1": 0.5, "best_epoch": 3, "status": "finished"})
    log.close()
    numbers, shown = (call.args[0] for call in spy.log.call_args_list)
    assert numbers == {"global_step": 7, "epoch": 1, "val/top1": 0.5}
    assert {key: shown[key] for key in ("global_step", "epoch")} == {"global_step": 7, "epoch": 1}
    assert shown["kernels/a"]._caption == "the caption"
    assert sum(shown["kernels/norms"].histogram) == 4
    plain = {"best_top1": 0.5, "best_epoch": 3, "status": "finished"}
    assert spy.summary == {**plain, "best/top1": 0.5, "best/epoch": 3}
    spy.finish.assert_called_once_with(exit_code=0)
    assert not any("step" in call.kwargs for call in spy.log.call_args_list), "wandb drops steps that go back"


def test_a_confusion_matrix_of_many_classes_is_not_sent(tmp_path, spy):
    log = offline(tmp_path / "run")
    for num_classes in (wandb_tracker.MOST_CLASSES + 1, 2):
        log.confusion(record(1), np.eye(num_classes, dtype=np.int64), [str(i) for i in range(num_classes)])
    log.close()
    (call,) = spy.log.call_args_list
    assert call.args[0]["confusion"].table.data == [["0", "0", 1], ["0", "1", 0], ["1", "0", 0], ["1", "1", 1]]


def test_a_table_shows_thumbnails(tmp_path, spy):
    log = offline(tmp_path / "run")
    log.table(record(1), "errors", lambda: [{"image": BLACK, "id": 3, "true class": "cat"}])
    log.table(record(1), "errors", list)
    log.close()
    (call,) = spy.log.call_args_list
    table = call.args[0]["errors"]
    assert table.columns == ["image", "id", "true class"]
    assert table.data[0][1:] == [3, "cat"]
    assert np.array_equal(np.array(table.data[0][0].image), BLACK)


def test_alerts_come_once(tmp_path, spy):
    log = offline(tmp_path / "run")
    for text in ("at epoch 1", "at epoch 2"):
        log.alert("Nothing learned", text, level="WARN")
    log.alert("Finished", "top-1 50 %", level="INFO")
    log.close()
    assert [call.kwargs for call in spy.alert.call_args_list] == [
        {"title": "Nothing learned", "text": "at epoch 1", "level": "WARN"},
        {"title": "Finished", "text": "top-1 50 %", "level": "INFO"},
    ]


@pytest.mark.parametrize(("requeue", "marked"), [(True, 1), (False, 0)])
def test_a_preempted_run_is_marked_and_ends_with_its_code(tmp_path, spy, requeue, marked):
    log = offline(tmp_path / "run")
    log.mark_preempted("SIGTERM after step 3", requeue=requeue)
    log.close(143)
    assert spy.mark_preempting.call_count == marked
    spy.finish.assert_called_once_with(exit_code=143)
    assert (tmp_path / "run" / "PREEMPTED").read_text() == "SIGTERM after step 3\n"


def test_the_stop_button_asks_the_run(tmp_path, spy):
    del spy
    pressed = threading.Event()
    offline(tmp_path / "run", stop=pressed.set)
    wandb.init.call_args.kwargs["settings"].stop_fn()
    assert pressed.is_set()


def weights(path, **changes):
    texts = {"README.md": "# Card", "class_names.json": "[]"}
    plain = {"data_name": "org/data", "texts": texts, "facts": {"epoch": 2}, "aliases": ("best", "latest")}
    return Weights(path=path, **{**plain, **changes})


def test_weights_become_an_artifact(tmp_path, spy):
    spy.id = "abc"
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    log = offline(tmp_path / "run")
    log.publish(weights(tmp_path / "model.safetensors"))
    log.close()
    (call,) = spy.log_artifact.call_args_list
    artifact = call.args[0]
    assert (artifact.name, artifact.type) == ("alexnet-org-data-abc", "model")
    assert set(artifact.manifest.entries) == {"model.safetensors", "README.md", "class_names.json"}
    assert artifact.metadata == {"epoch": 2}
    assert call.kwargs == {"aliases": ["best", "latest"]}


@pytest.mark.parametrize("wish", ["final", "all"])
def test_weights_that_stay_are_not_copied(tmp_path, spy, monkeypatch, wish):
    spy.id = "abc"
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(b"weights")
    log = offline(tmp_path / "run", wandb=WandbConfig(mode="offline", artifacts=wish))
    log.publish(weights(Path("model.safetensors")))
    log.close()
    entry = spy.log_artifact.call_args.args[0].manifest.entries["model.safetensors"]
    assert (entry.local_path == str(tmp_path / "model.safetensors")) == (wish == "final"), "others are soon pruned"
    assert entry.skip_cache, "or a copy stays behind when they are sent"


def test_an_artifacts_name_is_one_that_wandb_takes(tmp_path, spy):
    spy.id = "i" * 64
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    log = offline(tmp_path / "run")
    log.publish(weights(tmp_path / "model.safetensors", data_name=f"café {'d' * 82}"))
    log.close()
    assert spy.log_artifact.call_args.args[0].name == f"alexnet-caf-{'d' * 51}-{'i' * 64}"


def test_weights_that_are_gone_meanwhile_cost_nothing_else(tmp_path, spy, caplog):
    spy.id = "abc"
    log = offline(tmp_path / "run")
    log.publish(weights(tmp_path / "pruned.safetensors"))
    log.log(record(1))
    log.close()
    assert "pruned.safetensors is not sent" in caplog.text
    assert spy.log.call_count == 1


def test_names_and_ids_may_come_from_the_environment(tmp_path, spy, monkeypatch):
    """A sweep's agent chooses the run's id, and users their project, by variables."""
    del spy
    for variable, value in (("PROJECT", "sweeps"), ("NAME", "shown"), ("RUN_ID", "fromagent")):
        monkeypatch.setenv(f"WANDB_{variable}", value)
    offline(tmp_path / "run").close()
    given = wandb.init.call_args.kwargs
    assert (given["project"], given["name"], given["id"]) == ("sweeps", "shown", "fromagent")
    monkeypatch.setenv("WANDB_RUN_ID", "another")
    offline(tmp_path / "run", wandb=WandbConfig(mode="offline", project="p", name="n")).close()
    given = wandb.init.call_args.kwargs
    assert (given["project"], given["name"]) == ("p", "n")
    assert given["id"] == "fromagent", "one folder, one run"


def test_disabled_goes_nowhere(tmp_path):
    log = offline(tmp_path / "run", wandb=WandbConfig(mode="disabled"))
    log.log(record(1))
    log.close()
    assert log.tracking == "W&B disabled (asked for)"
    assert not list((tmp_path / "run" / "wandb").glob("*run-*"))


# ---- what a kill takes with it --------------------------------------------------------------------------------------


def test_a_run_that_was_killed_sends_its_records_again(tmp_path, spy):
    """wandb keeps the last seconds in memory; the folder has every record."""
    first = offline(tmp_path / "run")
    for step in (1, 2, 3):
        first.log(record(step, **{"train/loss": float(step)}))
    first._sending.finish(5)  # and no close: killed
    spy.log.reset_mock()
    again = offline(tmp_path / "run", step=2)
    again.log(record(3, **{"train/loss": 33.0}))
    again.close()
    assert [call.args[0] for call in spy.log.call_args_list] == [
        record(1, **{"train/loss": 1.0}),
        record(2, **{"train/loss": 2.0}),
        record(3, **{"train/loss": 33.0}),
    ]
    spy.log.reset_mock()
    offline(tmp_path / "run", step=3).close()
    assert not spy.log.called, "this time it was closed"


def test_only_what_a_kill_may_have_kept_from_wandb_is_sent_again(tmp_path, spy, monkeypatch):
    """Of 100,000 records, all would take half a minute and 100 MB at each start."""
    monkeypatch.setattr(run_logger, "MAX_REPLAYED", 2)
    first = offline(tmp_path / "run")
    for step in (1, 2, 3, 4, 5):
        first.log(record(step))
    first._sending.finish(5)  # and no close: killed
    spy.log.reset_mock()
    offline(tmp_path / "run", step=4).close()
    assert [call.args[0] for call in spy.log.call_args_list] == [record(3), record(4)]


def test_settings_can_be_copied(tmp_path, spy):
    """wandb copies them deeply where a server did not take all in time; a queue behind `stop` cannot be."""
    del spy
    pressed = queue.SimpleQueue()
    offline(tmp_path / "run", stop=functools.partial(pressed.put, None))
    copy.deepcopy(wandb.init.call_args.kwargs["settings"]).stop_fn()
    assert pressed.get_nowait() is None


def test_tables_for_a_server_that_does_not_answer_are_left_out_for_a_while(tmp_path, spy, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(wandb_tracker.time, "monotonic", lambda: now[0])
    log = offline(tmp_path / "run")
    tracker = log._trackers[0]
    sent = []

    def answer(row):
        if "confusion" in row:
            now[0] += answer.seconds
            if answer.fails:
                raise RuntimeError("Failed to verify credentials")
        sent.append(sorted(row.keys() - {"global_step", "epoch"}))

    spy.log.side_effect = answer
    for answer.seconds, answer.fails, wait in ((1, False, 0), (19, False, 0), (0, False, 299), (0, True, 2), (0, 0, 1)):
        now[0] += wait
        tracker.confusion(record(1), np.eye(2, dtype=np.int64), ("a", "b"))
    tracker.log(record(2, **{"train/loss": 1.0}))
    assert sent == [["confusion"], ["confusion"], ["train/loss"]], "sent, slow, left out, failed, left out"
    assert caplog.text.count("W&B does not answer") == 2
    monkeypatch.undo()
    log.close()


# ---- several ranks --------------------------------------------------------------------------------------------------


def test_shared_needs_a_server(tmp_path):
    with pytest.raises(UserError, match=r"--wandb\.shared needs W&B online, and it is offline"):
        offline(tmp_path / "run", wandb=WandbConfig(mode="offline", shared=True))


def test_ranks_share_a_run(tmp_path, spy, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    log = offline(tmp_path / "run", wandb=WandbConfig(mode="online", shared=True))
    given = wandb.init.call_args.kwargs
    assert (given["settings"].mode, given["settings"].x_label, given["settings"].x_primary) == ("shared", "rank0", True)
    assert log.shared_id() == given["id"]
    other = start(tmp_path / "run", enabled=False, wandb=WandbConfig(mode="online", shared=True))
    other.join(log.shared_id(), rank=3)
    joined = wandb.init.call_args.kwargs
    assert joined["id"] == given["id"]
    settings = joined["settings"]
    assert (settings.mode, settings.x_label, settings.x_primary) == ("shared", "rank3", False)
    assert settings.x_update_finish_state is False
    other.log(record(1))
    other.show(record(1), lambda: Media({"kernels/p": BLACK}))
    other.write_summary({"status": "finished"})
    other.close(1)
    assert not spy.log.called, "numbers are rank 0's"
    spy.finish.assert_called_once_with(exit_code=1)
    assert not (tmp_path / "run" / "figures").exists()


def test_without_the_wish_no_rank_joins(tmp_path, spy, monkeypatch):
    del spy
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert offline(tmp_path / "run", wandb=WandbConfig(mode="online")).shared_id() is None
