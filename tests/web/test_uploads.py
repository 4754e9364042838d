"""What visitors leave on the disk, and what is refused at the door."""

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from animate_jax import limits
from animate_jax.web.uploads import ENVELOPE, PREFIX, Door, Shelf, temporary_folder

LARGEST = 1_000_000  # bytes


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path, LARGEST, keep=100.0)


def put(folder, name, size=LARGEST, age=0.0):
    path = folder / name / "file"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def there(folder):
    return sorted(path.parent.name for path in folder.rglob("file"))


def test_old_files_go(shelf, tmp_path):
    put(tmp_path, "example", age=500)
    shelf.own_what_is_there()
    put(tmp_path, "old", age=101)
    put(tmp_path, "new", age=90)
    shelf.tidy()
    assert there(tmp_path) == ["example", "new"] and not (tmp_path / "old").exists()


def test_the_oldest_make_room(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_FILES", 3)
    put(tmp_path, "example", 10 * LARGEST)
    shelf.own_what_is_there()
    for index in range(6):
        put(tmp_path, str(index), age=50 - index)
    shelf.tidy()
    assert there(tmp_path) == ["3", "4", "5", "example"]


def test_many_small_files(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_NAMES", 4)
    for index in range(9):
        put(tmp_path, str(index), 1, age=50 - index)
    shelf.tidy()
    assert there(tmp_path) == ["5", "6", "7", "8"]


def test_an_address_replaces_its_own(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_VISITOR_FILES", 2)
    others = put(tmp_path, "others", age=90)
    shelf.add("b", [others])
    for index in range(4):
        shelf.add("a", [put(tmp_path, str(index))])
    shelf.add("a", [tmp_path / "2" / "file"])  # again, so the newest
    shelf.add("a", [put(tmp_path, "4")])
    assert there(tmp_path) == ["2", "4", "others"]
    assert set(shelf.by_address) == {"a", "b"}
    shelf.remove(others)
    shelf.tidy()
    assert set(shelf.by_address) == {"a"}


def visit(door, path="/gradio_api/upload", length=10, address="1.2.3.4", method="POST", **headers):
    """The status that is answered; of uploads, the file that the application wrote."""
    sent = []
    headers = {"host": "page.org:7860", "content-length": str(length)} | headers
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items() if value]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "client": (address, 1)}

    async def send(message):
        sent.append(message)

    asyncio.run(door(scope, None, send))
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
        ({"length": LARGEST + ENVELOPE}, 200),
        ({"length": LARGEST + ENVELOPE + 1}, 413),
        ({"content_length": "", "transfer_encoding": "chunked"}, 411),
        ({"content_length": "many"}, 411),
        ({"path": "/gradio_api/queue/join", "length": limits.PAGE_CALL_BYTES}, 200),
        ({"path": "/gradio_api/queue/join", "length": limits.PAGE_CALL_BYTES + 1}, 413),
        ({"path": "/gradio_api/queue/join", "origin": "https://evil.org"}, 403),
        ({"path": "/gradio_api/upload/", "length": limits.PAGE_CALL_BYTES + 1}, 413),
        ({"method": "OPTIONS", "origin": "https://evil.org"}, 403),  # may a foreign page ask with any headers?
        ({"method": "GET", "path": "/", "origin": "https://evil.org"}, 200),  # a link
    ],
)  # fmt: skip
def test_the_door(shelf, tmp_path, headers, status):
    assert visit(Door(application(tmp_path), shelf), **headers) == status


def test_uploads_are_counted(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_VISITOR_FILES", 2)
    door = Door(application(tmp_path), shelf)
    for _ in range(5):
        assert visit(door) == 200
    assert there(tmp_path) == ["4", "5"] and not door.coming


def test_uploads_under_way_are_counted(shelf, tmp_path, monkeypatch):
    """Files that are still coming lie on the disk already."""
    monkeypatch.setattr(limits, "PAGE_VISITOR_FILES", 2)
    monkeypatch.setattr(limits, "PAGE_FILES", 3)
    door = Door(application(tmp_path), shelf)
    door.coming = {"1.2.3.4": 1_500_000}
    assert visit(door, length=500_001) == 429 and visit(door, length=500_000) == 200
    door.coming = {"1.2.3.4": 1_500_000, "5.6.7.8": 1_100_000}
    assert visit(door, length=500_000) == 429 and visit(door, length=400_000, address="9.9.9.9") == 200


def test_a_failed_upload_is_forgotten(shelf):
    async def app(scope, receive, send):
        raise RuntimeError("the visitor has gone")

    door = Door(app, shelf)
    with pytest.raises(RuntimeError):
        visit(door)
    assert not door.coming


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
            (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "precious")
            (tmp_path / "precious").mkdir()
            with temporary_folder() as own:
                assert [os.path.exists(folder) for folder in (*theirs, own)] == [False, True, True]
            assert not own.exists() and (tmp_path / "precious").exists()
        finally:
            alive.kill()
