"""Folders that may lie in a bucket (gs://): every such address a user gives goes through here.

etils' epath reads and writes them, with gcsfs underneath; Orbax and array_record know gs:// themselves, and no other
kind of store: S3's and Azure's are refused before anything is half done.
Object stores can neither append to a file nor rename a folder. So a run's logs, pictures and traces are written into a
local folder that is uploaded as it changes (`Mirror`), and checkpoints are complete when a marker was written last.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from etils import epath

from animate_jax.errors import UserError

KIND, PACKAGE = "gs", "gcsfs"  # of address, and what opens it
LOCK = "run.lock"  # names the process that writes into a bucket's folder
Address = str | os.PathLike
_programs: str | None = None  # the folder that `keep_compiled_programs` has chosen or found
if TYPE_CHECKING:
    Folder = pathlib.Path
else:  # local or remote; epath's has pathlib's methods, but is not derived from pathlib.Path
    Folder = pathlib.Path | epath.Path


def is_remote(address: Address) -> bool:
    return "://" in os.fspath(address)


def to_path(address: Address) -> Folder:
    """A folder or file, local (made absolute, `~` expanded) or in a bucket.

    Raises:
        UserError: another kind of address than gs://, or the package that opens it is not installed.
    """
    if not is_remote(address):
        return pathlib.Path(address).expanduser().absolute()
    if os.fspath(address).partition("://")[0] != KIND:
        raise UserError(
            f"{address}: unknown kind of address (Orbax and array_record know of no stores but gs://): give a "
            "local path, which may be a mounted one, or a gs:// address"
        )
    with talking_to(address):
        path: Folder = epath.Path(address)  # pyright: ignore[reportAssignmentType]
        path.exists()  # meets a missing package or key now
    return path


@contextlib.contextmanager
def talking_to(address: Address) -> Iterator[None]:
    """Turns what a store's client raises into one line.

    Raises:
        UserError: the block raised any `Exception`.
    """
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{address}: needs the package {PACKAGE}: pip install {PACKAGE}") from error
    except Exception as error:  # of gcsfs, aiohttp, google.auth, botocore, ...
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        advice = "check the address and the key (for gs:// `gcloud auth application-default login`)"
        raise UserError(f"{address}: the store does not answer as it should ({reason}): {advice}") from error


def home() -> pathlib.Path:
    """Where this program keeps what it can make again: ANIMATE_JAX_HOME, else ~/.cache/animate_jax."""
    return pathlib.Path(os.environ.get("ANIMATE_JAX_HOME") or "~/.cache/animate_jax").expanduser().absolute()


def keep_compiled_programs() -> None:
    """Compiled programs are kept for the next process, in the folder or bucket that JAX_COMPILATION_CACHE_DIR names."""
    global _programs
    import jax  # other users of addresses need not load it

    if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]  # made at run time
        jax.config.update("jax_compilation_cache_dir", str(home() / "jax"))
        # Also those that compile in less than a second: a video needs a dozen of them.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _programs = jax.config.values["jax_compilation_cache_dir"]


def compiled_programs() -> pathlib.Path | None:
    """Where `keep_compiled_programs` keeps them; None if it was not called, or if that is a bucket."""
    import jax

    folder = jax.config.values["jax_compilation_cache_dir"]
    return pathlib.Path(folder) if folder and folder == _programs and not is_remote(folder) else None


def size_text(count: int) -> str:
    """Bytes for people: "1.7 GB", "30 MB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def check_writable(address: Address) -> None:
    """Writes and removes a small object before hours of work depend on the place.

    Raises:
        UserError: it cannot be written.
    """
    path = to_path(address)
    if is_remote(address):
        with talking_to(address):
            probe = path / f".animate_jax_probe_{os.getpid()}"
            probe.write_text("may this run write here?")
            probe.unlink()


