"""Processes that begin with torch imported: forked from a server, they save the seconds of CPU that its import takes.

Each is new otherwise: its environment, its folder, its arguments, and `__main__`. What is to prove that the
interpreter starts, or ends, starts one: `train.py` as a user types it, the launchers.
"""

import atexit
import multiprocessing as mp
import os
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path

import torch
from places import ROOT, SUPPORT

IMPORTED = ["torch", "torch._dynamo", "torchvision", "accelerate", "datasets", "pytest"]
IMPORTED += ["alexnet_dist.commands.main", "alexnet_dist.commands.train", "tiny", "synthetic_images"]


def context() -> BaseContext:
    """Return what makes such processes; elsewhere than on Linux, new interpreters."""
    if sys.platform != "linux":
        return mp.get_context("spawn")
    found = mp.get_context("forkserver")
    found.set_forkserver_preload(IMPORTED)
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{SUPPORT}"  # as pytest finds them
    os.environ.pop("OMP_NUM_THREADS", None)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return found


def take(environment: Mapping[str, str]) -> None:
    """Make an environment this process's own, threads included: OpenMP has read the server's."""
    os.environ.clear()
    os.environ.update(environment)
    if number := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(number))


def _execute(code: str, arguments: tuple[str, ...], environment: dict[str, str], outputs: tuple[str, str]) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), number)
    take(environment)
    os.chdir(ROOT)
    sys.argv = ["-c", *arguments]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__)
    finally:
        threading._shutdown()  # type: ignore[attr-defined] # as at the end of an interpreter,
        atexit._run_exitfuncs()  # which such a process leaves out


class Process:
    """Code that runs in such a process, as `subprocess.Popen` of the interpreter with `-c` has it.

    Args:
        code: to run in the repository's folder.
        arguments: in `sys.argv`.
        environment: None means that of this process.
    """

    def __init__(self, code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self._files = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]  # noqa: SIM115
        names = tuple(file.name for file in self._files)
        given = dict(os.environ if environment is None else environment)
        self._process = context().Process(target=_execute, args=(code, arguments, given, names))  # type: ignore[attr-defined]
        self._process.start()
        self.pid = int(self._process.pid)

    @property
    def returncode(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        code = self._process.exitcode
        return None if code is None else int(code)

    def poll(self) -> int | None:
        """Return the same."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        self._process.join(timeout)
        if (code := self.returncode) is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what it has printed, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        self.wait(timeout)
        out, errors = (Path(file.name).read_text(encoding="utf-8") for file in self._files)
        return out, errors


def execute(code: str, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in such a process until it ends, as `subprocess.run` does, which kills it at the timeout."""
    process = Process(code, *arguments)
    try:
        out, errors = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(["python", "-c", code], process.wait(), out, errors)
