"""openwandb, a server that speaks as much of W&B's protocol as a run needs: started, killed, restarted, and read.

It keeps a run's history, summary, configuration and files, and gives them back over HTTP without a login. It lacks
sweeps, stopping, alerts, the public API (`wandb.Api`) and the files of artifacts; fake_wandb.py has some of these. It
appends whatever arrives: a run that is sent twice has its rows twice.
"""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deadlines import Deadline, deadline
from ranks import free_port

PROGRAM = os.environ.get("OPENWANDB") or shutil.which("openwandb")
KEY = "0123456789" * 4  # any but the server's own, which costs it 0.25 s a request
ENTITY = "default"
START_SECONDS = 30

Row = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """What the server holds of a run."""

    history: list[Row]
    """As it was logged, without wandb's own keys; each row once, in the order of arrival."""
    summary: Row
    config: Row
    state: str
    """running or finished: how it finished, the server does not note."""
    tags: list[str]
    files: dict[str, int]
    """Bytes by name."""

    @property
    def numbers(self) -> list[Row]:
        """Return the rows of numbers: pictures, histograms and tables are objects."""
        return [row for row in self.history if not any(isinstance(value, dict) for value in row.values())]

    def media(self, key: str) -> list[tuple[Row, Row]]:
        """Return the rows that have such a picture or table, each with the object that describes it."""
        return [(row, row[key]) for row in self.history if key in row]


class Server:
    """The server's process, and what can be asked of it.

    Args:
        data: the folder it keeps its data in, which outlives it.
    """

    def __init__(self, data: Path) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._data = data
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client needs to find it."""
        return {"WANDB_BASE_URL": self.address, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def start(self) -> None:
        """Start it, again on the same port and data, and wait until it answers."""
        assert PROGRAM
        with (self._data.parent / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, "serve", "--host", "127.0.0.1", "--port", str(self.port), "--data-dir", str(self._data)],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = Deadline(START_SECONDS)
        while not self._answers():
            assert self._process.poll() is None, (self._data.parent / "server.log").read_text()
            assert not end.has_passed(), f"no answer within {end.seconds:.0f} s"
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self.get("login")
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End it by SIGKILL: connections break, and nobody listens at its port."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def get(self, path: str) -> bytes:
        """Return the answer to a GET."""
        with urllib.request.urlopen(f"{self.address}/{urllib.parse.quote(path)}", timeout=deadline(30)) as answer:
            return bytes(answer.read())

    def runs(self, project: str) -> list[str]:
        """Return the ids of a project's runs."""
        return [run["run_id"] for run in json.loads(self.get(f"api/v2/projects/{ENTITY}/{project}/runs"))["runs"]]

    def run(self, project: str, run_id: str) -> Held:
        """Return what it holds of a run."""
        described = json.loads(self.get(f"api/v2/runs/{run_id}"))["run"]
        listed = json.loads(self.get(f"api/v1/runs/{run_id}/files"))["files"]
        files = {file["name"]: file["size"] for file in listed}
        stored = self.file(project, run_id, "wandb-summary.json") or b"{}"
        return Held(
            history=list(_history(self.file(project, run_id, "wandb-history.jsonl"))),
            summary=described["summary"] | json.loads(stored),  # the file has tables and pictures too
            config={key: value["value"] for key, value in described["config"].items() if key != "_wandb"},
            state=described["state"],
            tags=described["tags"],
            files=files,
        )

    def file(self, project: str, run_id: str, name: str) -> bytes:
        """Return the content of one of a run's files, empty before it has arrived."""
        try:
            return self.get(f"files/{ENTITY}/{project}/{run_id}/{name}")
        except urllib.error.HTTPError:
            return b""


def _history(content: bytes) -> Iterator[Row]:
    seen = set()
    for line in content.splitlines():
        row = json.loads(line)
        logged = row["_step"], row["_timestamp"]
        if logged not in seen:
            seen.add(logged)
            yield {key: value for key, value in row.items() if not key.startswith("_")}


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start a server whose data is in the folder, and leave nothing of it behind."""
    server = Server(folder / "data")
    server.start()
    try:
        yield server
    finally:
        server.kill()
