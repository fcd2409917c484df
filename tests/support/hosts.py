"""Hosts on one machine: network namespaces joined by a switch, whose links can be slowed and cut, and which can die.

A host has an interface `eth0` of its own, a name, `h0`, `h1`, …, that the others know, a process tree that dies as one,
and a cache. What it shares with the others is the file system, as hosts with a network file system do. Needs root on
Linux, and iproute2.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from deadlines import deadline, wait
from places import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self


PREFIX = "alexnet-dist-test"
NUMBERS = itertools.count()
COMMAND_SECONDS = 20
TOOLS = ("ip", "tc", "unshare", "setpriv", "mount", "hostname")


@functools.cache
def obstacle() -> str | None:
    """Return why there can be no hosts here, or None."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} missing"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    try:
        with Network(1) as network, network.hosts[0].start(["true"], output=Path(os.devnull)) as process:
            return None if process.wait(COMMAND_SECONDS) == 0 else "no process can be started in a network namespace"
    except (subprocess.SubprocessError, AssertionError) as error:
        return f"network namespaces cannot be made: {error}"


def needs_hosts(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs hosts; it is skipped, with the reason, where there can be none."""

    @pytest.mark.hosts
    @functools.wraps(test)
    def guarded(*arguments: object, **keywords: object) -> None:
        if reason := obstacle():
            pytest.skip(reason)
        test(*arguments, **keywords)

    return guarded


def run(*command: str) -> str:
    """Run a command of iproute2 and return what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=deadline(COMMAND_SECONDS), check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


class Launched:
    """A command on a host: the first process of a tree that dies with it."""

    def __init__(self, host: Host, command: list[str], *, output: Path, environment: dict[str, str]) -> None:
        self.host, self.output = host, output
        inner = f'hostname {host.name} && mount --bind {host.names} /etc/hosts && exec "$@"'
        isolated = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", inner, "sh"]
        # It also dies with the thread that starts it: a test session that is killed leaves nothing running.
        words = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", host.namespace, *isolated, *command]
        with output.open("a") as file:
            self._process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """Return the exit code; it has so many seconds of an idle machine.

        Raises:
            AssertionError: it is not over in time; the message holds what it has printed.
        """
        try:
            return wait(self._process, seconds)
        except AssertionError as late:
            raise AssertionError(f"{self.host.name}: {late}\n{self.text}") from None

    def kill(self) -> None:
        """Kill every process of the tree at once, as a host's end does."""
        self._process.kill()
        wait(self._process, COMMAND_SECONDS)

    def terminate(self) -> None:
        """Send SIGTERM to the command itself, as Kubernetes does to a container."""
        for child in psutil.Process(self._process.pid).children():
            child.send_signal(signal.SIGTERM)

    def terminate_all(self) -> None:
        """Send SIGTERM to the command and all its descendants, as SLURM does."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            child.send_signal(signal.SIGTERM)

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")


class Host:
    """A network namespace with an interface `eth0`."""

    def __init__(self, network: Network, index: int) -> None:
        self.network, self.index = network, index
        self.name, self.address = f"h{index}", f"10.77.0.{index + 1}"
        self.namespace = f"{network.prefix}-{self.name}"
        self.is_debian = False
        """Whether this host knows its own name by a loopback address alone."""
        self._launched: list[Launched] = []

    def make(self) -> None:
        """Make the namespace and plug it into the switch."""
        switch, port = self.network.switch, f"port{self.index}"
        run("ip", "netns", "add", self.namespace)
        run("ip", "-n", self.namespace, "link", "set", "lo", "up")
        run("ip", "-n", self.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
        run("ip", "-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.namespace, "link", "set", "eth0", "up")
        run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")

    def start(self, command: list[str], *, output: Path, **variables: str) -> Launched:
        """Start a command here, with this machine's variables and the given ones."""
        home = self.network.folder / self.name
        home.mkdir(exist_ok=True)
        self.names = home / "names"
        known = {host.name: host.address for host in self.network.hosts}
        if self.is_debian:
            known[self.name] = "127.0.1.1"
        lines = [f"{address} {name}\n" for name, address in known.items()]
        self.names.write_text("".join(["127.0.0.1 localhost\n", *lines]))
        own = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home), "HOSTNAME": self.name}
        path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        launched = Launched(self, command, output=output, environment=os.environ | path | own | variables)
        self._launched.append(launched)
        return launched

    def shape(self, rate: str) -> None:
        """Limit the link in both directions, in tc's units, such as 100mbit."""
        limit = ["root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms"]
        run("tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", *limit)
        run("tc", "-n", self.network.switch, "qdisc", "replace", "dev", f"port{self.index}", *limit)

    def cut(self) -> None:
        """Cut the link at the switch: nothing is answered any more, and nobody is told."""
        run("ip", "-n", self.network.switch, "link", "set", f"port{self.index}", "down")

    def join(self) -> None:
        """Join the link again."""
        run("ip", "-n", self.network.switch, "link", "set", f"port{self.index}", "up")

    def kill(self) -> None:
        """Kill all that runs here."""
        for launched in self._launched:
            launched.kill()
        self._launched.clear()


class Network:
    """Hosts on a switch, in namespaces whose names no other process of this machine uses.

    Args:
        num_hosts: how many.
    """

    def __init__(self, num_hosts: int) -> None:
        self.prefix = f"{PREFIX}-{os.getpid()}-{next(NUMBERS)}"
        self.switch = f"{self.prefix}-switch"
        self.hosts = [Host(self, index) for index in range(num_hosts)]

    def __enter__(self) -> Self:
        remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            run("ip", "netns", "add", self.switch)
            run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
            run("ip", "-n", self.switch, "link", "set", "br0", "up")
            for host in self.hosts:
                host.make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
        for namespace in (*(host.namespace for host in self.hosts), self.switch):
            remove(namespace)
        shutil.rmtree(self.folder, ignore_errors=True)


def remove(namespace: str) -> None:
    """Remove a namespace with all that runs in it, if it is there."""
    if (Path("/run/netns") / namespace).exists():
        for pid in run("ip", "netns", "pids", namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        run("ip", "netns", "delete", namespace)


def remove_leftovers() -> None:
    """Remove the namespaces of test sessions that were killed."""
    for path in Path("/run/netns").glob(f"{PREFIX}-*"):
        owner = re.match(rf"{PREFIX}-(\d+)-", path.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            remove(path.name)
