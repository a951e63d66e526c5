"""A small Hugging Face hub on loopback: the endpoints that huggingface_hub uses to make a repository, to
commit to it (regular files and LFS) and to download from it, with tokens, private repositories and revisions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_ada": "ada", "hf_bob": "bob"}  # token -> the only name that it may write under


@dataclass
class Repo:
    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])
    tags: dict[str, int] = field(default_factory=dict)

    def at(self, revision: str) -> int | None:
        """The number of a commit, by `main`, its hash or a tag."""
        if revision == "main":
            return len(self.commits) - 1
        return {sha(i): i for i in range(len(self.commits))}.get(revision, self.tags.get(revision))


def sha(commit: int) -> str:
    return hashlib.sha1(str(commit).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """`repos` by user/name; `seen` are the requests, as "METHOD path"; `down` answers 503 to all of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.down = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Refused(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.server.seen.append(f"{self.command} {path}")
        try:
            if self.server.down:
                raise _Refused(503, "", "down for maintenance")
            for pattern, answer in ROUTES.items():
                match = re.fullmatch(pattern, f"{self.command} {path}")
                if match:
                    return answer(self, body, *match.groups())
            raise _Refused(404, "EntryNotFound", f"no such endpoint: {path}")
        except _Refused as refused:
            status, code, message = refused.args
            self._send(
                json.dumps({"error": message}).encode(),
                status,
                {"X-Error-Code": code, "X-Error-Message": message},
            )

    do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815 - http.server looks for these

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _user(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _repo(self, name: str) -> Repo:
        """As the real hub: 401 RepoNotFound whether a repository is missing or hidden."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and self._user() != name.split("/")[0]):
            raise _Refused(404 if self._user() else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, repo: Repo, revision: str) -> int:
        found = repo.at(revision)
        if found is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _writable(self, name: str) -> None:
        if self._user() is None:
            raise _Refused(401, "", "Invalid username or password.")
        if self._user() != name.split("/")[0]:
            raise _Refused(403, "", f"You don't have the rights to create a model under {name!r}")

    # ---------------------------------------------------------------------------------------- answers

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self._writable(name)
        if name in self.server.repos:
            return self._json({"url": f"{self.server.url}/{name}", "error": "exists"}, 409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.repos[name] = Repo(private, [{".gitattributes": b"*.safetensors filter=lfs\n"}])
        return self._json({"url": f"{self.server.url}/{name}", "name": name})

    def whoami(self, body: bytes) -> None:
        if self._user() is None:
            raise _Refused(401, "", "Invalid username or password.")
        self._json({"type": "user", "name": self._user()})

    def validate(self, body: bytes) -> None:
        _, front, _ = json.loads(body)["content"].split("---\n", 2)
        try:
            sound = isinstance(yaml.safe_load(front), dict)
        except yaml.YAMLError:
            sound = False
        errors = [] if sound else [{"message": "no YAML"}]
        self._json({"errors": errors, "warnings": []}, 200 if sound else 400)

    def info(self, body: bytes, name: str, revision: str | None) -> None:
        repo = self._repo(name)
        commit = self._commit(repo, revision or "main")
        files = [
            {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            for path, data in repo.commits[commit].items()
        ]
        about = {"_id": "0", "id": name, "modelId": name, "private": repo.private, "tags": [], "downloads": 0}
        self._json(about | {"sha": sha(commit), "likes": 0, "siblings": files})

    def preupload(self, body: bytes, name: str) -> None:
        self._writable(name)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def batch(self, body: bytes, name: str) -> None:
        self._writable(name)
        objects = [
            item | {"actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            for item in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(400, "", "wrong checksum")
        self.server.blobs[oid] = body
        self._send(b"")

    def commit(self, body: bytes, name: str) -> None:
        self._writable(name)
        repo = self._repo(name)
        files = dict(repo.commits[-1])
        for line in body.splitlines():
            kind, value = json.loads(line)["key"], json.loads(line)["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        repo.commits.append(files)
        oid = sha(len(repo.commits) - 1)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        commit = self._commit(repo, revision)
        data = repo.commits[commit].get(path)
        if data is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        self._send(data, 200, {"X-Repo-Commit": sha(commit), "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    r"POST /api/repos/create": _Handler.create,
    r"POST /api/validate-yaml": _Handler.validate,
    r"GET /api/whoami-v2": _Handler.whoami,
    rf"GET /api/(?:models|datasets)/{NAME}(?:/revision/(.+))?": _Handler.info,
    rf"POST /api/models/{NAME}/preupload/main": _Handler.preupload,
    rf"POST /{NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    r"PUT /lfs/([0-9a-f]{64})": _Handler.upload,
    rf"POST /api/models/{NAME}/commit/main": _Handler.commit,
    rf"(?:GET|HEAD) /(?:datasets/)?{NAME}/resolve/([^/]+)/(.+)": _Handler.resolve,
}
