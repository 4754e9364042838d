"""A server that answers as the Hugging Face hub does where huggingface_hub asks: what a file is (HEAD on `resolve`), a
redirect to another host, which sends it in whole or in part, lists of files, and the refusals with their codes."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, hf_api

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """
    Attributes:
        repositories: "owner/name" -> the folder that is it, at every commit.
        requests: (method, path, headers) in the order in which they came; HEAD of a file, GET, and GET of its bytes.
        refused: "owner/name" -> (status, X-Error-Code).
        cut_after: bytes after which the next answers are cut, each once.
        damaged: sends as many other bytes.
        piece, delay: bytes sent at once, and seconds before each.
    """

    def __init__(self, address: str, other_host: str):
        self.address, self.other_host = address, other_host
        self.repositories: dict[str, Path] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.refused: dict[str, tuple[int, str]] = {}
        self.cut_after: list[int] = []
        self.damaged = False
        self.piece, self.delay = 1 << 20, 0.0

    def bytes_sent(self) -> list[tuple[str, str | None]]:
        """(file's hash, Range) of every request for bytes."""
        return [
            (path.removeprefix("/cdn/"), headers.get("range"))
            for _, path, headers in self.requests
            if path.startswith("/cdn/")
        ]

    def file(self, repository: str, path: str) -> Path | None:
        file = self.repositories[repository] / path if repository in self.repositories else None
        return file if file and file.is_file() else None

    def by_hash(self, digest: str) -> Path:
        files = [file for folder in self.repositories.values() for file in folder.rglob("*") if file.is_file()]
        return next(file for file in files if sha256(file) == digest)


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urllib.parse.unquote(self.path)
        self.hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if match := re.fullmatch(r"/cdn/(\w+)", path):
            self._send(self.hub.by_hash(match[1]))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", path):
            self._list(match[1], match[2] or "")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[3])
        else:
            self._refuse(404, "")

    def _resolve(self, repository: str, path: str) -> None:
        """Large files lie on another host, as on the hub; git's own small ones on this one."""
        if self._refused(repository):
            return
        file = self.hub.file(repository, path)
        if file is None:
            return self._refuse(404, "EntryNotFound")
        content = file.read_bytes()
        self.send_response(302)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{sha256(file)}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Location", f"{self.hub.other_host}/cdn/{sha256(file)}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, repository: str, rest: str) -> None:
        if self._refused(repository):
            return
        root = self.hub.repositories[repository]
        files = sorted(file for file in root.rglob("*") if file.is_file())
        entries = [
            {
                "type": "file",
                "path": file.relative_to(root).as_posix(),
                "size": file.stat().st_size,
                "oid": "0" * 40,
                "lfs": {"oid": sha256(file), "size": file.stat().st_size, "pointerSize": 134},
            }
            for file in files
        ]
        siblings = [{"rfilename": entry["path"]} for entry in entries]
        answer = entries if rest.startswith("/tree") else {"id": repository, "sha": COMMIT, "siblings": siblings}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refused(self, repository: str) -> bool:
        status, code = self.hub.refused.get(repository, (0, ""))
        if not status and repository not in self.hub.repositories:
            status, code = 401, "RepoNotFound"  # so the hub hides which ones are private
        if status:
            self._refuse(status, code)
        return bool(status)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, file: Path) -> None:
        content = file.read_bytes()
        first = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first = int(match[1])
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.hub.damaged:
            content = bytes(len(content))
        content = content[first:]
        cut = self.hub.cut_after.pop(0) if self.hub.cut_after else None
        with contextlib.suppress(OSError):  # the other side was killed
            for start in range(0, len(content) if cut is None else cut, self.hub.piece):
                if self.hub.delay:
                    threading.Event().wait(self.hub.delay)
                self.wfile.write(content[start : min(start + self.hub.piece, len(content) if cut is None else cut)])
                self.wfile.flush()
        if cut is not None:
            self.close_connection = True


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub on this machine, that no process asks yet."""
    handler = type("Handler", (_Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port = server.server_address[1]
    handler.hub = hub = FakeHub(f"http://127.0.0.1:{port}", f"http://localhost:{port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask_here(monkeypatch, hub: FakeHub, home: Path) -> None:
    """Makes this process's huggingface_hub ask `hub`, as HF_ENDPOINT and HF_HOME do for a new process."""
    for name, value in (
        ("ENDPOINT", hub.address),
        ("HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_CACHE", str(home / "hub")),
        ("HF_TOKEN_PATH", str(home / "token")),
        ("HF_HUB_OFFLINE", False),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
