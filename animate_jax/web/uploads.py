"""What visitors of the page leave on this machine's disk: how much, for how long, and from whose pages it comes.

Everything lies in one temporary folder that goes with the server: when it ends, or, if it was killed, when the next
one starts.
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

PREFIX = "animate_jax_web_"
YOUNG = 60  # seconds in which the folder of a server that is starting may not be locked yet
ENVELOPE = 100_000  # bytes of an upload around the file


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder, removed at the end; those of servers that were killed are removed now."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            _remove_dead(old)
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name, _open(Path(name)) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # gone with the process, however it ends
        yield Path(name).resolve()


def _remove_dead(folder: Path) -> None:
    """Raises OSError when its server lives, or it is none of ours."""
    with _open(folder) as handle:
        status = os.fstat(handle)
        if status.st_uid == os.getuid() and time.time() - status.st_mtime > YOUNG:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


@contextlib.contextmanager
def _open(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


class Shelf:
    """The files in a folder: the oldest make room for new ones, and none stays for ever.

    Args:
        largest: bytes of one file; the limits of an address and of all are multiples.
        keep: seconds since a file was made or used.
    """

    def __init__(self, folder: Path, largest: int, keep: float):
        self.folder, self.largest, self.keep = folder, largest, keep
        self.own: set[Path] = set()
        self.lock = threading.Lock()
        self.by_address: dict[str, list[Path]] = {}

    def own_what_is_there(self) -> None:
        """These files are the page's and stay."""
        self.own = set(self._files())

    def tidy(self) -> None:
        """Removes what is too old, and the oldest of what is too much."""
        with self.lock:
            found = sorted(((_used(file), file) for file in set(self._files()) - self.own), reverse=True)
            total = 0
            for number, (used, file) in enumerate(found):
                total += _size(file)
                if (total > limits.PAGE_FILES * self.largest or number >= limits.PAGE_NAMES
                        or time.time() - used > self.keep):  # fmt: skip
                    self.remove(file)
            kept = {address: [file for file in files if file.exists()] for address, files in self.by_address.items()}
            self.by_address = {address: files for address, files in kept.items() if files}

    def add(self, address: str, files: Iterable[Path]) -> None:
        """Notes what an address has sent, and removes the oldest of it if that is too much."""
        with self.lock:
            theirs = self.by_address.setdefault(address, [])
            for file in files:
                if file in theirs:
                    theirs.remove(file)
                theirs.append(file)
            while sum(map(_size, theirs)) > limits.PAGE_VISITOR_FILES * self.largest:
                self.remove(theirs.pop(0))
        self.tidy()

    def remove(self, file: Path) -> None:
        """And its folder, if it was alone there."""
        if file in self.own:
            return
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
            if file.parent != self.folder:
                file.parent.rmdir()

    def _files(self) -> Iterator[Path]:
        return (file for file in self.folder.rglob("*") if stat.S_ISREG(_status(file).st_mode))


NOTHING = os.stat_result((0,) * 10)


def _status(file: Path) -> os.stat_result:
    try:
        return file.lstat()
    except OSError:  # it has just been removed
        return NOTHING


def _size(file: Path) -> int:
    return _status(file).st_size


def _used(file: Path) -> float:
    return _status(file).st_mtime


class Door:
    """ASGI middleware: refuses what other sites' pages send through a visitor's browser, and requests that are too
    large, before they are read; tells the shelf what was uploaded."""

    def __init__(self, app, shelf: Shelf):
        self.app, self.shelf = app, shelf
        self.coming: dict[str, int] = {}  # bytes under way, by address

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        address = (scope["client"] or ("",))[0]
        uploading = scope["path"].endswith("/upload")
        status, length = self.answer(headers, address, uploading)
        if status:
            headers = [(b"connection", b"close"), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            return await send({"type": "http.response.body", "body": http.HTTPStatus(status).phrase.encode()})
        if not uploading:
            return await self.app(scope, receive, send)

        answered = bytearray()

        async def listen(message) -> None:
            answered.extend(message.get("body", b""))
            await send(message)

        self.coming[address] = self.coming.get(address, 0) + length
        try:
            await self.app(scope, receive, listen)
        finally:
            self.coming[address] -= length
            if not self.coming[address]:
                del self.coming[address]
        with contextlib.suppress(ValueError):  # refused in plain words
            told = json.loads(answered)
            await asyncio.to_thread(self.shelf.add, address, map(Path, told if isinstance(told, list) else []))

    def answer(self, headers: dict[str, str], address: str, uploading: bool) -> tuple[int, int]:
        """The status that refuses a request, or 0, and its length in bytes."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if site == "cross-site" or (site is None and origin is not None and urlsplit(origin).hostname != host):
            return 403, 0
        if not headers.get("content-length", "0").isdecimal() or "transfer-encoding" in headers:
            return 411, 0
        length = int(headers.get("content-length", "0"))
        if length > (self.shelf.largest + ENVELOPE if uploading else limits.PAGE_CALL_BYTES):
            return 413, 0
        mine, all = self.coming.get(address, 0), sum(self.coming.values())
        if uploading and (mine + length > limits.PAGE_VISITOR_FILES * self.shelf.largest
                          or all + length > limits.PAGE_FILES * self.shelf.largest):  # fmt: skip
            return 429, 0
        return 0, length
