"""Files and folders that appear complete or not at all, and never take the place of what is not ours.

Nothing else renames or removes what a user may own. A folder is written inside a working folder beside it
(`.NAME.partial`); its marker comes last and says the program, the kind of folder, and the names of all that was written
into it. Only a folder whose marker says that it is ours, and that holds nothing else, gives way to a newer one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import animate_jax
from animate_jax.errors import UserError

PROGRAM = "animate_jax"
MARKER = "animate_jax.json"  # of a complete folder, written last; and of a working folder, written first
DESKTOP = {".DS_Store", "Thumbs.db"}  # file managers put these into every folder that somebody looks at
FULL = re.compile(r"No space left on device|Disk quota exceeded|File too large", re.IGNORECASE)

Foreign = Callable[[Path], list[str] | None]  # of a folder: what is not ours in it; None if nothing proves it ours


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """The name of an empty file beside `path`, which takes its place when the block succeeds and disappears when it
    fails. Folders are made; the target of a link is replaced, not the link.

    Raises:
        UserError: the place cannot be written, or something else than a file is there.
    """
    check_file(path)
    given, path = path, Path(os.path.realpath(path))
    suffix = Path(given).suffix  # writers go by it
    with one_line(given):
        name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial(\.\w+)?")
        for left in path.parent.glob(".*.partial*"):
            if name.fullmatch(left.name):
                _remove_unlocked(left)  # of a run that was killed
        partial = _partial(path, suffix)
        with partial.open("xb") as file:
            _lock(file)
            try:
                yield partial
                os.fsync(file.fileno())
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)


def check_file(path: str | os.PathLike) -> None:
    """Makes the folder of a future file and makes sure it can be written, before much work depends on it.

    Raises:
        UserError: it cannot, or something else than a file is there.
    """
    given, path = path, Path(os.path.realpath(path))
    with one_line(given):
        if path.is_dir():
            raise UserError(f"{given}: is a folder: give a file name")
        if path.exists() and not path.is_file():
            raise UserError(f"{given}: is no ordinary file: give another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = _partial(path, Path(given).suffix)  # as long a name as the file will be written under
        probe.touch(exist_ok=False)
        probe.unlink()


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike, kind: str, unmarked: Foreign | None = None, *, replace: bool = True, resume: bool = False
) -> Iterator[Path]:
    """The name of a folder yet to be made, which takes the place of `path` when the block succeeds and disappears when
    it fails.

    Args:
        kind: what the folder is, in a word: "checkpoint". Only the same kind is replaced.
        unmarked: judges folders without a marker, written before there were any.
        replace: whether an older one gives way; otherwise only an empty folder does.
        resume: what else the block leaves in the working folder, the yielded name's parent, stays when it fails,
            for the next attempt to use.

    Raises:
        UserError: the place cannot be written or is being written, or something else than an older one is there.
    """
    given, path = path, Path(os.path.realpath(path))
    check_folder(path, kind, unmarked, replace=replace)
    work = path.with_name(f".{path.name}.partial")
    fresh, old = work / "new", work / "old"
    with one_line(given, work), _working_folder(work, kind, keep=resume):
        if old.exists() and not path.exists():  # killed between the two renamings
            os.rename(old, path)
        for left in (fresh, old) if resume else set(work.iterdir()) - {work / MARKER}:
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
        try:
            yield fresh
            _finish(fresh, kind)
            check_folder(path, kind, unmarked, replace=replace)  # much may have happened meanwhile
            if path.exists():
                os.rename(path, old)
            os.rename(fresh, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def check_folder(path: str | os.PathLike, kind: str, unmarked: Foreign | None = None, *, replace: bool = True) -> None:
    """Makes sure that `path` may be written by `atomic_folder`, before much work depends on it.

    Raises:
        UserError: something is there that is not ours, or that must not be replaced.
    """
    path = Path(path)
    with one_line(path):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
        if not replace:
            raise UserError(f"{path}: is there already: choose another name, or delete it first")
        foreign = foreign_entries(path, kind, unmarked) if path.is_dir() else None
        if foreign is None:
            raise UserError(f"{path}: is there already and no {kind} of {PROGRAM}: choose another name")
        if foreign:
            raise UserError(
                f"{path}: holds {foreign[0]!r}, which is no part of a {kind}: move it away, or choose another name"
            )


def foreign_entries(path: Path, kind: str, unmarked: Foreign | None = None) -> list[str] | None:
    """What a folder holds besides what this program wrote into it; None if nothing proves that it is ours."""
    marker = _marker(path)
    if marker is None:
        return unmarked(path) if unmarked else None
    if marker.get("kind") != kind or not isinstance(marker.get("entries"), list):
        return None
    return [entry for entry in entries(path) if entry not in marker["entries"]]


def entries(folder: Path) -> list[str]:
    """All files and folders below `folder`, but for the marker and what file managers leave."""
    found = (child.relative_to(folder).as_posix() for child in folder.rglob("*") if child.name not in DESKTOP)
    return sorted(entry for entry in found if entry != MARKER)


@contextlib.contextmanager
def one_line(path: str | os.PathLike, work: Path | None = None) -> Iterator[None]:
    """A full disk, however a library tells it, and a place that cannot be written become one line about `path`.

    Args:
        work: errors of other files than this folder's pass.

    Raises:
        UserError: instead of an `OSError`, or of any error that tells of a full disk.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if full := FULL.search(" ".join(_texts(error))):
            raise UserError(f"{path}: cannot be written ({full[0].lower()}): make room") from error
        if isinstance(error, OSError) and (work is None or _concerns(error, work)):
            reason = error.strerror or str(error).partition("\n")[0]
            raise UserError(f"{path}: cannot be written ({reason}): choose another place") from error
        raise


