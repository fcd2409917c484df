"""A server that answers as little of W&B's protocol as a run needs, and the many ways in which it may not."""

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


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


def answer(query: dict[str, Any], server: Server) -> dict[str, Any]:
    """Return the data of a GraphQL answer."""
    text = str(query.get("query", ""))
    variables = query.get("variables") or {}
    fields = set(re.findall(r"\w+", text))
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
    return {}


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
