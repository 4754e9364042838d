"""One picture of a character and a driving motion become a video of that character doing the motion.

    animate-jax sample       animates a picture; without options, the bundled one
    animate-jax train        trains a stage: `animate-jax train tiny_stage1`
    animate-jax weights      PyTorch weight files become checkpoints, and back
    animate-jax data         videos become a data set
    animate-jax evaluate     measures a checkpoint, or anybody's videos
    animate-jax web          the same as `sample`, as a page in the browser
    animate-jax doctor       what this machine has, and what to do about what is missing
    animate-jax completion   prints the completion script of bash, zsh or fish

`--help` after a command lists its options; `animate-jax --version`. With `--traceback` errors show where they come
from.
"""

from __future__ import annotations

import importlib
import os
import sys

import animate_jax
from animate_jax.errors import TRACEBACK

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Imported when called: JAX alone takes seconds.
COMMANDS = {
    "sample": "animate_jax.commands.sample",
    "train": "animate_jax.commands.train",
    "weights": "animate_jax.weights.__main__",
    "data": "animate_jax.data.__main__",
    "evaluate": "animate_jax.evaluation.__main__",
    "web": "animate_jax.web",
    "doctor": "animate_jax.commands.doctor",
    "completion": "animate_jax.commands.completion",
}


def main(arguments: list[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if "--traceback" in rest:
        rest.remove("--traceback")
        os.environ[TRACEBACK] = "1"
    if name in ("--help", "-h", "--version"):
        print(__doc__ if name != "--version" else animate_jax.__version__)
        return 0
    if name not in COMMANDS:
        print(f"usage: animate-jax {{{','.join(COMMANDS)}}} [options], or animate-jax --help", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[name]).main(rest, f"animate-jax {name}")


if __name__ == "__main__":
    sys.exit(main())
