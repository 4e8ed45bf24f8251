"""A stand-in for the Hugging Face hub on loopback: the requests by which its client creates, fills and reads models."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_secret"


class Hub:
    """Repositories in memory. `faults` maps the start of a request ("POST /api/repos") to a status that it gets."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str | None] = {}
        self.objects: dict[str, bytes] = {}
        """What was uploaded by its sha256."""
        self.commits: list[str] = []
        """Their messages."""
        self.faults: dict[str, int] = {}
        self.truncated = False
        """Whether files end before their length."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return lambda: hub.answer(self)
                raise AttributeError(name)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, cache: Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a client needs to use it, with a cache of its own."""
        given = {"HF_TOKEN": token} if token else {}
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **given}

    def sha(self, repository: str) -> str:
        """The commit of a repository's files."""
        files = sorted(self.repositories[repository].items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request of the client."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        line = f"{request.command} {path}"
        fault = next((status for start, status in self.faults.items() if line.startswith(start)), None)
        writes = request.command in ("POST", "PUT") and not path.startswith("/objects")
        if fault is None and writes and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            fault = 401
        if fault is not None:
            return reply(request, fault, {"error": f"status {fault}"})
        if path == "/api/repos/create":
            return self.create(request, json.loads(body))
        if match := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/(preupload|commit)/main", path):
            preupload = match[2] == "preupload"
            return self.preupload(request, json.loads(body)) if preupload else self.commit(request, match[1], body)
        if path == "/api/validate-yaml":
            return reply(request, 200, {"warnings": [], "errors": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(request, json.loads(body))
        if path.startswith("/objects/"):
            self.objects[path.rsplit("/", 1)[1]] = body
            return reply(request, 200, {})
        return self.read(request, path)

    def create(self, request: BaseHTTPRequestHandler, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if name in self.repositories else 200
        self.repositories.setdefault(name, {})
        self.visibility.setdefault(name, wanted.get("visibility"))
        reply(request, status, {"url": f"{self.endpoint}/{name}"})

    def preupload(self, request: BaseHTTPRequestHandler, wanted: dict[str, Any]) -> None:
        modes = {True: "lfs", False: "regular"}
        names = [file["path"] for file in wanted["files"]]
        files = [
            {"path": name, "uploadMode": modes[name.endswith((".safetensors", ".png"))], "shouldIgnore": False}
            for name in names
        ]
        reply(request, 200, {"files": files})

    def batch(self, request: BaseHTTPRequestHandler, wanted: dict[str, Any]) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.endpoint}/objects/{each['oid']}"}}}
            for each in wanted["objects"]
        ]
        reply(request, 200, {"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def commit(self, request: BaseHTTPRequestHandler, repository: str, body: bytes) -> None:
        files = dict(self.repositories[repository])
        for line in body.decode().splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                self.commits.append(value["summary"])
            elif row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
                assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        self.repositories[repository] = files
        sha = self.sha(repository)
        reply(request, 200, {"commitUrl": f"{self.endpoint}/{repository}/commit/{sha}", "commitOid": sha})

    def read(self, request: BaseHTTPRequestHandler, path: str) -> None:
        """Information on a repository, the list of its files, or one of them."""
        match = re.fullmatch(r"(?:/api/models)?/(\w+/[\w.-]+)(?:/(revision|tree|resolve)/([\w.-]+)(?:/(.+))?)?", path)
        files = self.repositories.get(match[1]) if match else None
        if match is None or files is None:
            return reply(request, 404, {"error": "Repository not found"}, code="RepoNotFound")
        repository, kind, revision, name = match.groups()
        sha = self.sha(repository)
        if revision not in (None, "main", sha):
            return reply(request, 404, {"error": "Invalid rev id"}, code="RevisionNotFound")
        if kind in (None, "revision"):
            siblings = [{"rfilename": each} for each in files]
            return reply(request, 200, {"id": repository, "sha": sha, "siblings": siblings, "tags": []})
        if kind == "tree":
            rows = [
                {"type": "file", "path": each, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for each, data in files.items()
            ]
            return reply(request, 200, rows)
        if name not in files:
            return reply(request, 404, {"error": "Entry not found"}, code="EntryNotFound")
        return self.send_file(request, files[name], sha)

    def send_file(self, request: BaseHTTPRequestHandler, data: bytes, sha: str) -> None:
        request.send_response(200)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.send_header("X-Repo-Commit", sha)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data[: len(data) // 2] if self.truncated else data)


def reply(
    request: BaseHTTPRequestHandler,
    status: int,
    value: Any,
    kind: str = "application/json",
    code: str | None = None,
) -> None:
    """Answer with JSON; `code` is the hub's name of an error."""
    data = json.dumps(value).encode()
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(data)))
    if code:
        request.send_header("X-Error-Code", code)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(data)
