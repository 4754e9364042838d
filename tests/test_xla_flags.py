"""Some versions of jaxlib compute wrongly on a CPU; importing the package prevents it and leaves users' flags alone."""

import os
import subprocess
import sys

import jaxlib
import pytest

from animate_jax import xla_flags

pytestmark = pytest.mark.compiles

# jax-ml/jax#39103, and #40412, which ends the process.
PUBLISHED = """
import os
import animate_jax
import jax, jax.numpy as jnp
row = jnp.arange(32769.0)
points, matrix = jnp.stack((row, 0 * row, 0 * row), 1), jnp.eye(3)
squares = lambda x: jax.vmap(lambda r: jnp.sum((matrix @ r) ** 2))(x)
assert squares(points)[-1] == jax.jit(squares)(points)[-1] == 2.0**30, jax.jit(squares)(points)[-1]
u = jax.random.normal(jax.random.key(0), (3, 1, 2, 2, 8, 8, 8))
sums = lambda a, b: jnp.sum(a * b, axis=3)
assert abs(jax.jit(sums)(u, u) - sums(u, u)).max() < 1e-5
print(os.environ.get("XLA_FLAGS", ""))
"""


def test_published_programs_are_right():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    ran = subprocess.run(
        [sys.executable, "-c", PUBLISHED], env=environment | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


ARITHMETIC = """
from animate_jax.commands import doctor
from animate_jax.models import self_test
cases = self_test.cases()[:2]
self_test.cases = lambda: cases
print(doctor.arithmetic(doctor.jax.devices()[0]))
"""


@pytest.mark.skipif(not xla_flags.concerned(jaxlib.__version__), reason="this jaxlib computes rightly")
def test_doctor_tells_users_who_undo_it():
    flags = {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=+reduce", "JAX_PLATFORMS": "cpu"}
    told = subprocess.run(
        [sys.executable, "-c", ARITHMETIC], env=os.environ | flags, capture_output=True, text=True, check=True
    ).stdout
    assert "state='bad'" in told and "instead of 1073741824" in told and "remove your own value" in told


@pytest.mark.parametrize(
    "given, becomes",
    [
        (None, xla_flags.WITHOUT_YNNPACK),
        ("--xla_dump_to=x", f"--xla_dump_to=x {xla_flags.WITHOUT_YNNPACK}"),
        ("--xla_cpu_experimental_ynn_fusion_type=dot", "--xla_cpu_experimental_ynn_fusion_type=dot"),
        ("flags.txt", "flags.txt"),  # XLA reads them from the file
    ],
)
def test_users_flags_stay(monkeypatch, given, becomes):
    monkeypatch.setattr("jaxlib.version.__version__", "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", given) if given else monkeypatch.delenv("XLA_FLAGS", raising=False)
    xla_flags.avoid_wrong_fusions()
    xla_flags.avoid_wrong_fusions()
    assert os.environ["XLA_FLAGS"] == becomes


def test_other_versions_get_no_flag(monkeypatch):
    versions = ("0.10.1", "0.10.2", "0.11.0", "0.11.1.dev20260801", "0.12.0.1", "0.12", "1.0")
    assert [xla_flags.concerned(version) for version in versions] == [False, True, True, True, False, False, False]
    monkeypatch.setattr("jaxlib.version.__version__", "0.12.0.1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    xla_flags.avoid_wrong_fusions()
    assert "XLA_FLAGS" not in os.environ
