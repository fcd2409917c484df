"""Ranks killed by SIGKILL at any moment, brought back by the launcher: the run ends as if nothing had happened."""

import json
import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict

import pytest
from chaos import ACCELERATE, BATCHES, PHASES, Trial, port
from photos import photo_folder
from tiny import equal, losses, records, summary, weights, without_clocks

TORCHRUN = "torchrun --nproc-per-node 2 --rdzv-backend c10d --monitor-interval 0.1 --max-restarts 40".split()


def ledger(folder):
    """Return the steps taken, as tiny_train.py noted them."""
    return [json.loads(line) for line in (folder / "notes/ledger.jsonl").read_text().splitlines()]


def counted(folder):
    """Return the lines of each step's last attempt, in the order of ranks: what is in the weights."""
    last = defaultdict(int)
    for line in ledger(folder):
        last[line["step"]] = max(last[line["step"]], line["attempt"])
    lines = [line for line in ledger(folder) if line["attempt"] == last[line["step"]]]
    steps = [sorted((ln for ln in lines if ln["step"] == step), key=lambda ln: ln["rank"]) for step in range(len(last))]
    assert all(steps), "a step was left out"
    return steps


def order(folder):
    """Return the global batch of each step that counts."""
    return [[image for line in lines for image in line["ids"]] for lines in counted(folder)]


def check_order(folder, uninterrupted, *, epochs):
    """Each image once an epoch, and those of the uninterrupted run."""
    batches = order(folder)
    assert batches == order(uninterrupted)
    for epoch in range(epochs):
        ids = [image for batch in batches[epoch * BATCHES : (epoch + 1) * BATCHES] for image in batch]
        assert len(set(ids)) == len(ids) == BATCHES * 16


def check_repeats(folder, uninterrupted):
    """A step taken again sees the same images and drops the same units."""
    expected = {(line["step"], line["rank"]): (line["ids"], line["seed"]) for line in ledger(uninterrupted)}
    for line in ledger(folder):
        assert (line["ids"], line["seed"]) == expected[line["step"], line["rank"]]


def check_continuation(folder, kills):
    """No attempt begins before the newest checkpoint, nor after what was computed: survivors may have saved."""
    first, taken = {}, {}
    for line in ledger(folder):
        first[line["attempt"]] = min(line["step"], first.get(line["attempt"], line["step"]))
        taken[line["attempt"]] = max(line["step"] + 1, taken.get(line["attempt"], 0))
    for kill in kills:
        if kill.attempt + 1 in first:
            assert kill.saved <= first[kill.attempt + 1] <= max(kill.saved, taken.get(kill.attempt, 0)), kill


def check_files(folder, uninterrupted):
    """The same weights, optimizer and records, to the bit, and no half-written checkpoint."""
    for name in ("model", "optimizer"):
        assert equal(weights(folder / "run", name=name), weights(uninterrupted / "run", name=name))
    ours, theirs = ([without_clocks(record) for record in records(run / "run")] for run in (folder, uninterrupted))
    assert ours == theirs
    assert not list((folder / "run/checkpoints").glob(".*"))
    for key in ("status", "best_top1", "final_top1", "final_train_loss", "global_step", "epochs"):
        assert summary(folder / "run")[key] == summary(uninterrupted / "run")[key], key


def uninterrupted_run(folder, *flags):
    with Trial(folder, *flags, launcher=port(ACCELERATE)) as trial:
        assert trial.finish() == 0, trial.output.read_text()
    return folder


def chaos(folder, uninterrupted, plan, *flags, epochs, launcher=ACCELERATE, seed=0):
    """Carry out a plan of kills in one launch, compare the run with the uninterrupted one, and return the kills."""
    rng, started = random.Random(seed), time.monotonic()
    with Trial(folder, *flags, launcher=port(launcher)) as trial:
        kills = [trial.kill(*kill, attempt=attempt, rng=rng) for attempt, kill in enumerate(plan)]
        code = trial.finish()
    hits = Counter(kill.phase for kill in kills)
    print(f"{len(kills)} kills in {time.monotonic() - started:.0f} s: {dict(hits)}; the victims: ", end="")
    print(dict(Counter(kill.victims for kill in kills)))
    assert code == 0, trial.output.read_text()
    assert not trial.orphans
    assert max(line["attempt"] for line in ledger(folder)) == len(plan), "an attempt ended without being killed"
    check_order(folder, uninterrupted, epochs=epochs)
    check_repeats(folder, uninterrupted)
    check_continuation(folder, kills)
    check_files(folder, uninterrupted)
    return kills


