"""`animate-jax sample` of a checkout: animates one picture with a driving motion (`animate_jax/commands/sample.py`)."""

import sys

from animate_jax.__main__ import run

if __name__ == "__main__":
    sys.exit(run("sample", sys.argv[1:], "sample.py"))
