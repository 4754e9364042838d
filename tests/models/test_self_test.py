"""The doctor's programs: this machine computes them rightly, and every kind of wrong result is seen."""

import jax
import jax.numpy as jnp
import pytest

from animate_jax.models import self_test

pytestmark = pytest.mark.compiles


def chosen(*names):
    return [case for case in self_test.cases() if case.name in names]


def test_this_machine_is_right():
    assert list(self_test.wrong_results(jax.local_devices()[-1])) == []


@pytest.mark.parametrize(
    "name, function, wrong",
    [
        ("attention in float32", "attend", lambda q, k, v, heads: v),
        ("attention in bfloat16", "attend", lambda q, k, v, heads: jnp.full_like(v, jnp.nan)),
        ("normal numbers", "_moments", lambda: jnp.array([0.0, 1.05])),
        ("sums of squares", "_squares", lambda points: (points**2).sum(-1).at[-1].add(-2097152.0)),
        ("convolution in float32", "_convolution", lambda x, kernel: x + 0 * kernel.sum()),
    ],
)
def test_wrong_results_are_seen(monkeypatch, name, function, wrong):
    monkeypatch.setattr(self_test, function, wrong)
    cases = chosen(name, "ones(4) + 1")
    monkeypatch.setattr(self_test, "cases", lambda: cases)
    found = list(self_test.wrong_results(jax.devices()[0]))
    assert [each.name for each in found] == [name, f"{name} compiled"]
    assert all(not each.actual == pytest.approx(each.expected, rel=1e-5) for each in found)


def test_only_compiled_programs_are_wrong(monkeypatch):
    (case,) = chosen("sqrt(512)")
    broken = case._replace(compute=lambda: jnp.where(isinstance(jnp.zeros(()) + 0, jax.core.Tracer), 0.0, 512.0**0.5))
    monkeypatch.setattr(self_test, "cases", lambda: [broken])
    ((name, expected, got),) = self_test.wrong_results(jax.devices()[0])
    assert (name, got) == ("sqrt(512) compiled", 0.0) and expected == pytest.approx(22.627417)
