"""The run folder is the record; trackers may fail, and only rank 0 has either."""

import json
import logging
import math
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import wandb
from deadlines import deadline
from PIL import Image
from run_logs import BLACK, KEY, config_for, lines_of, offline, record, start

from alexnet_dist import config as configuration
from alexnet_dist.config import LogConfig, OptimConfig, WandbConfig
from alexnet_dist.errors import UserError
from alexnet_dist.tracking import run_dir, run_logger, wandb_tracker
from alexnet_dist.tracking.run_logger import Worker
from alexnet_dist.tracking.tracker import Media, Tracker

SOON = 60  # seconds

# ---- records --------------------------------------------------------------------------------------------------------


def test_records_are_the_lines_of_metrics_jsonl(tmp_path):
    log = start(tmp_path / "run")
    given = [record(1, **{"train/loss": 0.1 + 0.2}), record(2, **{"train/loss": 1e-30}), record(2, **{"val/top1": 0.5})]
    for one in given:
        log.log(one)
        assert lines_of(log.folder)[-1] == one, "on the disk at once, for whoever watches"
    log.close()
    assert lines_of(log.folder) == list(run_dir.records(log.folder / "metrics.jsonl")) == given
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
    log = run_logger.RunLogger(config, {}, enabled=True)
    log.open(step=0)
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
    assert lines_of(again.folder) == kept
    again.log(record(3, **{"train/loss": 33.0}))
    assert lines_of(again.folder) == [*kept, record(3, **{"train/loss": 33.0})]


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('[1]\n3\n\n{"epoch": 1}\n{"global_step": 1, "epoch": 1}\n{"global_step": 2, "ep\x00\x00\x00')
    start(tmp_path, step=5)
    assert path.read_text().endswith('"epoch": 1}\n'), "what a kill has torn is cut off"
    assert list(run_dir.records(path)) == [{"global_step": 1, "epoch": 1}]


def test_the_last_records_are_found_without_reading_all(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(record(step))}\n" for step in range(1, 5_001)))
    read = []
    monkeypatch.setattr(run_dir.json, "loads", lambda line, loads=json.loads: (read.append(line), loads(line))[1])
    assert run_dir.cut_records(path, last_step=4_990, most=3) == [record(step) for step in (4_988, 4_989, 4_990)]
    assert len(read) == 10 + 3, "a start would take ever longer"
    monkeypatch.undo()
    assert lines_of(tmp_path) == [record(step) for step in range(1, 4_991)]
    assert run_dir.cut_records(path, last_step=9_999, most=9_999) == lines_of(tmp_path)


def test_a_run_that_begins_anew_keeps_no_old_records(tmp_path):
    first = start(tmp_path / "run")
    first.log(record(1))
    start(tmp_path / "run", step=0)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_other_ranks_write_nothing(tmp_path):
    log = start(tmp_path / "run", enabled=False, log=LogConfig(), wandb=WandbConfig(mode="offline"))
    log.log(record(1))
    log.show(record(1), lambda: pytest.fail("drawn"))
    log.write_summary({"status": "finished"})
    log.mark_preempted("SIGTERM", requeue=True)
    log.close()
    assert not (tmp_path / "run").exists()
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
    broken.where, healthy.where, log.tracking = "W&B", "TensorBoard", "W&B; TensorBoard"
    log._trackers = [broken, healthy]
    with caplog.at_level(logging.WARNING):
        call_all(log)
        log.log(record(2))
        log.close()
    assert [entry.message for entry in caplog.records] == [
        "Recorder failed and is dropped, metrics.jsonl goes on: the tracker is gone"
    ]
    assert log.tracking == "W&B (failed: incomplete); TensorBoard", "so says the result card"
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
        self.begun, self.over = threading.Event(), threading.Event()
        self.shown = 0

    def log(self, record):
        del record
        self.begun.set()
        self.over.wait()

    def show(self, record, media):
        del record, media
        self.over.wait()
        self.shown += 1


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setattr(run_logger, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 0.1)
    tracker = Hanging()
    yield tracker
    tracker.over.set()


