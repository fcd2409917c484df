"""A server that answers as little of W&B's protocol as a run needs, and the many ways in which it may not."""

import http.server
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Artifact:
    """A version of an artifact, as a run made it."""

    name: str
    type: str
    metadata: dict[str, Any]
    aliases: set[str]
    """A later version takes them away."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Besides its files, what wandb lists them in: wandb_manifest.json."""
    committed: bool = False


@dataclass
class Server:
    """Where it listens, what it was asked, and how it behaves from now on."""

    port: int
    mode: str
    """good, 500, slow, silent: never answers."""
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    dies_at: str | None = None
    """Once such a path or operation is asked for, the mode becomes `afterwards`."""
    afterwards: str = "silent"
    over: threading.Event = field(default_factory=threading.Event)
    stopped: bool = False
    """Whether somebody has pressed Stop on the run's page."""
    artifacts: list[Artifact] = field(default_factory=list)
    sweep: dict[str, Any] = field(default_factory=dict)
    """The content of a sweep's file; of each sweep that is asked for."""
    commands: list[dict[str, Any]] = field(default_factory=list)
    """What an agent is told at its next heartbeats: runs one after the other, and at last to go."""
    projects: set[tuple[str, str]] = field(default_factory=lambda: {("e", "p")})
    """Entity and name of each project that has views."""
    views: list[dict[str, Any]] = field(default_factory=list)
    """The saved views: entityName, projectName, name, displayName, spec and id."""

    @property
    def history(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each run, without wandb's own keys."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for path, body in self.requests:
            if path.endswith("/file_stream"):
                lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
                found = [{key: x for key, x in json.loads(line).items() if key[0] != "_"} for line in lines]
                rows.setdefault(path.split("/")[-2], []).extend(found)
        return rows


def answer(query: dict[str, Any], server: Server) -> dict[str, Any]:
    """Return the data of a GraphQL answer."""
    text = str(query.get("query", ""))
    variables = query.get("variables") or {}
    fields = set(re.findall(r"\w+", text))
    for name, special in SPECIAL.items():
        if name in fields:
            return {name: special(variables, server)}
    if "upsertBucket" in fields:
        project = {"name": variables.get("project") or "p", "entity": {"name": "e"}}
        bucket = {
            "id": "b",
            "name": variables.get("name") or "r",
            "displayName": "d",
            "description": None,
            "config": "{}",
            "sweepName": None,
            "historyLineCount": 0,
            "project": project,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "createRunFiles" in fields:
        files = variables.get("files") or []
        url = f"http://127.0.0.1:{server.port}/upload"
        uploads = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in files]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": uploads}}
    if "viewer" in fields:
        return {"viewer": {"id": "v", "username": "u", "entity": "e", "flags": "{}", "teams": {"edges": []}}}
    if fields & {"artifactType", "sweepName", "allViews"}:
        sweep = {"id": "s", "name": "s", "config": json.dumps(server.sweep), "runs": {"edges": []}}
        other = {"artifact": None, "sweep": sweep}
        return {"project": project_views(variables, server) if "allViews" in fields else other}
    return {}


# ---- artifacts ------------------------------------------------------------------------------------------------------


def create_artifact(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """Take a new version, whose files are still to come."""
    asked = variables["input"]
    aliases = {alias["alias"] for alias in asked["aliases"]}
    metadata = json.loads(asked["metadata"] or "{}")
    server.artifacts.append(
        Artifact(asked["artifactCollectionName"], asked["artifactTypeName"], metadata=metadata, aliases=aliases)
    )
    number = str(len(server.artifacts) - 1)
    return {"artifact": {"id": number, "state": "PENDING", "artifactSequence": {"id": "q", "latestArtifact": None}}}


def create_manifest(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """Tell where the list of files goes."""
    url = _upload_url(server, variables["artifactID"], "wandb_manifest.json")
    return {"artifactManifest": {"id": "m", "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}}


def create_files(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """Tell where the files go."""
    nodes = [
        {
            "storagePath": file["name"],
            "uploadUrl": _upload_url(server, file["artifactID"], file["name"]),
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": file["artifactID"]},
        }
        for file in variables["input"]["artifactFiles"]
    ]
    return {"files": {"edges": [{"node": node} for node in nodes]}}


def commit_artifact(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """Move the aliases to a version that is complete."""
    new = server.artifacts[int(variables["artifactID"])]
    new.committed = True
    for artifact in server.artifacts:
        if artifact is not new and artifact.name == new.name:
            artifact.aliases -= new.aliases
    return {"artifact": {"id": variables["artifactID"], "digest": "d"}}


def _upload_url(server: Server, artifact: str, name: str) -> str:
    return f"http://127.0.0.1:{server.port}/artifacts/{artifact}/{name}"


# ---- sweeps ---------------------------------------------------------------------------------------------------------


def heartbeat(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """Tell an agent what to do."""
    commands = server.commands or [{"type": "exit"}]  # which kills what still runs
    waits = commands[0]["type"] in ("run", "exit") and json.loads(variables["runState"])
    return {"agent": {"id": "a"}, "commands": json.dumps([] if waits else [commands.pop(0)])}


# ---- saved views ----------------------------------------------------------------------------------------------------


def upsert_view(variables: dict[str, Any], server: Server) -> dict[str, Any]:
    """Replace the view of that id; without one, take a new view."""
    known = [view for view in server.views if view["id"] == variables.get("id")]
    for view in known:
        view.update(variables)
    if not known:
        server.views.append({**variables, "id": f"view{len(server.views)}"})
    view = (known or server.views)[-1]
    return {"view": {"id": view["id"], "name": view["name"]}, "inserted": not known}


def project_views(variables: dict[str, Any], server: Server) -> dict[str, Any] | None:
    """Return a project's views of a name; None for a project that is not there."""
    place = (variables["entityName"], variables["name"])
    wanted = (*place, variables["viewName"])
    found = [view for view in server.views if (view["entityName"], view["projectName"], view["name"]) == wanted]
    return {"allViews": {"edges": [{"node": view} for view in found]}} if place in server.projects else None


SPECIAL: dict[str, Callable[[dict[str, Any], Server], dict[str, Any]]] = {
    "createArtifact": create_artifact,
    "createArtifactManifest": create_manifest,
    "createArtifactFiles": create_files,
    "commitArtifact": commit_artifact,
    "createAgent": lambda *_: {"agent": {"id": "a"}},
    "agentHeartbeat": heartbeat,
    "upsertView": upsert_view,
    "notifyScriptableRunAlert": lambda *_: {"success": True},
}


class Handler(http.server.BaseHTTPRequestHandler):
    """One request of the fake server."""

    protocol_version = "HTTP/1.1"
    shared: Server

    def _serve(self) -> None:
        server = self.shared
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.requests.append((self.path, body))
        if server.dies_at and (server.dies_at in self.path or server.dies_at.encode() in body):
            server.mode = server.afterwards
        if server.mode == "silent":
            server.over.wait()
            self.close_connection = True
            return
        if server.mode == "slow":
            time.sleep(2)
        code, data = (500, {"error": "broken"}) if server.mode == "500" else (200, {})
        if code == 200 and self.path == "/graphql":
            data = {"data": answer(json.loads(body), server)}
        if code == 200 and self.path.startswith("/artifacts/"):
            _, _, number, name = self.path.split("/", 3)
            server.artifacts[int(number)].files[urllib.parse.unquote(name)] = body
        if code == 200 and server.stopped and self.path.endswith("/file_stream"):
            data = {"stopped": True}
        content = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_HEAD = _serve  # noqa: N815 - the library's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # wandb uploads the pictures of a table all at once

    def handle_error(self, *_: object) -> None:
        """Clients may go at any time."""


@contextmanager
def serving(mode: str, *, dies_at: str | None = None, afterwards: str = "silent") -> Iterator[Server]:
    """Serve on a port of the loopback interface."""
    shared = Server(0, mode, dies_at=dies_at, afterwards=afterwards)
    handler = type("Handler", (Handler,), {"shared": shared})
    with _Quiet(("127.0.0.1", 0), handler) as listener:
        shared.port = listener.server_port
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield shared
        finally:
            shared.over.set()
            listener.shutdown()
            thread.join()


@contextmanager
def refusing() -> Iterator[Server]:
    """Hold a port on which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield Server(closed.getsockname()[1], "refused")
