"""What tests of commands share."""

import re

import jax
import pytest


@pytest.fixture
def own_home(monkeypatch, tmp_path):
    """The programs keep compiled code in the user's folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def without_signs_of_life(printed):
    return re.sub(r"^(\S.*: )?(loading|reading poses|compiling|denoising|decoding)[ :].*\n", "", printed, flags=re.M)


def one_line(captured, prefix):
    assert captured.out == ""
    line, rest = without_signs_of_life(captured.err).split("\n", 1)
    assert rest == "", captured.err
    assert line.startswith(prefix)
    return line
