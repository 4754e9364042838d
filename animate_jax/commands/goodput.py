"""How a training run's time was spent, over all its starts.

animate-jax goodput runs/stage1
"""

from __future__ import annotations

import dataclasses

import tyro

from animate_jax.commands.options import parse
from animate_jax.errors import UserError, exit_status
from animate_jax.storage import to_path
from animate_jax.training.goodput import EVENTS, report


@dataclasses.dataclass(frozen=True)
class Arguments:
    run: tyro.conf.Positional[str]  # a training run's --output


def main(arguments: list[str], program: str = "animate-jax goodput") -> int:
    args = parse(Arguments, arguments, program, __doc__)
    return exit_status(program, lambda: _print(args.run), "")


def _print(run: str) -> None:
    if not (to_path(run) / EVENTS).exists():
        raise UserError(f"{run}: holds no {EVENTS}: give the --output of a training run")
    print(report(run))
