"""Which preset a run trains with."""

import dataclasses

import jax
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.commands.train import run_command, with_carried_preset
from animate_jax.config import TrainConfig
from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model
from animate_jax.presets import preset_of, presets

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def carrying(tmp_path_factory, micro, micro_params):
    """Checkpoints by what is unusual about them: they predict v, or have no temporal layers in the middle."""
    root = tmp_path_factory.mktemp("carrying")
    v = dataclasses.replace(micro, schedule=dataclasses.replace(micro.schedule, prediction="v"))
    checkpoint.save(root / "v", micro_params, v)
    unet = dataclasses.replace(micro.model.unet, motion_mid_block=False)
    v3 = dataclasses.replace(micro, model=dataclasses.replace(micro.model, unet=unet))
    kept = abstract_model(v3.model)[1].keys()
    checkpoint.save(root / "v3", {path: micro_params[path] for path in kept}, v3)
    return root


def chosen_preset(config, named):
    return preset_of(with_carried_preset(config, named))


def config(output, init, **fields):
    return TrainConfig("stage2", str(output), init=init and str(init), size=(48, 64), **fields)


@pytest.mark.parametrize("name", ["v", "v3"])
def test_weights_bring_their_preset(carrying, tmp_path, name, capfd):
    chosen = chosen_preset(config(tmp_path / "run", carrying / name), named=False)
    assert chosen == checkpoint.read_preset(carrying / name)
    line = capfd.readouterr().err
    assert (
        f"preset micro of {carrying / name} (predicts {chosen.schedule.prediction})" in line and "--preset tiny" in line
    )
    params, _ = checkpoint.load(carrying / name, chosen)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        path: leaf.shape for path, leaf in abstract_model(chosen.model)[1].items()
    }


def test_the_command_line_decides(carrying, tmp_path):
    own = chosen_preset(config(tmp_path / "run", carrying / "v", prediction="x0", zero_terminal_snr=False), named=False)
    assert own.name == "micro" and (own.schedule.prediction, own.schedule.zero_terminal_snr) == ("x0", False)
    named = chosen_preset(config(tmp_path / "run", carrying / "v", preset="moore"), named=True)
    assert named.name == "moore" and named.schedule == presets()["moore"].schedule


def test_a_run_goes_on_with_its_own_preset(carrying, tmp_path, micro, micro_params):
    """Also when the checkpoint that it began from is gone."""
    checkpoint.save(tmp_path / "run" / "checkpoints" / "5", micro_params, micro)
    for init in (carrying / "v", tmp_path / "gone", None):
        assert chosen_preset(config(tmp_path / "run", init), named=False) == micro


def test_without_any_checkpoint_it_is_the_configurations(tmp_path):
    chosen = chosen_preset(config(tmp_path / "run", tmp_path / "missing", preset="moore"), named=False)
    assert chosen.name == "moore" and chosen.frames.width == 48


def test_a_plan_needs_no_earlier_stage(monkeypatch, tmp_path):
    """`runs/stage1`, where stage 2 starts by default, need not be there yet, and is not looked for on the hub."""
    monkeypatch.chdir(tmp_path)

    def stop(config, topology):
        assert config.init is None
        raise SystemExit(topology)

    monkeypatch.setattr("animate_jax.training.forecast.plan", stop)
    with pytest.raises(SystemExit, match="v5e:4x4"):
        run_command("train", "stage2", "--plan", "v5e:4x4")


def test_a_missing_start_leaves_no_folder_of_a_run(tmp_path):
    paths = ["--init", str(tmp_path / "missing"), "--output", str(tmp_path / "run")]
    with pytest.raises(UserError, match="missing: no such checkpoint"):
        run_command("animate-jax train", "tiny_stage1", *paths)
    assert not (tmp_path / "run").exists()
