"""`configs/` beside the package is `animate_jax/configs` inside a wheel; all else stands in pyproject.toml."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["animate_jax*"]), "animate_jax.configs"],
    package_dir={"animate_jax.configs": "configs"},
)
