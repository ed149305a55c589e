"""A hub of the test's own: what of the Hugging Face hub's API fetching and uploading need, with repositories that may
lie."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"main", usedforsecurity=False).hexdigest()


@dataclass
class Repo:
    files: dict[str, bytes]
    card: dict[str, Any] | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that are told in place of the true ones."""
    told: dict[str, bytes] = field(default_factory=dict)
    """Contents whose digests are told in place of the true ones."""
    id: str | None = None
    """What it calls itself, if not as it was asked for."""
    token: str | None = None
    """What has to be brought to see it."""
    private: bool = False
    commits: list[str] = field(default_factory=list)
    """Messages of what was uploaded."""
    breaks_off: list[int] = field(default_factory=list)
    """After how many bytes each of the next connections breaks off."""

    def info(self, id: str) -> dict[str, Any]:
        siblings = [self._sibling(path, self.told.get(path, content)) for path, content in self.files.items()]
        return {
            "id": self.id or id,
            "sha": COMMIT,
            "cardData": self.card,
            "siblings": siblings,
            "private": self.private,
        }

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        size = self.sizes.get(path, len(content))
        blob = hashlib.sha1(b"blob %d\0" % size + content, usedforsecurity=False).hexdigest()
        large = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 1}
        return {"rfilename": path, "size": size, "blobId": blob} | ({"lfs": large} if ".parquet" in path else {})


class Hub(ThreadingHTTPServer):
    """Remembers who asked for what, and what they brought."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        """By `datasets/org/name` and `models/org/name`."""
        self.elsewhere: str | None = None
        """Address of the server that files are redirected to."""
        self.asked: list[str] = []
        self.brought: set[str] = set()
        """Values of headers that say who asks."""
        self.refuses_commits = 0
        """How many of the next uploads fail."""


class _Asked(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append(path)
        hub.brought |= {value for name, value in self.headers.items() if "authorization" in name.lower()}
        if path.startswith("/api/"):
            id = path.removeprefix("/api/").partition("/revision/")[0]
            repo = self._seen(id.partition("/tree/")[0])
            if repo and "/tree/" in id:  # all that anybody looks for lies at the top
                self._json(200, [])
                return
            self._json(200, repo.info(id.partition("/")[2])) if repo else self._refuse()
            return
        id, _, file = (
            path.removeprefix("/").replace("/resolve/main/", f"/resolve/{COMMIT}/").partition(f"/resolve/{COMMIT}/")
        )
        repo = self._seen(id if id.startswith("datasets/") else f"models/{id}")
        if repo is None:
            self._refuse()
        elif file not in repo.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif hub.elsewhere:
            self._send(302, b"", {"Location": hub.elsewhere + self.path})
        else:
            self._file(repo, repo.files[file])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0)) or self._chunks()
        hub.asked.append(path)
        hub.brought |= {value for name, value in self.headers.items() if "authorization" in name.lower()}
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            named = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json(200, {"files": named})
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/").removesuffix("/commit/main"), body)
        else:
            self._refuse()

    def _create(self, asked: dict[str, Any]) -> None:
        if not self.headers.get("authorization"):
            self._refuse()
            return
        id = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = f"models/{id}" in self.server.repos
        self.server.repos.setdefault(f"models/{id}", Repo({}, private=asked.get("visibility") == "private"))
        self._json(409 if there else 200, {"url": f"{self.server.url}/{id}"})

    def _commit(self, id: str, body: bytes) -> None:
        if self.server.refuses_commits:
            self.server.refuses_commits -= 1
            self._json(403, {"error": "You may not write here."})
            return
        repo = self.server.repos[id]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                repo.commits.append(line["value"]["summary"])
            else:
                repo.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self._json(200, {"commitUrl": f"{self.server.url}/{id}/commit/{COMMIT}", "commitOid": COMMIT})

    def _chunks(self) -> bytes:
        """A body that comes in pieces."""
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _seen(self, id: str) -> Repo | None:
        repo = self.server.repos.get(id)
        token = repo and repo.token
        return repo if not token or self.headers.get("authorization") == f"Bearer {token}" else None

    def _file(self, repo: Repo, content: bytes) -> None:
        start = int((self.headers.get("range") or "bytes=0-")[6:-1])
        content, status = content[start:], 206 if start else 200
        if not repo.breaks_off:
            etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
            self._send(status, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
            return
        self._send(status, content[: repo.breaks_off.pop(0)], length=len(content))
        self.close_connection = True

    def _refuse(self) -> None:
        """As the hub does where nobody has said who asks."""
        self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _json(self, status: int, content: Any) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(length or len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield hub
        hub.shutdown()
