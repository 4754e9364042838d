"""Animate Anyone in JAX: one picture and a driving motion become a video of that character moving."""

from animate_jax.xla_flags import avoid_wrong_fusions

__version__ = "0.1.0"
avoid_wrong_fusions()


def __getattr__(name: str):
    """`animate_jax.Pipeline`, without JAX being imported for `animate-jax --version`."""
    if name == "Pipeline":
        from animate_jax.sampling.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'animate_jax' has no attribute {name!r}")
