"""Animate Anyone in JAX: one picture and a driving motion become a video of that character moving."""

__version__ = "0.1.0"