@contextlib.contextmanager
def uploaded_folder(address: Address, last: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """A local folder, yet to be made, that is uploaded when the block succeeds.

    Args:
        last: names of the files in it that tell that it is complete; they are uploaded after all others.

    Raises:
        UserError: something is there already, or the store does not take it.
    """
    remote = to_path(address)
    with talking_to(address):
        if remote.exists():
            raise UserError(f"{address}: is there already: choose another name, or delete it first")
    with tempfile.TemporaryDirectory(prefix="animate_jax_upload_") as temporary:
        local = pathlib.Path(temporary) / "new"
        yield local
        files = sorted(file for file in local.rglob("*") if file.is_file())
        with talking_to(address):
            for file in sorted(files, key=lambda file: file.relative_to(local).as_posix() in last):
                _upload(file, remote / file.relative_to(local).as_posix())


def _upload(file: pathlib.Path, remote: Folder) -> None:
    epath.Path(file).copy(os.fspath(remote), overwrite=True)


class Overtaken(UserError):
    """Another run has taken over this one's folder."""


class Mirror:
    """A local folder whose files are uploaded to a bucket as they change; for a local address, that folder itself.

    A failed upload is made up for by the next one: what a store refuses for a minute must not end a training. Only the
    last upload, at the end of the `with` block, raises.

    Of two that write one bucket's folder, the later one goes on: the earlier one, which finds the later one's name in
    `run.lock`, stops. So a run that was killed, and left its own there, is in nobody's way.

    Attributes:
        path: the local folder.

    Args:
        fetch: files that are continued rather than written anew, downloaded first if they are there.
        every: least seconds between uploads in the background.

    Raises:
        UserError: the bucket cannot be read or, at the end, written.
    """

    def __init__(self, address: Address, fetch: Sequence[str] = (), every: float = 60.0):
        self._remote: Folder | None = None
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}
        self._running: Future[None] | None = None
        self._every, self._last = every, time.monotonic()
        if not is_remote(address):
            self.path = pathlib.Path(address)
            self.path.mkdir(parents=True, exist_ok=True)
            return
        self._remote = to_path(address)
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="animate_jax_run_"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._name = f"process {os.getpid()} on {socket.gethostname()}, begun {time.strftime('%F %T')}, {uuid.uuid4()}"
        with talking_to(address):
            (self._remote / LOCK).write_text(self._name)
            for name in fetch:
                if (self._remote / name).exists():
                    (self.path / name).write_bytes((self._remote / name).read_bytes())

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if self._remote is None:
            return
        try:
            self._thread.shutdown()
            self._upload_changes(self._remote)
        except UserError as error:
            if kind is None:
                raise UserError(f"{error}; the files are in {self.path}") from error
        else:
            shutil.rmtree(self.path, ignore_errors=True)

    def sync(self) -> UserError | None:
        """Uploads what has changed, in the background, if the last time is long enough ago; tells how that went.

        Raises:
            Overtaken: somebody else has begun to write there.
        """
        soon = time.monotonic() - self._last < self._every
        if self._remote is None or soon or (self._running is not None and not self._running.done()):
            return None
        failure = self._running.exception() if self._running is not None else None
        if failure is not None and (isinstance(failure, Overtaken) or not isinstance(failure, UserError)):
            raise failure
        self._last, self._running = time.monotonic(), self._thread.submit(self._upload_changes, self._remote)
        return failure

    def _upload_changes(self, remote: Folder) -> None:
        with talking_to(remote):
            if (holder := (remote / LOCK).read_text()) != self._name:
                raise Overtaken(f"{remote}: another run writes there now ({holder}): this one stops")
            for file in sorted(self.path.rglob("*")):
                if not file.is_file() or file.name.startswith("."):  # hidden: being written
                    continue
                state = file.stat().st_size, file.stat().st_mtime_ns
                if self._uploaded.get(file) != state:
                    _upload(file, remote / file.relative_to(self.path).as_posix())
                    self._uploaded[file] = state
