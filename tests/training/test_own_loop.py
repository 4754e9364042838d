"""The loop in docs/training.md runs, resumes, and does what `animate-jax train` does."""

import dataclasses
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.commands import train
from animate_jax.config import DataConfig, OptimConfig, TrainConfig
from animate_jax.data.loader import batches
from animate_jax.training.loop import run
from animate_jax.training.losses import make_loss
from tests.conftest import MICRO

ROOT = Path(__file__).parents[2]

pytest.importorskip("numba")
pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]


def test_the_loop_of_the_documentation_is_that_of_the_program(tmp_path, micro_checkpoint, monkeypatch, capsys):
    pages = (ROOT / "docs" / "training.md").read_text()
    (code,) = [code for code in re.findall(r"^```python\n(.*?)^```", pages, re.M | re.S) if "load_config(" in code]
    assert len(code.splitlines()) < 40
    config = TrainConfig(
        preset=MICRO,
        stage="stage1",
        output=str(tmp_path / "program"),
        init=str(micro_checkpoint),
        trainable=r"denoising_unet\.conv_in",
        steps=3,
        log_every=1,
        data=DataConfig(batch=2, frames=1, clip_frames=4, num_workers=0),
        optim=OptimConfig(learning_rate=0.01),
    )
    run(config, make_loss(config), batches(config))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(code)
    for steps in (2, 3):  # the second start goes on
        monkeypatch.setattr(train, "load_config", lambda name, steps=steps: dataclasses.replace(config, steps=steps))
        state = runpy.run_path("own.py")["state"]
        assert int(state.step) == steps
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2", "3"]
    expected, _ = checkpoint.load(config.output)
    found, _ = checkpoint.load(tmp_path / "runs" / "mine")
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)
