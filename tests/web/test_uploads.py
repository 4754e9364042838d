"""What visitors leave on the disk, and which uploads are refused."""

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from animate_jax import limits
from animate_jax.web.uploads import FOLDER_PREFIX, MULTIPART_BYTES, FileStore, UploadGuard, temporary_folder

LARGEST = 1_000_000  # bytes


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path, LARGEST, keep=100.0)


def put(folder, name, size=LARGEST, age=0.0):
    path = folder / name / "file"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def there(folder):
    return sorted(path.parent.name for path in folder.rglob("file"))


def test_old_files_go(store, tmp_path):
    put(tmp_path, "example", age=500)
    store.keep_existing()
    put(tmp_path, "old", age=101)
    put(tmp_path, "new", age=90)
    store.evict()
    assert there(tmp_path) == ["example", "new"] and not (tmp_path / "old").exists()


def test_the_oldest_make_room(store, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_FILES", 3)
    put(tmp_path, "example", 10 * LARGEST)
    store.keep_existing()
    for index in range(6):
        put(tmp_path, str(index), age=50 - index)
    store.evict()
    assert there(tmp_path) == ["3", "4", "5", "example"]


def test_many_small_files(store, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_NAMES", 4)
    for index in range(9):
        put(tmp_path, str(index), 1, age=50 - index)
    store.evict()
    assert there(tmp_path) == ["5", "6", "7", "8"]


def test_an_address_replaces_its_own(store, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_VISITOR_FILES", 2)
    others = put(tmp_path, "others", age=90)
    store.add("b", [others])
    for index in range(4):
        store.add("a", [put(tmp_path, str(index))])
    store.add("a", [tmp_path / "2" / "file"])  # again, so the newest
    store.add("a", [put(tmp_path, "4")])
    assert there(tmp_path) == ["2", "4", "others"]
    assert set(store.by_address) == {"a", "b"}
    store.remove(others)
    store.evict()
    assert set(store.by_address) == {"a"}


def visit(guard, path="/gradio_api/upload", length=10, address="1.2.3.4", method="POST", **headers):
    """The status that is answered; of uploads, the file that the application wrote."""
    sent = []
    headers = {"host": "page.org:7860", "content-length": str(length)} | headers
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items() if value]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": (address, 1)}

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, None, send))
    return sent[0]["status"]


def application(folder):
    """Answers an upload as Gradio does, with the paths."""
    count = 0

    async def app(scope, receive, send):
        nonlocal count
        count += 1
        body = json.dumps([str(put(folder, str(count)))]).encode() if scope["path"].endswith("upload") else b"{}"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (body[:7], body[7:]):
            await send({"type": "http.response.body", "body": part, "more_body": part is not body[7:]})

    return app


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),  # a program
        ({"origin": "http://page.org:7860"}, 200),
        ({"origin": "https://page.org"}, 200),  # behind a proxy
        # behind one that hides the name
        ({"origin": "https://page.org", "sec_fetch_site": "same-origin", "host": "127.0.0.1"}, 200),
        ({"origin": "https://evil.org"}, 403),
        ({"origin": "https://page.org.evil.org"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://evil.org", "sec_fetch_site": "cross-site", "host": "evil.org"}, 403),
        ({"length": LARGEST + MULTIPART_BYTES}, 200),
        ({"length": LARGEST + MULTIPART_BYTES + 1}, 413),
        ({"content_length": "", "transfer_encoding": "chunked"}, 411),
        ({"content_length": "many"}, 411),
        ({"path": "/gradio_api/queue/join", "length": limits.PAGE_CALL_BYTES}, 200),
        ({"path": "/gradio_api/queue/join", "length": limits.PAGE_CALL_BYTES + 1}, 413),
        ({"path": "/gradio_api/queue/join", "origin": "https://evil.org"}, 403),
        ({"path": "/gradio_api/upload/", "length": limits.PAGE_CALL_BYTES + 1}, 413),
        ({"method": "OPTIONS", "origin": "https://evil.org"}, 403),  # may a foreign page ask with any headers?
        ({"method": "GET", "path": "/", "origin": "https://evil.org"}, 200),  # a link
    ],
)
def test_the_guard(store, tmp_path, headers, status):
    assert visit(UploadGuard(application(tmp_path), store), **headers) == status


def test_uploads_are_counted(store, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_VISITOR_FILES", 2)
    guard = UploadGuard(application(tmp_path), store)
    for _ in range(5):
        assert visit(guard) == 200
    assert there(tmp_path) == ["4", "5"] and not guard.in_flight


def test_uploads_under_way_are_counted(store, tmp_path, monkeypatch):
    """Files that are still coming lie on the disk already."""
    monkeypatch.setattr(limits, "PAGE_VISITOR_FILES", 2)
    monkeypatch.setattr(limits, "PAGE_FILES", 3)
    guard = UploadGuard(application(tmp_path), store)
    guard.in_flight = {"1.2.3.4": 1_500_000}
    assert visit(guard, length=500_001) == 429 and visit(guard, length=500_000) == 200
    guard.in_flight = {"1.2.3.4": 1_500_000, "5.6.7.8": 1_100_000}
    assert visit(guard, length=500_000) == 429 and visit(guard, length=400_000, address="9.9.9.9") == 200


def test_a_failed_upload_is_forgotten(store):
    async def app(scope, receive, send):
        raise RuntimeError("the visitor has gone")

    guard = UploadGuard(app, store)
    with pytest.raises(RuntimeError):
        visit(guard)
    assert not guard.in_flight


HOLD = """
import sys, time
from animate_jax.web.uploads import temporary_folder
with temporary_folder() as folder:
    (folder / "secret.png").write_text("me")
    print(folder, flush=True)
    time.sleep(100)
"""


def test_folders_of_killed_servers_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command, options = [sys.executable, "-c", HOLD], {"stdout": subprocess.PIPE, "text": True}
    options["env"] = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, **options) as dead, subprocess.Popen(command, **options) as alive:
        try:
            theirs = [process.stdout.readline().strip() for process in (dead, alive)]
            dead.kill()
            dead.wait()
            with temporary_folder():  # both may be servers that have not locked their folder yet
                assert all(map(os.path.exists, theirs))
            for folder in theirs:
                os.utime(folder, (0, 0))
            (tmp_path / f"{FOLDER_PREFIX}link").symlink_to(tmp_path / "precious")
            (tmp_path / "precious").mkdir()
            with temporary_folder() as own:
                assert [os.path.exists(folder) for folder in (*theirs, own)] == [False, True, True]
            assert not own.exists() and (tmp_path / "precious").exists()
        finally:
            alive.kill()
