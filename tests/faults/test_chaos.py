"""Ranks killed by SIGKILL at any moment, brought back by the launcher: the run ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from ranks import free_port
from tiny import equal, losses, records, summary, weights, without_clocks

ROOT = Path(__file__).parents[2]
BATCHES = 10  # of 16 images: 163 leave 3 out
EVERY_STEPS = 3  # between checkpoints
FLAGS = f"""--runtime.cpu --data.limit 163 --log.every-steps 4 --log.kernels-every-epochs 1000
    --checkpoint.every-steps {EVERY_STEPS} --runtime.timeout-seconds 30""".split()
PHASES = ("start", "resume", "step", "evaluate", "save")
SPREAD = {"start": 2.5, "resume": 0.2, "step": 0.03, "evaluate": 0.05, "save": 0.25}  # seconds
ACCELERATE = """accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no
    --dynamo_backend no --main_process_ip 127.0.0.1 --monitor_interval 0.1 --max_restarts 40""".split()
TORCHRUN = "torchrun --nproc-per-node 2 --rdzv-backend c10d --monitor-interval 0.1 --max-restarts 40".split()


@dataclass(frozen=True)
class Place:
    """Where a rank is, or was when it died."""

    attempt: int
    pid: int
    phase: str
    step: int


@dataclass(frozen=True)
class Kill:
    """What a kill hit, as the dead left it."""

    phase: str
    victims: tuple[int, ...]
    attempt: int
    step: int
    saved: int
    """The newest checkpoint at that moment."""


class Trial:
    """A run of tiny_train.py under a launcher, and what the killer sees of it."""

    def __init__(self, folder, *flags, launcher=(sys.executable,), attempt=0):
        self.notes, self.folder = folder / "notes", folder / "run"
        self.notes.mkdir(parents=True, exist_ok=True)
        self.output = folder / f"output{attempt}"
        self.pids = set()
        environment = {"CHAOS": str(self.notes), "CHAOS_SLOW_HASH": "0.1", "CHAOS_ATTEMPT": str(attempt)}
        scripts = str(Path(sys.executable).parent)
        with self.output.open("w") as output:
            self.process = psutil.Popen(
                [*launcher, str(ROOT / "tests/support/tiny_train.py"), *FLAGS, *flags, "--out-dir", str(self.folder)],
                cwd=ROOT,
                env=os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"} | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Leave nothing behind, and say what ran on after the launcher's end."""
        self.orphans = [pid for pid in self.pids - {self.process.pid} if alive(pid)]
        if self.process.is_running():
            for child in self.process.children(recursive=True):
                child.kill()
            self.process.kill()
            self.process.wait()
        for pid in self.orphans:
            os.kill(pid, signal.SIGKILL)

    def place(self, rank):
        try:
            attempt, pid, phase, step = (self.notes / f"rank{rank}").read_text().split()
        except (OSError, ValueError):
            return Place(-1, 0, "nowhere", 0)
        self.pids.add(int(pid))
        return Place(int(attempt), int(pid), phase, int(step))

    def until(self, condition, *, deadline=120):
        """Poll; the launcher must not end meanwhile."""
        end = time.monotonic() + deadline
        while not (found := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output.read_text()}"
            assert time.monotonic() < end, f"nothing for {deadline} s at {self.place(0)}, {self.place(1)}"
            time.sleep(0.001)
        return found

    def scratch(self, since):
        """Tell whether a checkpoint is half written, by this attempt and not by one before it."""
        folders = (self.folder / "checkpoints").glob(".writing-step_*")
        return any(modified(path) > since for path in folders)

    def saved(self):
        return max((int(path.name[5:]) for path in (self.folder / "checkpoints").glob("step_*")), default=0)

    def kill(self, phase, victims, *, attempt, rng):
        """Wait for a moment of this attempt, and a little more; kill; return what was hit."""
        self.until(lambda: all(self.place(rank).attempt == attempt for rank in victims))
        since, eye = time.time(), victims[0]
        if phase == "step":
            first = self.until(lambda: (p := self.place(eye)).phase == "step" and p).step
            wanted = first + rng.randrange(5)
            self.until(lambda: (p := self.place(eye)).phase == "step" and p.step >= wanted)
        else:
            self.until(lambda: self.scratch(since) if phase == "save" else self.place(eye).phase == phase)
        time.sleep(rng.uniform(0, SPREAD[phase]))
        pids = [self.place(rank).pid for rank in victims]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.until(lambda: not any(alive(pid) for pid in pids))
        place = self.place(eye)
        assert place.attempt == attempt
        hit = "save" if 0 in victims and self.scratch(since) else place.phase
        return Kill(hit, victims, attempt, place.step, self.saved())

    def finish(self, *, deadline=240):
        """Wait for the end and return the exit code."""
        code = self.process.wait(deadline)
        for rank in (0, 1):
            self.place(rank)
        return code


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def modified(path):
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


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


