"""Runs one case: gives a file to the program, and checks how it ends."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pathlib
import resource
import shutil
import signal
import sys
from collections.abc import Iterator

from animate_jax.errors import UserError

SECONDS = 30  # of one case
HANGS = 120  # seconds after which the process is ended if the signal cannot stop a case
MEGABYTES = 700  # of memory that one case may add
ADDRESS_SPACE = 6 << 30  # bytes that one case may add: larger allocations fail


class Kind:
    """One kind of input.

    Attributes:
        files: undamaged files by name.
        tree: whether they are one folder, in which one file is damaged at a time.
    """

    files: dict[str, bytes]
    tree = False

    def read(self, path: pathlib.Path) -> None:
        """Gives a file, or the folder of a tree, to the program."""
        raise NotImplementedError

    def leaves(self, path: pathlib.Path) -> bool:
        """Whether a new file may be left behind."""
        return False


class Failed(Exception):
    """A case ended in another way than with a result or a `UserError` of one line."""


class TooLong(BaseException):
    """Not an Exception, so that no handler in the program stops it."""


def peak_memory() -> float:
    """Peak resident memory in MB since `reset_peak_memory`."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    except OSError:
        return 0.0


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def limited(noise: pathlib.Path) -> Iterator[None]:
    """Raises if the block takes too long or too much memory, or if it or a C library prints anything."""

    def time_out(*_):
        raise TooLong

    reset_peak_memory()
    before, addresses = (
        peak_memory(),
        int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize(),
    )
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, time_out)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with noise.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ADDRESS_SPACE, old_limit[1]))
    faulthandler.dump_traceback_later(HANGS, exit=True, file=os.fdopen(os.dup(kept[1]), "w"))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, old_limit)
        signal.signal(signal.SIGALRM, old_handler)
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in enumerate(kept, 1):
            os.dup2(handle, number)
            os.close(handle)
    if peak_memory() - before > MEGABYTES:
        raise Failed(f"took {peak_memory() - before:.0f} MB")
    if printed := noise.read_bytes():
        raise Failed(f"printed: {printed.decode(errors='replace')[:500]}")


def run_case(kind: Kind, name: str, contents: bytes, folder: pathlib.Path, noise: pathlib.Path) -> bool:
    """Gives a damaged file to the program; returns whether it was accepted.

    Raises:
        Failed: it was neither accepted nor refused by a `UserError` of one line.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for each, whole in (kind.files if kind.tree else {}).items():
        (folder / each).parent.mkdir(parents=True, exist_ok=True)
        (folder / each).write_bytes(whole)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(contents)
    around = folder.parent
    before, accepted = set(around.rglob("*")), False
    try:
        with limited(noise):
            try:
                kind.read(folder if kind.tree else folder / name)
                accepted = True
            except UserError as error:
                if "\n" in str(error) or not str(error):
                    raise Failed(f"no single line: {error}") from error
    except Failed:
        raise
    except TooLong as error:
        raise Failed(f"took more than {SECONDS} s") from error
    except BaseException as error:
        raise Failed(f"{type(error).__name__}: {error}") from error
    if left := [path for path in set(around.rglob("*")) - before - {noise} if path.is_file() and not kind.leaves(path)]:
        raise Failed(f"left {left}")
    return accepted
