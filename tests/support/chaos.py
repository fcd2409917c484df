"""Launched runs of the tiny network whose ranks are killed at a chosen moment."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from deadlines import Deadline, deadline, wait
from places import ROOT, SUPPORT
from ranks import free_port

BATCHES = 10  # of 16 images: 163 leave 3 out
EVERY_STEPS = 3  # between checkpoints
FLAGS = f"""--runtime.cpu --data.limit 163 --log.every-steps 4 --log.kernels-every-epochs 1000
    --checkpoint.every-steps {EVERY_STEPS}""".split()
TIMEOUT = 30  # seconds of an idle machine
PHASES = ("start", "resume", "step", "evaluate", "save")
SPREAD = {"start": 2.5, "resume": 0.2, "step": 0.03, "evaluate": 0.05, "save": 0.25}  # seconds
ACCELERATE = """accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no
    --dynamo_backend no --main_process_ip 127.0.0.1 --monitor_interval 0.1 --max_restarts 40""".split()


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
        timeout = ["--runtime.timeout-seconds", str(round(deadline(TIMEOUT)))]
        with self.output.open("w") as output:
            self.process = psutil.Popen(
                [*launcher, str(SUPPORT / "tiny_train.py"), *FLAGS, *timeout, *flags, "--out-dir", str(self.folder)],
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

    def until(self, condition):
        """Poll; the launcher must not end meanwhile."""
        end = Deadline(120)
        while not (found := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output.read_text()}"
            assert not end.has_passed(), f"nothing for {end.seconds:.0f} s at {self.place(0)}, {self.place(1)}"
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

    def finish(self):
        """Wait for the end and return the exit code."""
        code = wait(self.process, 240)
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


def port(launcher):
    if launcher[0] == "torchrun":
        return [*launcher, "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    return [*launcher, "--main_process_port", str(free_port())]