def _concerns(error: OSError, folder: Path) -> bool:
    """Is it about something in `folder`, or one of the folders that it lies in?"""
    place = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    return place is not None and (folder in (place, *place.parents) or place in folder.parents)


def _texts(error: BaseException | None) -> Iterator[str]:
    """What an error, its causes and the errors of a group say."""
    if error is not None:
        yield str(error)
        for inner in getattr(error, "exceptions", ()):
            yield from _texts(inner)
        yield from _texts(error.__cause__ or error.__context__)


@contextlib.contextmanager
def _working_folder(work: Path, kind: str, keep: bool) -> Iterator[None]:
    """Makes or takes over `work`, of which all is ours, and locks it; removed if the block fails, unless `keep`."""
    work.mkdir(parents=True, exist_ok=True)
    begun = (_marker(work) or {}).get("unfinished")
    if begun != kind and any(child.name != MARKER or child.stat().st_size for child in work.iterdir()):
        what = f"an unfinished {begun}" if begun else f"not of {PROGRAM}"
        raise UserError(f"{work}: is in the way and {what}: move it away, or choose another name")
    with (work / MARKER).open("ab") as lock:
        if _lock(lock) is False:
            raise UserError(f"{work}: another process is writing there: wait for it, or choose another name")
        if begun is None:
            lock.write(_document(unfinished=kind))
            lock.flush()
        try:
            yield
        except BaseException:
            if not keep:
                shutil.rmtree(work, ignore_errors=True)
            raise


def _finish(folder: Path, kind: str) -> None:
    """Everything is on the disk, then the marker."""
    written = entries(folder)
    for entry in written:
        _sync(folder / entry)
    (folder / MARKER).write_bytes(_document(kind=kind, entries=written))
    _sync(folder / MARKER)


def _document(**values: Any) -> bytes:
    return json.dumps({"program": PROGRAM, "version": animate_jax.__version__, **values}, indent=1).encode()


def _marker(folder: Path) -> dict[str, Any] | None:
    """What a folder's marker says; None if it has none of ours."""
    try:
        document = json.loads((folder / MARKER).read_text())
        return document if document["program"] == PROGRAM else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _partial(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial{suffix}")


def _lock(file: BinaryIO) -> bool | None:
    """Holds a file until it is closed or the process ends, also against other machines; False: somebody does already,
    None: this file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_unlocked(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("r+b") as file:
        if _lock(file):
            path.unlink()


def _sync(path: Path) -> None:
    """The disk has it, also if the power fails now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