def test_a_tracker_that_hangs_holds_nobody(tmp_path, monkeypatch, caplog, hanging):
    monkeypatch.setattr(run_logger, "MAX_CALLS", 5)
    log = start(tmp_path / "run")
    log._trackers = [hanging]
    began = time.monotonic()
    for step in range(1, 20):
        log.log(record(step))
        assert step > 1 or hanging.begun.wait(60)
    log.close()
    assert time.monotonic() - began < deadline(5)
    assert "a tracker hangs" in caplog.text
    assert "14 records or sets of pictures were too many" in caplog.text, "20 with the end, less 1 begun and 5 waiting"
    assert len(lines_of(log.folder)) == 19


def test_pictures_for_a_tracker_that_hangs_are_written_and_do_not_pile_up(tmp_path, caplog, hanging):
    log = start(tmp_path / "run")
    log._trackers = [hanging]
    pictures = []

    def draw():
        picture = BLACK.copy()
        pictures.append(weakref.ref(picture))
        return Media({"kernels/p": picture})

    for epoch in range(1, 21):
        log.show({"global_step": epoch, "epoch": epoch}, draw)
    log.close()
    assert len(list((tmp_path / "run" / "figures").glob("epoch_*/p.png"))) == 20
    assert [picture() for picture in pictures] == [None] * 20, "what waits for the tracker has paths alone"
    assert "a tracker hangs" in caplog.text
    assert hanging.shown == 0


def test_a_tracker_that_is_slower_than_training_gets_all_pictures(tmp_path):
    class Slow(Recorder):
        def _take(self, method):
            time.sleep(0.02)
            super()._take(method)

    log = start(tmp_path / "run")
    log._trackers = [slow := Slow()]
    for epoch in range(1, 31):
        log.show({"global_step": epoch, "epoch": epoch}, lambda: Media({"kernels/p": BLACK}))
    log.close()
    assert slow.calls == ["show"] * 30 + ["close"]


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


# ---- the thread of jobs that training does not wait for -------------------------------------------------------------


def test_jobs_run_in_order_on_one_thread():
    done, names = [], set()
    worker = Worker("pictures", capacity=100)
    for number in range(50):
        assert worker.do(lambda number=number: (done.append(number), names.add(threading.current_thread().name)))
    assert worker.finish(SOON)
    assert done == [*range(50)]
    assert names == {"pictures"}


def test_a_full_queue_refuses_a_job_or_makes_its_caller_wait():
    begun, go_on, done = threading.Event(), threading.Event(), []
    worker = Worker("slow", capacity=1)
    worker.do(lambda: (begun.set(), go_on.wait(SOON)))
    assert begun.wait(SOON)
    assert worker.do(lambda: done.append("second"))
    assert not worker.do(lambda: done.append("refused"))
    patient = threading.Thread(target=worker.do, args=(lambda: done.append("third"),), kwargs={"wait": True})
    patient.start()
    assert not done
    go_on.set()
    patient.join(SOON)
    assert worker.finish(SOON)
    assert done == ["second", "third"]


def test_a_job_that_fails_is_reported_and_the_next_one_runs(caplog):
    done, worker = [], Worker("pictures", capacity=9)
    with caplog.at_level(logging.WARNING):
        worker.do(lambda: 1 / 0)
        worker.do(lambda: done.append("next"))
        assert worker.finish(SOON)
    assert done == ["next"]
    assert "left out: division by zero" in caplog.text


def test_a_job_that_hangs_is_left_behind():
    go_on = threading.Event()
    worker = Worker("hangs", capacity=1)
    worker.do(lambda: go_on.wait(SOON))
    try:
        assert not worker.finish(0.05)
        assert all(thread.daemon for thread in threading.enumerate() if thread.name == "hangs")
    finally:
        go_on.set()
