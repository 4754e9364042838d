"""A page in the browser that animates pictures:

    animate-jax web                                        # http://127.0.0.1:7860, the bundled model
    ANIMATE_JAX_PASSWORD=... animate-jax web --host 0.0.0.0 --checkpoint ckpt/

One video is made at a time; visitors wait in a queue. Whoever can reach the address may use the machine, so it is this
machine only unless `--host` says otherwise; with ANIMATE_JAX_PASSWORD set, the page asks for it (user name: animate).
Uploads and results lie in a temporary folder. They are removed when their visitor leaves, after an hour without use,
when there are too many, and when the program ends. `animate_jax.limits` says how much a visitor may ask for.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
from typing import Annotated, NoReturn

import tyro

from animate_jax.errors import exit_status
from animate_jax.storage import keep_compiled_programs
from animate_jax.web.page import serving
from animate_jax.web.studio import VisitorLimits


@dataclasses.dataclass(frozen=True)
class Arguments:
    checkpoint: str = "tiny"  # "tiny" (bundled), a checkpoint's directory, or a training run's
    host: str = "127.0.0.1"  # who may come: this machine only; 0.0.0.0: the network
    port: int = 7860  # 0 takes a free one
    limits: tyro.conf.OmitArgPrefixes[VisitorLimits] = dataclasses.field(default_factory=VisitorLimits)
    queue_size: Annotated[int, tyro.conf.arg(aliases=["--waiting"])] = 8
    """Visitors that may wait."""


def main(arguments: list[str], program: str = "animate-jax web") -> int:
    args = tyro.cli(Arguments, description=__doc__, args=arguments, prog=program)
    return exit_status(program, lambda: _run(args), "stopped")


def _run(args: Arguments) -> None:
    def terminate(*_) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)  # not at once: what visitors have left is removed first

    signal.signal(signal.SIGTERM, terminate)
    keep_compiled_programs()
    with serving(args.checkpoint, args.host, args.port, args.limits, args.queue_size) as address:
        print(f"{address}   (Ctrl-C stops)", flush=True)
        threading.Event().wait()
