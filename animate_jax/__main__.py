"""One picture of a character and a driving motion become a video of that character doing the motion.

    animate-jax sample       animates a picture; without options, the bundled one
    animate-jax train        trains a stage: `animate-jax train tiny_stage1`
    animate-jax weights      PyTorch weight files become checkpoints, and back
    animate-jax data         videos become a data set
    animate-jax evaluate     measures a checkpoint, or anybody's videos
    animate-jax web          the same as `sample`, as a page in the browser
    animate-jax goodput      how a training run's time was spent
    animate-jax doctor       checks what this machine has, and says how to get what is missing
    animate-jax completion   prints the completion script of bash, zsh or fish

`--help` after a command lists its options; `animate-jax --version`. With `--traceback` errors have a traceback.
"""

from __future__ import annotations

import difflib
import importlib
import os
import select
import signal
import sys
import threading
from typing import NoReturn, TextIO

import animate_jax
from animate_jax.errors import TRACEBACK
from animate_jax.renamed import current_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA calls a compilation of two minutes an error

SLOW_IMPORT = 5.0  # seconds, after which a line says that the program is starting
# Imported when called: JAX alone takes seconds.
COMMANDS = ("sample", "train", "weights", "data", "evaluate", "web", "goodput", "doctor", "completion")


def main(arguments: list[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if "--traceback" in rest:
        rest.remove("--traceback")
        os.environ[TRACEBACK] = "1"
    if name in ("--help", "-h", "--version"):
        print(__doc__ if name != "--version" else animate_jax.__version__)
        return 0
    if not name:
        print(__doc__, file=sys.stderr)
        return 2
    if name not in COMMANDS:
        similar = difflib.get_close_matches(name, COMMANDS, 1)
        advice = f"did you mean {similar[0]}?" if similar else f"choose one of {', '.join(COMMANDS)}"
        print(f"animate-jax: there is no command {name}: {advice} (animate-jax --help)", file=sys.stderr)
        return 2
    return run(name, rest, f"animate-jax {name}")


def run(name: str, arguments: list[str], program: str) -> int:
    """Runs a command and returns its status. Ctrl-C gives one line and status 130 from the start on."""

    def stop(*_) -> NoReturn:
        # An exception during an import may be swallowed or printed by the library.
        os.write(2, f"{program}: interrupted\n".encode())
        os._exit(130)

    # What takes a second or two of CPU time can be a minute of a busy machine.
    sign_of_life = threading.Timer(SLOW_IMPORT, lambda: os.write(2, f"{program}: starting\n".encode()))
    sign_of_life.daemon = True
    usual = signal.default_int_handler
    # Only the main thread can handle signals, and a shell's background job ignores this one.
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is usual
    if ours:
        signal.signal(signal.SIGINT, stop)
    sign_of_life.start()
    try:
        command = importlib.import_module(f"animate_jax.commands.{name}")
    finally:
        sign_of_life.cancel()
        if ours:
            signal.signal(signal.SIGINT, usual)
    try:
        try:
            return command.main(current_flags(name, arguments), program)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_closed(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more when it ends
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # while options are read
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def is_closed(stream: TextIO) -> bool:
    """Whether nobody reads what is written there, such as after `| head`."""
    poll = select.poll()
    poll.register(stream, 0)  # errors are reported always
    return bool(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
