"""`animate-jax sample` of a checkout: animates one picture with a driving motion (`animate_jax/commands/sample.py`)."""

import sys

from animate_jax.commands.sample import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
