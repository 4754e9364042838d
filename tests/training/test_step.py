"""The losses, with predictors that are known in closed form, and the pure step around them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from animate_jax.config import DataConfig, DiffusionLossConfig, TrainConfig, VAELossConfig
from animate_jax.diffusion.losses import loss_weight
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.images import to_signed
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.params import abstract_model, merge_model
from animate_jax.models.pose_guider import PoseGuider
from animate_jax.models.vae import AutoencoderKL
from animate_jax.training import losses, step
from animate_jax.training.state import make_state
from tests.conftest import MICRO, using
from tests.training.conftest import CLIPS, FRAMES

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

KEY = jax.random.key(0)
STAGE1, STAGE2 = (TrainConfig(stage=stage, output="runs/test", preset=MICRO) for stage in ("stage1", "stage2"))


def with_loss(config, **options):
    return dataclasses.replace(config, loss=DiffusionLossConfig(**options))


def predicting(preset, prediction):
    schedule = dataclasses.replace(preset.schedule, prediction=prediction, zero_terminal_snr=prediction != "epsilon")
    return dataclasses.replace(preset, schedule=schedule)


@pytest.fixture(scope="module")
def model(micro, micro_params):
    return merge_model(abstract_model(micro.model)[0], micro_params)


class Watched:
    """Puts a predictor in the model's place, keeps what it was asked, and knows the latents."""

    def __init__(self, monkeypatch, preset):
        self.schedule, self.error = make_schedule(preset.schedule), 0.0
        latents = jax.random.normal(jax.random.key(5), (CLIPS, 1 + FRAMES, 16, 12, 4))
        self.reference, self.x0 = latents[:, :1], latents[:, 1:]
        monkeypatch.setattr(losses, "encode", self.encode)
        monkeypatch.setattr(AnimateAnyone, "precompute_conditioning", self.precompute_conditioning)
        monkeypatch.setattr(AnimateAnyone, "denoise", self.denoise)
        monkeypatch.setattr(PoseGuider, "__call__", lambda _, pose: pose[:, :, ::4, ::4])

    def encode(self, vae, pictures, noise):
        return self.reference if noise.shape[1] == 1 else self.x0

    def precompute_conditioning(self, reference, clip_pixels, reference_pose, keep):
        self.keep = keep
        return {}

    def denoise(self, x_t, t, conditioning, pose, temporal):
        self.t, self.temporal = t, temporal
        times = jnp.broadcast_to(t.astype(jnp.int32), (CLIPS, FRAMES))
        signal, sigma = self.schedule._signal_and_noise(x_t, times)
        self.noise = (x_t - signal * self.x0) / sigma
        self.target = self.schedule.target(self.x0, self.noise, times)
        return self.target + self.error


@pytest.mark.parametrize("config", [STAGE1, STAGE2], ids=["stage1", "stage2"])
@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon"])
def test_the_perfect_predictor_has_no_loss(config, prediction, micro, model, batch, monkeypatch):
    preset = predicting(micro, prediction)
    watched = Watched(monkeypatch, preset)
    loss = losses.DiffusionLoss(
        using(with_loss(config, weighting="min_snr", person_weight=2.0, noise_offset=0.05), preset)
    )
    value, metrics = loss(model, batch, KEY)
    assert value < 1e-4 and metrics["mse"] < 1e-4
    assert abs(watched.noise.std() - 1) < 0.1  # it was asked about noisy latents
    watched.error = 0.5
    value, metrics = loss(model, batch, KEY)
    assert value > 1e-3 and metrics["mse"] == pytest.approx(0.25, rel=1e-3)


