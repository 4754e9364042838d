"""The step around the real losses: what must not change gradients does not, and stages train what they should."""

import dataclasses
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from animate_jax.config import DataConfig, DiffusionLossConfig, TrainConfig, VAELossConfig
from animate_jax.data.batch import Batch
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.images import to_signed
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.params import abstract_model, merge_model, split_model
from animate_jax.parallel.mesh import make_mesh
from animate_jax.training import losses, step
from animate_jax.training.optimizer import make_optimizer
from animate_jax.training.state import make_state
from tests.conftest import MICRO
from tests.training.conftest import CLIPS, FRAMES

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

KEY = jax.random.key(0)
STAGE1, STAGE2 = (TrainConfig(stage=stage, output="runs/test", preset=MICRO) for stage in ("stage1", "stage2"))


@pytest.fixture(scope="module")
def model(micro, micro_params):
    return merge_model(abstract_model(micro.model)[0], micro_params)


def gradients(micro, micro_params, config, batch, trainable=r".*", **options):
    """Loss, metrics and gradients of one step with the config's own loss."""
    loss = losses.VAELoss(config, perceptual) if config.stage == "vae" else losses.DiffusionLoss(config)
    keeper = optax.trace(decay=0.0)  # an optimizer whose state is the last gradient
    state = make_state(micro_params, trainable, keeper, ema=False)
    after, metrics = jax.jit(step.make_step(abstract_model(micro.model)[0], loss, keeper, ema=0.0, **options))(
        state, batch, KEY
    )
    assert {array.dtype for array in after.trainable.values()} == {jnp.dtype("float32")}
    return metrics, after.opt.trace


def perceptual(a, b):
    return jnp.abs(a - b).mean((1, 2, 3))


def furthest(found, expected):
    """The largest difference of any gradient, relative to its own largest value or, where that is rounding alone (keys'
    biases, to which a softmax is blind), to 1e-2 of the largest of all."""
    top = max(float(jnp.abs(array).max()) for array in expected.values())
    errors = {
        path: float(jnp.abs(found[path] - array).max() / jnp.maximum(jnp.abs(array).max(), 1e-2 * top))
        for path, array in expected.items()
    }
    return max(errors.values())


TRAINED = {"stage1": r"denoising_unet\.(up_blocks|conv)", "vae": r"vae\.(encoder\.conv_in|.*quant|decoder\.mid)"}


@pytest.fixture(scope="module", params=TRAINED)
def whole(request, micro, micro_params, batch, compile_fast):
    """A stage's configuration, and its step over the whole batch in float32 without rematerialisation."""
    options = VAELossConfig(crop=16, perceptual_crops=100)
    loss = DiffusionLossConfig(weighting="min_snr", person_weight=2.0, noise_offset=0.05, condition_dropout=0.5)
    config = TrainConfig(stage=request.param, output="runs/test", preset=MICRO, loss=loss, vae_loss=options)
    return config, *gradients(micro, micro_params, config, batch, TRAINED[config.stage])


def test_micro_batches_have_the_gradient_of_the_batch(whole, micro, micro_params, batch):
    config, metrics, expected = whole
    accumulated, found = gradients(micro, micro_params, config, batch, TRAINED[config.stage], accumulate=CLIPS)
    assert furthest(found, expected) < 1e-5
    assert accumulated.keys() == metrics.keys()
    for name in ("loss", "grad_norm"):
        assert accumulated[name] == pytest.approx(float(metrics[name]), rel=1e-5)


def test_micro_batches_must_divide_the_batch():
    with pytest.raises(UserError, match=r"--accumulate 3: must divide --data\.batch 4"):
        step.micro_batches({"x": jnp.zeros((4, 2))}, 3)
    parts = step.micro_batches({"x": jnp.arange(6)}, 3)["x"]
    assert parts.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.fixture(scope="module")
