"""`animate-jax web`, see `animate_jax.web.page`."""

from animate_jax.web.page import main

__all__ = ["main"]
