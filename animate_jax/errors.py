"""Errors for the user, and how reading files and command lines turn exceptions into them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator

from tqdm import tqdm

TRACEBACK = "ANIMATE_JAX_TRACEBACK"  # environment variable, set by --traceback: errors show where they come from


# Flags whose argument in Python is not called alike.
IN_PYTHON = {"--canvas WIDTH HEIGHT": "canvas=(height, width)", "--dwpose FOLDER": "detector=DWPose(FOLDER)"}
_running: set[str] = set()  # commands of this process


class UserError(Exception):
    """Bad input: the message says in one line what is wrong, where, and what to do.

    Command-line programs print it without a traceback and exit with status 2.
    """


class InputWarning(UserWarning):
    """Input that can be used but may not give what is meant: the message says in one line what to do."""


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str, advice: str) -> Iterator[None]:
    """Turns every exception of a block that reads a user's file into one line.

    Damaged or hostile files raise nearly anything: RecursionError, MemoryError, struct.error, zlib.error, a library's
    own. A `UserError` is passed on, as it is more precise.

    Args:
        kind: what the file was taken for, as in "not a readable {kind}".
        advice: what to do, as in "give a whole PNG, JPEG or WebP file".

    Raises:
        UserError: the block raised any `Exception`.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: check the path") from error
    except PermissionError as error:
        raise UserError(f"{path}: may not be read ({error.strerror}): change its permissions") from error
    except Exception as error:
        message = getattr(error, "strerror", None) or str(error)
        reason = message.strip().partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path}: not a readable {kind} ({reason}): {advice}") from error


@contextlib.contextmanager
def as_arguments() -> Iterator[None]:
    """The `UserError`s of a block name Python's arguments instead of flags, unless a command is running; also a
    decorator."""
    try:
        yield
    except UserError as error:
        if not _running:
            error.args = (_name_arguments(str(error)),)
        raise


def _name_arguments(message: str) -> str:
    own, *command = re.split(r"(?=animate-jax \w)", message, maxsplit=1)  # a command that is advised has flags
    for flags, argument in IN_PYTHON.items():
        own = own.replace(flags, argument)
    return "".join([re.sub(r"(?<![\w=-])--([a-z][\w.-]*)", lambda flag: flag[1].replace("-", "_"), own), *command])


def no_device(error: Exception) -> str:
    """What JAX raised when it found no device, in one line; AssertionError is all it says of some JAX_PLATFORMS."""
    reason = str(error).strip() or f"no device for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
    return f"JAX cannot start: {reason.splitlines()[0]}; JAX_PLATFORMS=cpu always works"


def exit_status(program: str, work: Callable[[], int | None], interrupted: str) -> int:
    """Runs a command: its status or 0; 2 after a `UserError` or without a device, 130 after Ctrl-C, each printed as one
    line, with a traceback if `TRACEBACK` is set. An `InputWarning` and the package's log are printed as lines, too."""
    _running.add(program)
    try:
        with _lines(program):
            return work() or 0
    except UserError as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, AssertionError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        if not place.endswith("xla_bridge.py") or os.environ.get(TRACEBACK):
            raise
        print(f"{program}: {no_device(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return 130
    finally:
        _running.discard(program)


@contextlib.contextmanager
def _lines(program: str) -> Iterator[None]:
    """Warnings about input and the package's log become lines on stderr that begin with the program's name."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(f"{program}: {record.getMessage()}", file=sys.stderr)  # above a progress bar

    def show(message, category, *place, **more) -> None:
        if issubclass(category, InputWarning):
            tqdm.write(f"{program}: {message}", file=sys.stderr)
        else:
            usual(message, category, *place, **more)

    log, handler = logging.getLogger("animate_jax"), Lines()
    level, propagate = log.level, log.propagate
    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        warnings.simplefilter("always", InputWarning)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate
