"""Signs of life: bars and lines, and what they say."""

import logging

import pytest

from animate_jax import progress as module
from animate_jax.progress import Progress


def test_without_a_bar_there_are_lines_now_and_then(caplog, monkeypatch, capsys):
    times = iter([0.0, 0.0, 1.0, 9.0, 12.0, 12.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO, "animate_jax"), Progress("denoising", 4, bar=False) as progress:
        for part in ("step 1 of 2, window 1 of 2", "step 1 of 2, window 2 of 2", "step 2 of 2, window 1 of 2", "last"):
            progress.begin(part)
    assert caplog.messages == ["denoising step 1 of 2, window 1 of 2", "denoising last"]
    assert capsys.readouterr() == ("", "")


def test_parts_are_numbered_as_they_are_taken(caplog):
    with caplog.at_level(logging.INFO, "animate_jax"), Progress("reading poses", 3, bar=False) as progress:
        assert list(progress.each("abc")) == ["a", "b", "c"]
    assert caplog.messages == ["reading poses: 1 of 3"]


@pytest.mark.parametrize(("begun", "failed", "percent"), [(2, False, 100), (2, True, 50), (1, False, 50)])
def test_the_bar_counts_parts_that_are_done(capsys, caplog, begun, failed, percent):
    with caplog.at_level(logging.INFO, "animate_jax"):
        try:
            with Progress("denoising", 2, bar=True) as progress:
                for step in range(begun):
                    progress.begin(f"step {step + 1} of 2")
                if failed:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
    last = capsys.readouterr().err.split("\r")[-1]
    assert f"denoising step {begun} of 2" in last and f"{percent}%|" in last and not caplog.messages
