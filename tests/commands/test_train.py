"""Training's command: which preset a run trains with, that options reach it, and that wrong ones end in one line."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.commands import train
from animate_jax.commands.train import run_command, with_carried_preset
from animate_jax.config import TrainConfig
from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model
from animate_jax.presets import preset_of, presets
from tests.commands.conftest import one_line

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.usefixtures("own_home"), pytest.mark.compiles]


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


@pytest.fixture
def tiny_config(tmp_path):
    """A configuration file like those in configs/."""
    path = tmp_path / "small.py"
    path.write_text(
        "from animate_jax.config import DataConfig, TrainConfig\n"
        "def get_config():\n"
        f"    return TrainConfig('stage1', {str(tmp_path / 'run')!r}, data=DataConfig(batch=2, num_workers=0))\n"
    )
    return path


@pytest.mark.parametrize(
    "options, message",
    [
        (["--preset", "huge"], "--preset 'huge': choose one of paper, moore, moore-fixed, musepose, novita, tiny"),
        (["--data.batch", "0"], "--data.batch 0: must be"),
        (["--data.frames", "30"], "--data.frames 30: must be at least 1 and fit into --data.clip-frames 24"),
        (["--data.split", "dev"], "mocap_people: there is no split 'dev'; choose one of"),
        (["--stage", "stage2", "--data.frames", "40", "--data.clip-frames", "50"], "--data.frames 40: .* at most 32"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--optim.decay-start", "900"], "--optim.decay-start 900.0: is a share of all steps, from 0 to 1"),
        (["--trainable", "motion"], "--trainable 'motion' matches no parameter; paths look like"),
        (["--init", "nowhere"], "nowhere: no such checkpoint: give"),
        (["--stage", "vae", "--lpips-weights", "nowhere"], "nowhere"),
        (["--stage", "stage1", "--loss.perceptual-weight", "0.3", "--lpips-weights", "nowhere"], "nowhere"),
        (["--stage", "stage1", "--loss.perceptual-weight", "0.3", "--plan", "v5e:4x4"], "--plan: does not know LPIPS"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_training_options(options, message, tiny_config, capfd):
    pytest.importorskip("numba")
    assert train.main([str(tiny_config), *options]) == 2
    line = one_line(capfd.readouterr(), "animate-jax train: ")
    assert re.search(message, line), line


def test_bad_configurations(tmp_path, capfd):
    assert train.main([str(tmp_path / "missing.py")]) == 2
    assert "missing.py: no such configuration: give a .py file, or one of distill, stage1," in one_line(
        capfd.readouterr(), "animate-jax train: "
    )
    (tmp_path / "other.py").write_text("x = 1")
    assert train.main([str(tmp_path / "other.py")]) == 2
    assert "other.py: has no get_config()" in one_line(capfd.readouterr(), "animate-jax train: ")
    for nothing in ([], ["--steps", "3"]):
        assert train.main(nothing) == 2
        one_line(capfd.readouterr(), "usage: animate-jax train CONFIG")


def test_a_wrong_training_option_shows_its_name(tiny_config, capfd):
    with pytest.raises(SystemExit) as caught:
        train.main([str(tiny_config), "--stpes", "3"])
    assert caught.value.code == 2 and "--stpes" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["tiny_vae", "tiny_stage1", "tiny_stage2"])
def test_options_and_batches_reach_the_loop(name, micro, monkeypatch, tmp_path):
    """Of every configuration that is shipped."""
    pytest.importorskip("numba")
    seen = []
    monkeypatch.setattr("animate_jax.training.loop.run", lambda *arguments: seen.append(arguments))
    monkeypatch.setattr("animate_jax.perceptual.lpips.load", lambda path: {})
    monkeypatch.setattr(train, "check_start", lambda output, init: None)  # stage 1 has not run here
    monkeypatch.setattr(train, "with_carried_preset", lambda config, named: dataclasses.replace(config, preset=micro))
    options = ["--steps", "7", "--optim.learning-rate", "0.5", "--data.num-workers", "0", "--data.frames", "2"]
    assert train.main([str(ROOT / "configs" / f"{name}.py"), *options]) == 0
    ((config, _, data, *_),) = seen
    assert (config.steps, config.optim.learning_rate, config.preset) == (7, 0.5, micro)
    batch = next(data)
    assert batch.frames.shape == (config.data.batch, 2, 64, 48, 3)
