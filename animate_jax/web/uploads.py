"""The files of the web page's visitors: limits of size and age, and checks of where uploads come from.

All files are in one temporary folder, which is removed when the server ends or, if it was killed, when the next one
starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http
import json
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from animate_jax import limits

FOLDER_PREFIX = "animate_jax_web_"
START_TIMEOUT = 60  # seconds for which the folder of a starting server may be unlocked
MULTIPART_BYTES = 100_000  # overhead of an upload beyond the file, at most


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Creates an empty folder and removes it at the end; first removes the folders of servers that were killed."""
    for old in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError):
            _remove_dead(old)
    with (
        tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True) as name,
        _open(Path(name)) as handle,
    ):
        fcntl.flock(handle, fcntl.LOCK_EX)  # released when the process ends, in any way
        yield Path(name).resolve()


def _remove_dead(folder: Path) -> None:
    """Raises OSError if its server is running, or it is not such a folder."""
    with _open(folder) as handle:
        status = os.fstat(handle)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > START_TIMEOUT:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


class FileStore:
    """The files in a folder, with limits of total size and age; the oldest are removed first.

    Args:
        max_bytes: of one file; the limits per address and of all files are multiples.
        keep: seconds after the creation or last use of a file.
    """

    def __init__(self, folder: Path, max_bytes: int, keep: float):
        self.folder, self.max_bytes, self.keep = folder, max_bytes, keep
        self.permanent: set[Path] = set()
        self.lock = threading.Lock()
        self.by_address: dict[str, list[Path]] = {}

    def keep_existing(self) -> None:
        """Keeps the present files, which are the page's own, for ever."""
        self.permanent = set(self._files())

    def evict(self) -> None:
        """Removes files that are too old, and the oldest beyond the total size."""
        with self.lock:
            files = sorted(((_used(file), file) for file in set(self._files()) - self.permanent), reverse=True)
            total = 0
            for number, (used, file) in enumerate(files):
                total += _size(file)
                too_much = total > limits.PAGE_FILES * self.max_bytes or number >= limits.PAGE_NAMES
                if too_much or time.time() - used > self.keep:
                    self.remove(file)
            kept = {address: [file for file in files if file.exists()] for address, files in self.by_address.items()}
            self.by_address = {address: files for address, files in kept.items() if files}

    def add(self, address: str, files: Iterable[Path]) -> None:
        """Records the uploads of an address, and removes its oldest beyond the limit."""
        with self.lock:
            sent = self.by_address.setdefault(address, [])
            for file in files:
                if file in sent:
                    sent.remove(file)
                sent.append(file)
            while sum(map(_size, sent)) > limits.PAGE_VISITOR_FILES * self.max_bytes:
                self.remove(sent.pop(0))
        self.evict()

    def remove(self, file: Path) -> None:
        """Removes a file, and its folder if that is then empty."""
        if file in self.permanent:
            return
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            if file.parent != self.folder:
                file.parent.rmdir()

    def _files(self) -> Iterator[Path]:
        return (file for file in self.folder.rglob("*") if stat.S_ISREG(_status(file).st_mode))


NO_FILE = os.stat_result((0,) * 10)


def _status(file: Path) -> os.stat_result:
    try:
        return file.lstat()
    except OSError:  # removed meanwhile
        return NO_FILE


def _size(file: Path) -> int:
    return _status(file).st_size


def _used(file: Path) -> float:
    return _status(file).st_mtime


class UploadGuard:
    """ASGI middleware: refuses cross-site requests, and requests that are too large before reading them; records
    uploads in the store."""

    def __init__(self, app, store: FileStore):
        self.app, self.store = app, store
        self.in_flight: dict[str, int] = {}  # address -> bytes being received

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        address = (scope["client"] or ("",))[0]
        is_upload = scope["path"].endswith("/upload")
        status, length = self.check(headers, address, is_upload)
        if status:
            return await _refuse(send, status)
        if is_upload:
            return await self._upload(scope, receive, send, address, length)
        return await self.app(scope, receive, send)

    def check(self, headers: dict[str, str], address: str, is_upload: bool) -> tuple[int, int]:
        """The HTTP status with which to refuse a request, or 0; and its length in bytes."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if site == "cross-site" or (site is None and origin is not None and urlsplit(origin).hostname != host):
            return 403, 0
        if not headers.get("content-length", "0").isdecimal() or "transfer-encoding" in headers:
            return 411, 0
        length = int(headers.get("content-length", "0"))
        if length > (self.store.max_bytes + MULTIPART_BYTES if is_upload else limits.PAGE_CALL_BYTES):
            return 413, 0
        of_address = self.in_flight.get(address, 0) + length
        of_all = sum(self.in_flight.values()) + length
        too_many = (
            of_address > limits.PAGE_VISITOR_FILES * self.store.max_bytes
            or of_all > limits.PAGE_FILES * self.store.max_bytes
        )
        return (429, 0) if is_upload and too_many else (0, length)

    async def _upload(self, scope, receive, send, address: str, length: int) -> None:
        """Counts the bytes while receiving them, and reads the files' paths from the application's response."""
        answer = bytearray()

        async def send_and_keep(message) -> None:
            answer.extend(message.get("body", b""))
            await send(message)

        self.in_flight[address] = self.in_flight.get(address, 0) + length
        try:
            await self.app(scope, receive, send_and_keep)
        finally:
            self.in_flight[address] -= length
            if not self.in_flight[address]:
                del self.in_flight[address]
        with contextlib.suppress(ValueError):  # error messages are not JSON
            paths = json.loads(answer)
            await asyncio.to_thread(self.store.add, address, map(Path, paths if isinstance(paths, list) else []))


async def _refuse(send, status: int) -> None:
    headers = [(b"connection", b"close"), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": http.HTTPStatus(status).phrase.encode()})