def test_two_kills(tmp_path):
    """The short form of the next test: the half-written save, and the rank that does not save."""
    flags = ["--epochs", "2"]
    uninterrupted = uninterrupted_run(tmp_path / "uninterrupted", *flags)
    kills = chaos(tmp_path / "killed", uninterrupted, [("save", (0,)), ("step", (1,))], *flags, epochs=2)
    assert len(kills) == 2


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return uninterrupted_run(tmp_path_factory.mktemp("uninterrupted"), "--epochs", "14")


@pytest.mark.slow
def test_twenty_kills_in_one_launch(tmp_path, uninterrupted):
    rng = random.Random(18)
    wanted = ["step"] * 5 + ["evaluate"] * 4 + ["save"] * 5 + ["start"] * 3 + ["resume"] * 3
    rng.shuffle(wanted)
    plan = [(phase, (0,) if phase == "save" else rng.choice([(0,), (1,), (0, 1), (1, 0)])) for phase in wanted]
    kills = chaos(tmp_path, uninterrupted, plan, "--epochs", "14", epochs=14)
    hits = Counter(kill.phase for kill in kills)
    assert all(hits[phase] for phase in PHASES), hits


@pytest.mark.slow
def test_torchrun_brings_a_run_back_too(tmp_path, uninterrupted):
    plan = [("step", (0,)), ("evaluate", (1,)), ("save", (0, 1))]
    chaos(tmp_path, uninterrupted, plan, "--epochs", "14", epochs=14, launcher=TORCHRUN)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_ten_kills_of_two_ranks_that_train_on_photographs(tmp_path, store):
    """The killed run prepares its photographs itself, so that a kill may hit that too."""
    photo_folder(tmp_path / "photos", train=163, test=40, sides=(60, 130))
    flags = ["--data.dataset", str(tmp_path / "photos"), "--data.store", store, "--data.stored-size", "72"]
    flags += ["--data.crop-scale", "0.25", "--epochs", "8"]
    of_run = [[*flags, "--data.cache-dir", str(tmp_path / f"cache {name}")] for name in ("uninterrupted", "killed")]
    uninterrupted = uninterrupted_run(tmp_path / "uninterrupted", *of_run[0])
    rng = random.Random(10)
    wanted = ["start", "start", "resume", "step", "step", "step", "evaluate", "evaluate", "save", "save"]
    plan = [(phase, (0,) if phase == "save" else rng.choice([(0,), (1,), (0, 1), (1, 0)])) for phase in wanted]
    rng.shuffle(plan)
    kills = chaos(tmp_path / "killed", uninterrupted, plan, *of_run[1], epochs=8)
    assert len(kills) == 10


# ---- killed, and continued on another number of ranks ----------------------------------------------------------------


def changing_ranks(folder, *flags):
    """Train on two ranks, on one and on two again, each but the last killed; return the steps where they took over."""
    saved = []
    for attempt, launcher in enumerate([port([*ACCELERATE, "--max_restarts", "0"]), [sys.executable]]):
        with Trial(folder, *flags, launcher=launcher, attempt=attempt) as trial:
            before = saved[-1] if saved else 0
            trial.until(lambda before=before: trial.saved() > before + 2)
            trial.until(lambda: trial.place(0).phase == "step")
            os.kill(trial.place(0).pid, signal.SIGKILL)
            assert trial.finish() != 0
        assert not trial.orphans
        saved.append(trial.saved())
    with Trial(folder, *flags, launcher=port(ACCELERATE), attempt=2) as trial:
        assert trial.finish() == 0, trial.output.read_text()
    return saved


@pytest.mark.parametrize("dropout", ["0", "0.5"])
@pytest.mark.slow
def test_two_ranks_then_one_then_two(tmp_path, dropout):
    """The order stays the same to the image. Dropout's masks are functions of (step, rank): one rank draws others."""
    flags = ["--epochs", "2", "--model.dropout", dropout]
    uninterrupted = uninterrupted_run(tmp_path / "uninterrupted", *flags)
    folder = tmp_path / "changed"
    first, second = changing_ranks(folder, *flags)
    sizes = [len(lines) for lines in counted(folder)]
    assert sizes == [2] * first + [1] * (second - first) + [2] * (20 - second)
    check_order(folder, uninterrupted, epochs=2)
    seeds, theirs = ([[ln["seed"] for ln in lines] for lines in counted(run)] for run in (folder, uninterrupted))
    assert [own == other for own, other in zip(seeds, theirs, strict=True)] == [size == 2 for size in sizes]
    same, expected = losses(folder / "run"), losses(uninterrupted / "run")
    if dropout == "0":
        assert same == pytest.approx(expected, rel=1e-5)
    else:
        steps = [record["global_step"] for record in records(folder / "run") if "train/loss" in record]
        assert [s for s, x, y in zip(steps, same, expected, strict=True) if x == y] == [s for s in steps if s <= first]
        assert same != pytest.approx(expected, rel=1e-3)
