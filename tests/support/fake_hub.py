"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that publishing and reading a model call.

It speaks what huggingface_hub sends with Xet switched off: whoami-v2, repos/create, branch, validate-yaml, preupload,
git LFS (batch, upload, verify), commit (NDJSON), and to read: revision, tree and resolve.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "s" * 34
LFS_SUFFIXES = (".safetensors", ".png")
"""Files that the Hub keeps by git LFS; others are part of the commit."""


@dataclass
class Model:
    """A model repository: content of files by path, by commit, by branch."""

    private: bool = False
    commits: list[tuple[str, dict[str, bytes], str]] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {branch} {message}".encode()).hexdigest()
        self.commits.append((sha, files, message))
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        wanted = self.branches.get(revision, revision)
        return next(((sha, files) for sha, files, _ in self.commits if sha == wanted), None)


class FakeHub:
    """Models by id, who may write, and every request that came: (method, path, whether it brought the token)."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.user, self.writable = "ada", {"ada"}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, bool]] = []
        self.url = ""

    def add(self, repository: str, files: dict[str, bytes], *, private: bool = False) -> Model:
        model = self.models[repository] = Model(private)
        model.commit("main", files, "first")
        return model

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables of a process that takes this for the Hub, logged in."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}


@contextmanager
def serve() -> Iterator[FakeHub]:
    hub = FakeHub()
    handler = type("Handler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class RefusalError(Exception):
    """An answer that is an error: status, message and the Hub's code."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


NOT_FOUND = RefusalError(404, "Repository not found", "RepoNotFound")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        """Write nothing to stderr."""

    def handle_any(self) -> None:
        path, self.content = unquote(urlsplit(self.path).path), self.body()
        self.token = self.headers.get("authorization") == f"Bearer {TOKEN}"
        self.hub.requests.append((self.command, path, self.token))
        try:
            for method, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method.split("|"):
                    return answer(self, *found.groups())
            raise RefusalError(404, f"the stand-in does not know {self.command} {path}")
        except RefusalError as error:
            self.send({"error": str(error)}, error.status, {"X-Error-Message": str(error), "X-Error-Code": error.code})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - http.server's names

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def send(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- who, and what there is -------------------------------------------------------------------------------------

    def whoami(self) -> None:
        if not self.token:
            raise RefusalError(401, "Invalid username or password.")
        self.send({"type": "user", "name": self.hub.user, "auth": {"type": "access_token"}, "orgs": []})

    def check_write(self, repository: str) -> None:
        if not self.token or repository.partition("/")[0] not in self.hub.writable:
            raise RefusalError(403, "You don't have the rights to write there")

    def create(self) -> None:
        asked = json.loads(self.content)
        repository = f"{asked['organization']}/{asked['name']}"
        self.check_write(repository)
        url = f"{self.hub.url}/{repository}"
        if repository in self.hub.models:
            return self.send({"url": url, "error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(repository, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        return self.send({"url": url})

    def validate(self) -> None:
        text = json.loads(self.content)["content"]
        assert re.match(r"---\n.*?\n---\n", text, re.DOTALL), text
        self.send({"warnings": [], "errors": []})

    def model(self, repository: str) -> Model:
        found = self.hub.models.get(repository)
        if found is None or (found.private and not self.token):
            raise NOT_FOUND
        return found

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self.model(repository).at(revision)
        if found is None:
            raise RefusalError(404, "Invalid rev id", "RevisionNotFound")
        return found

    def info(self, repository: str, revision: str | None = None) -> None:
        sha, files = self.files(repository, revision or "main")
        own = {"id": repository, "modelId": repository, "sha": sha, "private": self.hub.models[repository].private}
        self.send({**own, "tags": [], "downloads": 0, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, repository: str, revision: str) -> None:
        _, files = self.files(repository, revision)
        self.send([{"type": "file", "path": path, **described(path, content)} for path, content in files.items()])

    def resolve(self, repository: str, revision: str, path: str) -> None:
        sha, files = self.files(repository, revision)
        if path not in files:
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        entry = described(path, files[path])
        etag = entry.get("lfs", entry)["oid"]
        self.send(files[path], headers={"ETag": f'"{etag}"', "X-Repo-Commit": sha})

    # ---- writing ----------------------------------------------------------------------------------------------------

    def branch(self, repository: str, branch: str) -> None:
        self.check_write(repository)
        model = self.model(repository)
        if branch in model.branches:
            raise RefusalError(409, "Reference already exists")
        model.branches[branch] = model.branches["main"]
        self.send({})

    def preupload(self, repository: str, revision: str) -> None:
        self.check_write(repository)
        _, there = self.files(repository, revision)
        answers = []
        for file in json.loads(self.content)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in there:
                entry = described(file["path"], there[file["path"]])
                answer["oid"] = entry.get("lfs", entry)["oid"]
            answers.append(answer)
        self.send({"files": answers})

    def batch(self, repository: str) -> None:
        self.check_write(repository)
        objects = []
        for entry in json.loads(self.content)["objects"]:
            url = f"{self.hub.url}/lfs/{entry['oid']}"
            actions = {"upload": {"href": url, "header": {}}, "verify": {"href": f"{url}/verify"}}
            objects.append({**entry, **({} if entry["oid"] in self.hub.large else {"actions": actions})})
        self.send({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        assert hashlib.sha256(self.content).hexdigest() == oid
        self.hub.large[oid] = self.content
        self.send({})

    def verify(self, oid: str) -> None:
        assert len(self.hub.large[oid]) == json.loads(self.content)["size"]
        self.send({})

    def commit(self, repository: str, branch: str) -> None:
        self.check_write(repository)
        _, there = self.files(repository, branch)
        files, message = dict(there), ""
        for key, value in ((line["key"], line["value"]) for line in map(json.loads, self.content.splitlines())):
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert key == "deletedFile", key
                del files[value["path"]]
        sha = self.hub.models[repository].commit(branch, files, message)
        url = f"{self.hub.url}/{repository}/commit/{sha}"
        self.send({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})


ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("GET", r"/api/models/([^/]+/[^/]+)", Handler.info),
    ("GET", r"/api/models/([^/]+/[^/]+)/revision/(.+)", Handler.info),
    ("GET", r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", Handler.tree),
    ("POST", r"/api/models/([^/]+/[^/]+)/branch/(.+)", Handler.branch),
    ("POST", r"/api/models/([^/]+/[^/]+)/preupload/(.+)", Handler.preupload),
    ("POST", r"/api/models/([^/]+/[^/]+)/commit/(.+)", Handler.commit),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", Handler.upload),
    ("POST", r"/lfs/([0-9a-f]{64})/verify", Handler.verify),
    ("HEAD|GET", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]


def described(path: str, content: bytes) -> dict[str, Any]:
    """Return size and ids of a file as the tree lists them."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return {"oid": blob, "size": len(content), **({"lfs": large} if path.endswith(LFS_SUFFIXES) else {})}
