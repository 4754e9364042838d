"""An XLA flag without which some versions of jaxlib compute wrong results on a CPU."""

from __future__ import annotations

import os
import re

# Which kinds of fusion XLA:CPU gives to YNNPACK: none.
WITHOUT_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="
# jaxlib 0.10.2 and 0.11 compute some of these wrongly and die of others (jax-ml/jax#39103, #39257, #40412); 0.10.1
# and 0.12 do not. An unknown flag ends the process, so none is given to a version that needs none.
FIRST_WRONG, FIRST_RIGHT = (0, 10, 2), (0, 12)


def avoid_wrong_fusions() -> None:
    """Adds the flag to XLA_FLAGS for the versions concerned, unless the user says something else.

    XLA reads the variable once, when the first backend starts: afterwards this does nothing.
    """
    from jaxlib.version import __version__  # a file of one number: JAX itself takes a second

    given = os.environ.get("XLA_FLAGS", "").strip()
    names_a_file = given != "" and not given.startswith("-")
    if not concerned(__version__) or names_a_file or WITHOUT_YNNPACK.rstrip("=") in given:
        return
    os.environ["XLA_FLAGS"] = f"{given} {WITHOUT_YNNPACK}".strip()


def concerned(version: str) -> bool:
    """Whether this version of jaxlib, as "0.10.2" or "0.11.1.dev20260801", is affected."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return bool(numbers) and FIRST_WRONG <= tuple(map(int, numbers[0].split("."))) < FIRST_RIGHT