def unet_gradients(model, compile_fast):
    """Gradients of the whole denoising UNet, a function of the policy; and how many layers it computes twice."""
    graphdef, params = split_model(model.denoising_unet)
    x, token = jax.random.normal(KEY, (1, 2, 5, 4, 4)), jax.random.normal(KEY, (1, 8))

    def run(policy):
        def objective(params):
            unet = merge_model(graphdef, params)
            unet.remat = policy
            reference = {path: jnp.ones((1, 3, 8)) for path in unet.spatial_transformers()}
            return jnp.square(unet(x, jnp.full((1, 1), 50.0), unet.precompute_conditioning(token, reference))[0]).mean()

        twice = [eqn for eqn in jax.make_jaxpr(objective)(params).eqns if "remat" in eqn.primitive.name]
        return jax.jit(jax.grad(objective))(params), len(twice)

    return run


def test_rematerialisation_changes_no_gradient(unet_gradients):
    expected, count = unet_gradients("none")
    assert count == 0 and furthest({path: 1.1 * array for path, array in expected.items()}, expected) > 0.09
    for policy in ("blocks", "dots"):
        found, count = unet_gradients(policy)
        # down: resnet, temporal; middle: resnet, spatial, temporal, resnet; up: as down, twice
        assert count == 2 + 4 + 4
        assert furthest(found, expected) < 1e-5


def test_rematerialisation_reaches_both_unets(micro_params):
    """Of the model that a run's step is given."""

    def loss(model, batch, key):
        seen.extend([model.reference_unet.remat, model.denoising_unet.remat])
        return model.vae.quant_conv.bias[...].sum(), {}

    for policy in ("dots", "none"):
        seen: list[str] = []
        program = step.make_program(dataclasses.replace(STAGE1, remat=policy, trainable="vae"), loss, make_mesh())
        jax.eval_shape(program.step, program.abstract, {"x": jnp.zeros(1)}, KEY)
        assert set(seen) == {policy} and len(seen) >= 2


def test_bfloat16_passes_keep_float32_masters(whole, micro, micro_params, batch):
    """Gradients agree in direction; bfloat16 has 8 bits, so no closer bound on single numbers holds."""
    config, metrics, expected = whole
    config = dataclasses.replace(config, compute_dtype="bfloat16")
    half, found = gradients(micro, micro_params, config, batch, TRAINED[config.stage], compute_dtype="bfloat16")
    assert half["loss"] == pytest.approx(float(metrics["loss"]), rel=0.02)
    dot = sum(float(jnp.vdot(found[path], array)) for path, array in expected.items())
    assert dot / float(half["grad_norm"] * metrics["grad_norm"]) > 0.99


def test_bfloat16_reaches_the_unet(micro, micro_params, batch, monkeypatch):
    seen = {}

    def denoise(self, x_t, t, conditioning, pose, temporal):
        seen.update(
            x_t=x_t.dtype,
            t=t.dtype,
            pose=pose.dtype,
            residual=conditioning["mid_block.attentions.0"].clip_residual.dtype,
        )
        return x_t

    monkeypatch.setattr(AnimateAnyone, "denoise", denoise)
    config = dataclasses.replace(STAGE2, compute_dtype="bfloat16")
    loss = losses.DiffusionLoss(config)
    state = make_state(micro_params, r".*motion_modules", optax.sgd(1.0), ema=False, frozen_bf16=r"vae|image_encoder")
    assert state.frozen["vae.quant_conv.bias"].dtype == jnp.bfloat16
    assert state.frozen["denoising_unet.conv_in.bias"].dtype == jnp.float32
    apply = step.make_step(abstract_model(micro.model)[0], loss, optax.sgd(1.0), ema=0.0, compute_dtype="bfloat16")
    jax.eval_shape(apply, state, batch, KEY)
    assert seen == {"x_t": jnp.bfloat16, "t": jnp.float32, "pose": jnp.bfloat16, "residual": jnp.bfloat16}