def test_the_warped_reference_costs_nothing_at_first_and_is_learned(micro, micro_copying, model, micro_params, batch):
    graphdef, shapes = abstract_model(micro_copying.model)
    fresh = {path: jnp.zeros(leaf.shape) for path, leaf in shapes.items()} | micro_params
    for path in fresh:  # at zero, the layer behind would have no gradient
        if path.startswith("appearance_blend.") and not path.startswith("appearance_blend.conv_out"):
            fresh[path] += 0.1
    random = np.random.default_rng(1)
    shapes = {"background": (64, 48, 3), "warp": (FRAMES, 64, 48, 3), "warp_masks": (FRAMES, 64, 48, 2)}
    warped = {name: jnp.asarray(random.integers(0, 256, (CLIPS, *shape)), jnp.uint8) for name, shape in shapes.items()}
    config = with_loss(STAGE1, pixels_weight=1.0, perceptual_crop=32)

    @jax.jit
    def gradients(params):
        def objective(params):
            return loss(merge_model(graphdef, params), batch._replace(**warped), KEY)

        return jax.value_and_grad(objective, has_aux=True)(params)

    loss = losses.DiffusionLoss(using(config, micro_copying))
    (_, metrics), grads = gradients(fresh)
    _, plain = jax.jit(losses.DiffusionLoss(config))(model, batch, KEY)
    assert metrics["mse"] == pytest.approx(float(plain["mse"]), rel=1e-5)
    assert metrics["l1"] != pytest.approx(float(plain["l1"]), rel=1e-3)  # half of the warp's pixels already
    last = "appearance_blend.conv_out", "appearance_guider.conv_in", "denoising_unet.appearance_conv_out"
    added = [path for path in fresh if path.startswith(last)]
    assert len(added) == 6 and all(jnp.abs(grads[path]).max() > 1e-6 for path in added)
    with pytest.raises(UserError, match="give --prediction x0"):
        losses.DiffusionLoss(using(config, predicting(micro_copying, "v")))


