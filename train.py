"""`animate-jax train` of a checkout: trains a stage (`animate_jax/commands/train.py`)."""

import sys

from animate_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:], "train.py"))