def floor_of(model, schedule, batch):
    """The least loss of x0 prediction. Targets are drawn from the autoencoder's posterior, so even who knows every
    clip's mean by heart is left with a Gaussian's uncertainty: v (1 - a) / (a v + 1 - a) of variance v at alpha_bar a.
    """
    variance = np.exp(model.vae.encode(losses.merge_frames(to_signed(batch.frames)))[1]).astype(np.float64).ravel()
    a = schedule.alphas_cumprod[::20, None].astype(np.float64)
    return (variance * (1 - a) / (a * variance + 1 - a)).mean()


@pytest.mark.slow  # two compilations of the whole model, then some hundred steps of each
@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_overfitting_four_clips(name, micro, micro_params, model):
    """With the configuration's own choice of what is trained, and its autoencoder held in bfloat16. Stage 1 falls to
    within a fifth of its floor; stage 2, whose spatial layers are random here and stay so, falls. Trained parameters
    move, and no frozen one changes by a bit."""
    config = runpy.run_path(f"configs/{name}.py")["get_config"]()
    config = dataclasses.replace(
        config,
        data=DataConfig(batch=4, frames=FRAMES),
        compute_dtype="float32",
        remat="none",
        loss=DiffusionLossConfig(condition_dropout=0.0),
    )
    batch, steps = four_clips(), {"stage1": 450, "stage2": 150}[name]
    tx = make_optimizer(dataclasses.replace(config.optim, learning_rate=3e-3, weight_decay=0.0), 600)
    first = make_state(micro_params, config.trainable, tx, ema=False, frozen_bf16=config.frozen_bf16)
    loss = losses.DiffusionLoss(config)
    apply = jax.jit(step.make_step(abstract_model(micro.model)[0], loss, tx, ema=0.0))
    state, values = first, []
    for _ in range(steps):
        state, metrics = apply(state, batch, KEY)
        values.append(float(metrics["loss"]))
    start, end = values[0], np.mean(values[-50:])
    if name == "stage1":
        assert end < 1.2 * floor_of(model, make_schedule(micro.schedule), batch) < 0.6 * start
    else:
        assert end < 0.85 * start
    for path, array in first.frozen.items():
        np.testing.assert_array_equal(state.frozen[path], array, err_msg=path)
    moved = [path for path, array in first.trainable.items() if (state.trainable[path] != array).any()]
    assert len(moved) > 0.7 * len(first.trainable)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_what_the_stages_train(name, micro_params):
    """Stage 1: UNets and Pose Guiders but no temporal layer; stage 2: temporal layers alone. (That frozen parameters
    stay the same in a step, `test_step.py` sees.)"""
    config = runpy.run_path(f"configs/{name}.py")["get_config"]()
    state = make_state(micro_params, config.trainable, optax.identity(), ema=False, frozen_bf16=config.frozen_bf16)
    temporal = {path for path in micro_params if ".motion_modules." in path}
    known = {path for path in micro_params if path.startswith(("vae.", "image_encoder."))}
    assert state.trainable.keys() == (temporal if name == "stage2" else micro_params.keys() - temporal - known)
    assert {path for path, array in state.frozen.items() if array.dtype == jnp.bfloat16} == known


def four_clips():
    """Two colours each, the boundary moves; the pose shows where it is."""
    column = np.arange(48)[None, :, None]
    edge = 8 + 8 * np.arange(1 + FRAMES)
    left = (column < edge[:, None, None, None]).astype(np.float32) * np.ones((64, 1, 1))  # [F, H, W, 1]
    colours = np.random.default_rng(0).integers(0, 256, (4, 2, 3)).astype(np.float32)
    video = left * colours[:, 0, None, None, None] + (1 - left) * colours[:, 1, None, None, None]
    pose = np.broadcast_to(255 * left, (4, *left.shape[:3], 3))
    clips = {
        "reference": video[:, 0],
        "reference_pose": pose[:, 0],
        "frames": video[:, 1:],
        "poses": pose[:, 1:],
        "masks": np.zeros((4, FRAMES, 64, 48)),
    }
    clip_pixels = jnp.asarray(video[:, 0, ::4, ::3] / 128 - 1, jnp.float32)
    return Batch(**{name: jnp.asarray(array, jnp.uint8) for name, array in clips.items()}, clip_pixels=clip_pixels)