def test_stage_1_gives_every_frame_its_own_time_and_skips_the_temporal_layers(micro, model, batch, monkeypatch):
    watched = Watched(monkeypatch, micro)
    losses.DiffusionLoss(STAGE1)(model, batch, KEY)
    assert watched.temporal is False and watched.t.shape == (CLIPS, FRAMES)
    # stratified: one time in every eighth of the noise levels
    assert sorted((watched.t.ravel() // 125).tolist()) == list(range(8))


@pytest.mark.parametrize("config", [STAGE1, STAGE2], ids=["stage1", "stage2"])
def test_a_timestep_shift_of_3_puts_the_middle_of_the_draws_at_three_quarters(config, micro, model, batch, monkeypatch):
    watched, drawn = Watched(monkeypatch, micro), []
    for seed in range(20):
        losses.DiffusionLoss(with_loss(config, timestep_shift=3.0))(model, batch, jax.random.key(seed))
        drawn.append(watched.t)
    drawn = np.concatenate(drawn)
    assert abs(np.median(drawn) - 750) < 60 and drawn.min() < 200 and 950 < drawn.max() < 1000
    with pytest.raises(UserError, match=r"--loss\.timestep-shift 0"):
        losses.DiffusionLoss(with_loss(config, timestep_shift=0.0))


@pytest.mark.parametrize("config", [STAGE1, STAGE2], ids=["stage1", "stage2"])
@pytest.mark.parametrize("prediction, error", [("x0", 0.5), ("v", -0.5)])
def test_scheduled_sampling_denoises_what_the_model_made_of_pure_noise(
    config, prediction, error, micro, model, batch, monkeypatch
):
    preset = predicting(micro, prediction)
    watched, asked = Watched(monkeypatch, preset), []
    watched.error = error  # at pure noise the prediction is x0, or -x0: what is made is x0 + 0.5 both times

    def denoise(x_t, t, *rest):
        asked.append((x_t, jnp.broadcast_to(t.astype(jnp.int32), (CLIPS, FRAMES))))
        return watched.denoise(x_t, t, *rest)

    monkeypatch.setattr(AnimateAnyone, "denoise", lambda self, *inputs: denoise(*inputs))
    full = with_loss(config, scheduled_sampling=1.0, weighting="x0")
    value, metrics = losses.DiffusionLoss(using(full, preset))(model, batch, KEY)
    (pure, last), (x_t, t) = asked
    assert (np.asarray(last) == 999).all()
    np.testing.assert_allclose(x_t, watched.schedule.add_noise(watched.x0 + 0.5, pure, t), atol=1e-4)
    assert metrics["mse"] == pytest.approx(0.25, rel=1e-3)  # the target is still x0's
    assert value == pytest.approx(0.25, rel=1e-3)  # the weight that pure noise has, not up to 5
    watched.error, asked[:] = 0.0, []
    assert losses.DiffusionLoss(using(full, preset))(model, batch, KEY)[0] < 1e-4
    losses.DiffusionLoss(using(config, preset))(model, batch, KEY)
    assert len(asked) == 3  # twice with, once without
    with pytest.raises(UserError, match=r"--loss\.scheduled-sampling 1\.5"):
        losses.DiffusionLoss(using(with_loss(config, scheduled_sampling=1.5), preset))


def test_scheduled_sampling_takes_its_share_of_the_clips(micro, micro_params, batch):
    loss = losses.DiffusionLoss(with_loss(STAGE1, scheduled_sampling=0.5))
    owned = [loss.sample_randomness(batch, jax.random.key(seed))["use_own_sample"].mean() for seed in range(200)]
    assert 0.4 < np.mean(owned) < 0.6
    randomness = loss.sample_randomness(batch, KEY)

    @jax.jit
    def value(own):
        model = merge_model(abstract_model(micro.model)[0], micro_params)
        return loss.compute(model, batch, {**randomness, "use_own_sample": own.reshape(CLIPS, 1, 1, 1, 1)})[0]

    rows = [float(value(jnp.array(own))) for own in ([True, False], [False, True], [False, False], [True, True])]
    # the mean of rows: what each changes adds up
    assert rows[0] + rows[1] == pytest.approx(rows[2] + rows[3], rel=1e-5) and rows[0] != rows[2] != rows[3]


def test_the_flicker_loss_sees_what_changes_where_the_true_frames_stand_still(micro, model, batch, monkeypatch):
    preset, weight = predicting(micro, "x0"), 3.0
    watched = Watched(monkeypatch, preset)
    watched.x0 = jnp.broadcast_to(watched.x0[:, :1], watched.x0.shape)
    loss = losses.DiffusionLoss(using(with_loss(STAGE2, flicker_weight=weight), preset))
    right = np.arange(12) >= 6  # of the latents' columns
    pixels = np.repeat(right, 4)
    moves = 3 * np.arange(FRAMES, dtype=np.uint8).reshape(FRAMES, 1, 1, 1)
    noise = 2 * (np.arange(FRAMES, dtype=np.uint8) % 2).reshape(FRAMES, 1, 1, 1)  # an encoder's
    frames = np.broadcast_to(np.where(pixels[:, None], noise, moves), batch.frames.shape[1:])
    batch = batch._replace(frames=jnp.asarray(np.broadcast_to(frames, batch.frames.shape)))
    watched.error = 0.5
    value, metrics = loss(model, batch, KEY)
    assert metrics["flicker"] < 1e-6 and value == pytest.approx(0.25, rel=1e-3)
    flicker = jnp.array([0.5, -0.5, 0.5, -0.5]).reshape(FRAMES, 1, 1, 1)
    watched.error = flicker * ~right[:, None]
    assert loss(model, batch, KEY)[1]["flicker"] < 1e-5
    watched.error = flicker * right[:, None]
    value, metrics = loss(model, batch, KEY)
    assert metrics["flicker"] == pytest.approx(1.0, rel=1e-3) and value == pytest.approx(0.125 + weight, rel=1e-3)
    nothing_still = batch._replace(frames=jnp.asarray(np.broadcast_to(moves, batch.frames.shape)))
    assert loss(model, nothing_still, KEY)[1]["flicker"] == 0
    stage1 = losses.DiffusionLoss(using(with_loss(STAGE1, flicker_weight=weight), preset))
    assert stage1(model, batch, KEY)[0] == pytest.approx(0.125, rel=1e-3)


@pytest.mark.parametrize("config, frames", [(STAGE1, 1), (STAGE2, 3)], ids=["stage1", "stage2"])
def test_the_perceptual_loss_sees_the_same_squares_of_the_same_frames(config, frames, micro, model, batch, monkeypatch):
    watched, weight = Watched(monkeypatch, predicting(micro, "v")), 0.3
    watched.x0 = jnp.pad(to_signed(batch.frames)[:, :, ::4, ::4], [(0, 0)] * 4 + [(0, 1)])
    monkeypatch.setattr(AutoencoderKL, "to_images", lambda self, z: z.repeat(4, 1).repeat(4, 2)[..., :3])
    seen = []

    def distance(a, b):
        seen.append((a, b))
        return jnp.full(len(a), 2.0)

    config = with_loss(config, perceptual_weight=weight, perceptual_crop=16, perceptual_frames=frames)
    value, metrics = losses.DiffusionLoss(using(config, predicting(micro, "v")), distance)(model, batch, KEY)
    ((true, made),) = seen
    assert true.shape == made.shape == (CLIPS * frames, 16, 16, 3)
    np.testing.assert_allclose(true[:, ::4, ::4], made[:, ::4, ::4], atol=1e-5)
    assert len(np.unique(true, axis=0)) == CLIPS * frames  # no frame twice
    assert metrics["lpips"] == 2.0 and value == pytest.approx(weight * 2.0, abs=1e-4)
    with pytest.raises(UserError, match=r"--loss\.perceptual-crop 52: must be a multiple of 4, at most 48"):
        config = with_loss(config, perceptual_weight=weight, perceptual_crop=52)
        losses.DiffusionLoss(config, distance)(model, batch, KEY)
    with pytest.raises(UserError, match=r"--loss\.perceptual-frames 0: must be at least 1"):
        losses.DiffusionLoss(with_loss(config, perceptual_frames=0), distance)


def test_stage_2_gives_every_clip_one_time_and_runs_the_temporal_layers(micro, model, batch, monkeypatch):
    watched = Watched(monkeypatch, micro)
    losses.DiffusionLoss(STAGE2)(model, batch, KEY)
    assert watched.temporal is True and watched.t.shape == (CLIPS, 1)
    assert sorted((watched.t.ravel() // 500).tolist()) == [0, 1]


@pytest.mark.parametrize("config, shared", [(STAGE2, True), (STAGE2, False), (STAGE1, True)])
def test_noise_is_shared_by_the_frames_of_a_clip_only_if_asked_and_only_in_stage_2(
    config, shared, micro, model, batch, monkeypatch
):
    watched = Watched(monkeypatch, micro)
    losses.DiffusionLoss(with_loss(config, shared_noise=shared))(model, batch, KEY)
    spread = np.abs(watched.noise - watched.noise[:, :1]).max()
    assert spread < 1e-2 if shared and config is STAGE2 else spread > 1


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_condition_dropout(dropout, micro, model, batch, monkeypatch):
    watched = Watched(monkeypatch, micro)
    losses.DiffusionLoss(with_loss(STAGE1, condition_dropout=dropout))(model, batch, KEY)
    assert watched.keep.tolist() == [dropout == 0.0] * CLIPS


def test_the_person_counts_more(micro, model, batch, monkeypatch):
    """The person is the left half. Weight 1 + 2 there and 1 elsewhere, scaled to mean 1: 1.5 and 0.5."""
    watched = Watched(monkeypatch, micro)
    loss = losses.DiffusionLoss(with_loss(STAGE1, person_weight=2.0))
    left = jnp.zeros(watched.x0.shape).at[:, :, :, :6].set(1.0)
    for error, expected in ((left, 1.5 / 2), (1 - left, 0.5 / 2)):
        watched.error = error
        assert loss(model, batch, KEY)[0] == pytest.approx(expected, rel=1e-4)


def test_the_weighting_is_that_of_each_samples_own_time(micro, model, batch, monkeypatch):
    watched = Watched(monkeypatch, micro)
    watched.error = 1.0
    value, metrics = losses.DiffusionLoss(with_loss(STAGE1, weighting="x0"))(model, batch, KEY)
    weights = loss_weight(watched.schedule, watched.t.ravel().astype(jnp.int32), "x0")
    assert np.ptp(weights) > 1
    assert value == pytest.approx(float(weights.mean()), rel=1e-4)
    assert metrics["mse"] == pytest.approx(1, rel=1e-4)  # reported without weight


def test_errors_are_reported_by_noise_level(micro, model, batch, monkeypatch):
    """Two clips of stage 2 hit two of the four quarters; the others say that they have no number."""
    watched = Watched(monkeypatch, micro)
    watched.error = jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1, 1)
    _, metrics = losses.DiffusionLoss(STAGE2)(model, batch, KEY)
    expected = dict.fromkeys(range(4), np.nan)
    for quarter, error in zip((watched.t.ravel() // 250).astype(int).tolist(), (1.0, 4.0), strict=True):
        expected[quarter] = error
    found = [metrics[f"mse_q{q}"] for q in range(4)]
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-4)


def test_more_frames_than_the_temporal_layers_take(micro):
    config = dataclasses.replace(STAGE2, data=DataConfig(frames=9))
    with pytest.raises(UserError, match=r"--data\.frames 9: .* at most 8"):
        losses.DiffusionLoss(config)
    losses.DiffusionLoss(dataclasses.replace(STAGE1, data=DataConfig(frames=9)))


def test_latents_are_drawn_from_the_scaled_posterior(model, monkeypatch):
    mean, log_variance = jnp.full((6, 16, 12, 4), 3.0), jnp.full((6, 16, 12, 4), 2 * np.log(0.5))
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, pictures: (mean, log_variance))
    vae = model.vae
    monkeypatch.setattr(vae, "config", dataclasses.replace(vae.config, scaling_factor=0.2))
    noise = jax.random.normal(KEY, (2, 3, 16, 12, 4))
    latents = losses.encode(vae, jnp.zeros((2, 3, 64, 48, 3)), noise)
    assert latents.shape == (2, 3, 16, 12, 4)
    assert latents.mean() == pytest.approx(0.6, abs=0.01) and latents.std() == pytest.approx(0.1, abs=0.01)


VAE = TrainConfig(
    stage="vae",
    output="runs/test",
    preset=MICRO,
    vae_loss=VAELossConfig(crop=16, mse_weight=2.0, perceptual_weight=3.0, kl_weight=0.1),
)


@pytest.mark.parametrize("error, mean, sigma", [(0.0, 0.0, 1.0), (0.5, 0.0, 1.0), (0.0, 2.0, 0.5)])
def test_the_autoencoders_loss(error, mean, sigma, model, batch, monkeypatch):
    """A decoder that is off by `error` everywhere and an encoder that says N(mean, sigma), 4 channels."""
    seen = []

    def encode(self, images):
        seen.append(images)
        shape = (len(images), 4, 4, 4)
        return jnp.full(shape, mean), jnp.full(shape, 2 * jnp.log(sigma))

    monkeypatch.setattr(AutoencoderKL, "encode", encode)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, latents: seen[-1] + error)

    def perceptual(a, b):
        return jnp.full(len(a), 7.0) * jnp.abs(a - b).mean((1, 2, 3))

    value, metrics = losses.VAELoss(VAE, perceptual)(model, batch, KEY)
    assert seen[0].shape == (CLIPS * FRAMES, 16, 16, 3)
    kl = 4 * (0.5 * (mean**2 + sigma**2 - 1) - np.log(sigma))  # of two normal distributions, per position
    assert metrics["l1"] == pytest.approx(error, abs=1e-6) and metrics["mse"] == pytest.approx(error**2, abs=1e-6)
    assert metrics["kl"] == pytest.approx(kl, abs=1e-5)
    assert value == pytest.approx(error + 2 * error**2 + 3 * 7 * error + 0.1 * kl, abs=1e-5)
    if error:
        assert metrics["psnr"] == pytest.approx(10 * np.log10(4 / 0.25), rel=1e-5)  # [-1, 1]: the peak is 2


def test_crops_are_pieces_of_their_pictures_on_the_grid():
    rows, columns = np.mgrid[:64, :48]
    picture = np.stack([rows, columns, 0 * rows], -1).astype(np.float32)
    images = jnp.asarray(np.stack([picture + np.array([0, 0, i]) for i in range(30)]), jnp.float32)
    cut = np.asarray(losses.random_crop(images, 16, 8, KEY))
    corners = cut[:, 0, 0, :2].astype(int)
    for i, (y, x) in enumerate(corners):
        np.testing.assert_array_equal(cut[i], images[i, y : y + 16, x : x + 16])
    assert {y for y, _ in corners} == set(range(0, 49, 8)) and {x for _, x in corners} == set(range(0, 33, 8))


@pytest.mark.parametrize("size", [0, 12, 56])
def test_impossible_crops(size):
    with pytest.raises(UserError, match=rf"--vae-loss\.crop {size}: must be a multiple of 8, at most 48"):
        losses.random_crop(jnp.zeros((1, 64, 48, 3)), size, 8, KEY)


def test_a_step_moves_only_what_is_trained_and_draws_new_noise_each_time(micro, micro_params):
    """Gradient descent on a loss that pulls one bias towards the drawn number; every other parameter is frozen."""

    def loss(model, batch, key):
        drawn = jax.random.normal(key)
        bias = model.vae.quant_conv.bias[...]
        return 0.5 * jnp.square(bias - drawn).sum(), {"drawn": drawn}

    tx = optax.sgd(0.25)
    state = make_state(micro_params, r"vae\.quant_conv\.bias", tx, ema=True)
    apply = jax.jit(step.make_step(abstract_model(micro.model)[0], loss, tx, ema=0.999))
    first, metrics = apply(state, {}, KEY)
    second, later = apply(first, {}, KEY)
    name = "vae.quant_conv.bias"
    before, after = state.trainable[name], first.trainable[name]
    np.testing.assert_allclose(after, before + 0.25 * (metrics["drawn"] - before), rtol=1e-5, atol=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(jnp.linalg.norm(before - metrics["drawn"])), rel=1e-5)
    assert metrics["drawn"] != later["drawn"] and metrics["drawn"] == apply(state, {}, KEY)[1]["drawn"]
    assert int(second.step) == 2
    np.testing.assert_allclose(first.ema[name], 0.1 * before + 0.9 * after, rtol=1e-5, atol=1e-6)
    assert first.frozen.keys() == micro_params.keys() - {name}
    for path, array in first.frozen.items():
        np.testing.assert_array_equal(array, micro_params[path], err_msg=path)
