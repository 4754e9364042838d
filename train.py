"""`animate-jax train` of a checkout: trains a stage (`animate_jax/commands/train.py`)."""

import sys

from animate_jax.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