def check_order(folder, undisturbed, *, epochs):
    """Each image once an epoch, and those of the undisturbed run."""
    batches = order(folder)
    assert batches == order(undisturbed)
    for epoch in range(epochs):
        ids = [image for batch in batches[epoch * BATCHES : (epoch + 1) * BATCHES] for image in batch]
        assert len(set(ids)) == len(ids) == BATCHES * 16


def check_repeats(folder, undisturbed):
    """A step taken again sees the same images and drops the same units."""
    expected = {(line["step"], line["rank"]): (line["ids"], line["seed"]) for line in ledger(undisturbed)}
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


def check_files(folder, undisturbed):
    """The same weights, optimizer and records, to the bit, and no half-written checkpoint."""
    for name in ("model", "optimizer"):
        assert equal(weights(folder / "run", name=name), weights(undisturbed / "run", name=name))
    ours, theirs = ([without_clocks(record) for record in records(run / "run")] for run in (folder, undisturbed))
    assert ours == theirs
    assert not list((folder / "run/checkpoints").glob(".*"))
    for key in ("status", "best_top1", "final_top1", "final_train_loss", "global_step", "epochs"):
        assert summary(folder / "run")[key] == summary(undisturbed / "run")[key], key


def port(launcher):
    if launcher[0] == "torchrun":
        return [*launcher, "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    return [*launcher, "--main_process_port", str(free_port())]


def undisturbed_run(folder, *flags):
    with Trial(folder, *flags, launcher=port(ACCELERATE)) as trial:
        assert trial.finish() == 0, trial.output.read_text()
    return folder


def chaos(folder, undisturbed, plan, *flags, epochs, launcher=ACCELERATE, seed=0):
    """Carry out a plan of kills in one launch, compare the run with the undisturbed one, and return the kills."""
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
    check_order(folder, undisturbed, epochs=epochs)
    check_repeats(folder, undisturbed)
    check_continuation(folder, kills)
    check_files(folder, undisturbed)
    return kills


def test_two_kills(tmp_path):
    """The short form of the next test: the half-written save, and the rank that does not save."""
    flags = ["--epochs", "2"]
    undisturbed = undisturbed_run(tmp_path / "undisturbed", *flags)
    kills = chaos(tmp_path / "killed", undisturbed, [("save", (0,)), ("step", (1,))], *flags, epochs=2)
    assert len(kills) == 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return undisturbed_run(tmp_path_factory.mktemp("undisturbed"), "--epochs", "14")


@pytest.mark.slow
def test_twenty_kills_in_one_launch(tmp_path, undisturbed):
    rng = random.Random(18)
    wanted = ["step"] * 5 + ["evaluate"] * 4 + ["save"] * 5 + ["start"] * 3 + ["resume"] * 3
    rng.shuffle(wanted)
    plan = [(phase, (0,) if phase == "save" else rng.choice([(0,), (1,), (0, 1), (1, 0)])) for phase in wanted]
    kills = chaos(tmp_path, undisturbed, plan, "--epochs", "14", epochs=14)
    hits = Counter(kill.phase for kill in kills)
    assert all(hits[phase] for phase in PHASES), hits


@pytest.mark.slow
def test_torchrun_brings_a_run_back_too(tmp_path, undisturbed):
    plan = [("step", (0,)), ("evaluate", (1,)), ("save", (0, 1))]
    chaos(tmp_path, undisturbed, plan, "--epochs", "14", epochs=14, launcher=TORCHRUN)


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
    undisturbed = undisturbed_run(tmp_path / "undisturbed", *flags)
    folder = tmp_path / "changed"
    first, second = changing_ranks(folder, *flags)
    sizes = [len(lines) for lines in counted(folder)]
    assert sizes == [2] * first + [1] * (second - first) + [2] * (20 - second)
    check_order(folder, undisturbed, epochs=2)
    seeds, theirs = ([[ln["seed"] for ln in lines] for lines in counted(run)] for run in (folder, undisturbed))
    assert [own == other for own, other in zip(seeds, theirs, strict=True)] == [size == 2 for size in sizes]
    same, expected = losses(folder / "run"), losses(undisturbed / "run")
    if dropout == "0":
        assert same == pytest.approx(expected, rel=1e-5)
    else:
        steps = [record["global_step"] for record in records(folder / "run") if "train/loss" in record]
        assert [s for s, x, y in zip(steps, same, expected, strict=True) if x == y] == [s for s in steps if s <= first]
        assert same != pytest.approx(expected, rel=1e-3)
