"""Distillation: the loss, with predictors that are known in closed form, and runs that keep their teacher."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.commands.train import with_carried_preset
from animate_jax.config import DiffusionLossConfig, DistillConfig, LoraConfig, TrainConfig
from animate_jax.diffusion.guidance import apply_guidance
from animate_jax.diffusion.samplers import SAMPLERS, ddim_step, timesteps
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.lora import is_adapter, make_adapter
from animate_jax.parallel.rules import RULES
from animate_jax.presets import preset_of
from animate_jax.training import losses
from animate_jax.training.loop import run
from animate_jax.training.state import TEACHER, make_state, sampling_params, saved_params, split_teacher
from tests.conftest import MICRO
from tests.training.conftest import CLIPS, FRAMES, TRAINED, Numbers, assert_equal, changed, pulling, refusal

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

KEY, TIMES = jax.random.key(0), (249, 499, 749, 999)
CONFIG = TrainConfig(stage="distill", output="runs/test", preset=MICRO)  # samples with guidance 2


def predicting(prediction):
    zero = prediction != "epsilon"
    schedule = dataclasses.replace(MICRO.schedule, prediction=prediction, zero_terminal_snr=zero)
    return dataclasses.replace(CONFIG, preset=dataclasses.replace(MICRO, schedule=schedule))


class Predictor(AnimateAnyone):
    """In a model's place; keeps what it is asked."""

    vae = None

    def __init__(self, predict):
        for name, value in (("predict", predict), ("asked", [])):
            object.__setattr__(self, name, value)  # no part of a module

    def precompute_conditioning(self, reference, clip_pixels, reference_pose, keep):
        assert keep is None  # the student is never shown less than it will be
        return {}

    def pose_features(self, poses):
        return poses[:, :, ::4, ::4]

    def denoise(self, x, t, conditioning, pose, temporal):
        assert temporal and len(pose) == len(x) == len(t)
        self.asked.append((x, t))
        return self.predict(x, t.astype(jnp.int32))


LATENTS = jax.random.normal(jax.random.key(5), (CLIPS, 1 + FRAMES, 16, 12, 4))
X0 = LATENTS[:, 1:]


@pytest.fixture(autouse=True)
def latents(monkeypatch):
    monkeypatch.setattr(
        losses, "encode", lambda vae, images, noise: LATENTS[:, :1] if noise.shape[1] == 1 else LATENTS[:, 1:]
    )


def drawn(loss, batch, *times):
    return loss.sample_randomness(batch, KEY) | {"t": jnp.array(times)[:, None]}


def perfect(config):
    """What is right for the true x0, of both halves of guidance."""
    schedule = make_schedule(preset_of(config).schedule)

    def predict(x, t):
        x0 = jnp.repeat(X0, len(x) // CLIPS, 0)
        t = jnp.broadcast_to(t, x.shape[:2])
        signal, sigma = schedule._signal_and_noise(x, t)
        return schedule.target(x0, (x - signal * x0) / sigma, t)

    return predict


@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon"])
def test_the_perfect_teacher_is_a_perfect_student(prediction, batch):
    config = predicting(prediction)
    loss, model = losses.DistillationLoss(config), Predictor(perfect(config))
    for times in (TIMES[:2], TIMES[2:]):
        value, metrics = loss.compute((model, model), batch, drawn(loss, batch, *times))
        assert value < 1e-4 and metrics["mse"] < 1e-5


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon"])
def test_one_step_to_the_target_leads_where_the_teachers_sampler_leads(prediction, rescale):
    config = predicting(prediction)
    sampling = dataclasses.replace(config.preset.sampling, guidance=3.0, guidance_rescale=rescale)
    config = dataclasses.replace(config, preset=dataclasses.replace(config.preset, sampling=sampling))
    loss, schedule = losses.DistillationLoss(config), make_schedule(config.preset.schedule)
    weights = np.array([0.3, 0.8], np.float32).reshape(2, 1, 1, 1, 1)  # without and with the character

    def halves(x, t):
        return weights * np.cos(3 * x + t / 500)

    def predict(x, t):  # rows in pairs
        pairs = x.reshape(-1, 2, *x.shape[1:]), t.reshape(-1, 2, 1, 1, 1, 1)
        return (weights * jnp.cos(3 * pairs[0] + pairs[1] / 500)).reshape(x.shape)

    rows = jnp.repeat(X0[:1], 4, 0)
    target = np.asarray(loss._target(predict, rows, jnp.array(TIMES)[:, None]))
    for row, time in enumerate(TIMES):
        x = x_t = np.asarray(rows[row : row + 1])
        for t in range(time, time - 250, -50):
            x = ddim_step(schedule, apply_guidance(*np.split(halves(x, t), 2), 3.0, rescale), x, t, 20)
        x0 = target[row : row + 1]
        signal, sigma = (np.asarray(number) for number in schedule._signal_and_noise(x_t, time))
        made = schedule.target(x0, (x_t - signal * x0) / sigma, time)
        np.testing.assert_allclose(ddim_step(schedule, made, x_t, time, 4), x, rtol=1e-3, atol=1e-3)


def test_a_teacher_without_guidance_is_asked_once(batch):
    loss = losses.DistillationLoss(dataclasses.replace(CONFIG, distill=DistillConfig(guidance=1.0)))
    student, teacher = Predictor(lambda x, t: 0 * x + 1.5), Predictor(lambda x, t: 0 * x + 1.0)
    value, metrics = loss.compute((student, teacher), batch, drawn(loss, batch, 999, 499))
    assert metrics["mse"] == pytest.approx(0.25, rel=1e-3) and value == pytest.approx(0.499, rel=1e-3)
    assert len(teacher.asked[0][0]) == CLIPS


def test_the_student_is_trained_where_it_samples(batch):
    loss = losses.DistillationLoss(CONFIG)
    seen = [loss.sample_randomness(batch, jax.random.key(seed))["t"].ravel().tolist() for seed in range(40)]
    assert {t for times in seen for t in times} == set(TIMES) == set(timesteps(4, loss.schedule).tolist())


def test_only_the_students_prediction_has_a_gradient(batch):
    loss = losses.DistillationLoss(CONFIG)

    def value(student, teacher):
        models = Predictor(lambda x, t: student * x), Predictor(lambda x, t: teacher * x)
        return loss.compute(models, batch, drawn(loss, batch, 999, 499))[0]

    of_student, of_teacher = jax.grad(value, (0, 1))(0.7, 0.4)
    assert of_teacher == 0 and abs(of_student) > 1e-2


@pytest.mark.slow
def test_a_student_makes_in_four_passes_what_its_guided_teacher_makes_in_forty(batch, monkeypatch):
    """Latents are normal, around one mean with the character and around another without: then the best prediction of
    x0 is linear in x_t. The student has a slope and an offset for every 50 timesteps."""
    config = dataclasses.replace(CONFIG, distill=DistillConfig(guidance=2.0))
    loss, schedule = losses.DistillationLoss(config), make_schedule(MICRO.schedule)
    means, spread = jnp.array([-0.5, 1.0]), 0.5  # without and with the character
    alpha_bar = jnp.asarray(schedule.alphas_cumprod)

    def best(x, t, mean):
        signal, variance = jnp.sqrt(alpha_bar[t]), spread**2 * alpha_bar[t] + 1 - alpha_bar[t]
        return mean + spread**2 * signal / variance * (x - signal * mean)

    def teach(x, t):  # rows in pairs
        time = t.reshape(-1, 1, 1, 1, 1)
        return best(x, time, jnp.tile(means, len(x) // 2).reshape(-1, 1, 1, 1, 1))

    def student_of(table):
        def predict(x, t):
            place = t.reshape(-1, 1, 1, 1, 1) / 50
            slope, offset = (jnp.interp(place, jnp.arange(21.0), row) for row in table)
            return slope * x + offset

        return predict

    def value(table, key):
        keys = jax.random.split(key)
        monkeypatch.setattr(losses, "encode", lambda vae, images, noise: means[1] + spread * noise)
        models = Predictor(student_of(table)), Predictor(teach)
        return loss.compute(models, batch, loss.sample_randomness(batch, keys[0]))[0]

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 2000))

    def step(carry, key):
        table, state = carry
        updates, state = optimizer.update(jax.grad(value)(table, key), state)
        return (optax.apply_updates(table, updates), state), None

    table = jnp.array([jnp.ones(21), jnp.zeros(21)])
    keys = jax.random.split(KEY, 2000)
    (table, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((table, optimizer.init(table)))

    noise = np.random.default_rng(0).normal(size=(1, 200, 1, 1, 1)).astype(np.float32)

    def guided(x, t):
        return np.asarray(apply_guidance(*(best(x, int(t), mean) for mean in means), 2.0))

    def not_guided(x, t):
        return np.asarray(best(x, int(t), means[1]))

    def student(x, t):
        return np.asarray(student_of(table)(x, jnp.full(1, int(t))))

    def sample(predict, steps):
        return SAMPLERS["ddim"](predict, noise, schedule, steps, KEY[None])

    wanted = sample(guided, 20)
    of_teacher = {steps: np.abs(sample(guided, steps) - wanted).mean() for steps in (1, 2, 4)}
    made = {steps: np.abs(sample(student, steps) - wanted).mean() for steps in (1, 2, 4)}
    print(made, of_teacher, np.abs(sample(not_guided, 20) - wanted).mean(), wanted.std())
    assert made[4] < 0.2 * of_teacher[2]  # with as many passes
    assert np.abs(sample(not_guided, 20) - wanted).mean() > 10 * made[4]


@pytest.mark.parametrize(
    "fields, complaint",
    [
        (
            {"loss": DiffusionLossConfig(perceptual_weight=0.5)},
            r"--loss\.perceptual-weight 0\.5: is for stages 1",
        ),
        ({"loss": DiffusionLossConfig(weighting="x0")}, r"--loss\.weighting x0: is for stages 1"),
        ({"distill": DistillConfig(teacher_steps=3)}, r"--distill\.teacher-steps 3: must divide the 250 timesteps"),
    ],
)
def test_what_has_no_meaning_is_refused(fields, complaint):
    losses.make_loss(dataclasses.replace(CONFIG, loss=DiffusionLossConfig(shared_noise=True, timestep_shift=2.0)))
    with pytest.raises(UserError, match=complaint):
        losses.make_loss(dataclasses.replace(CONFIG, **fields))


def test_the_teacher_is_a_frozen_copy_that_no_checkpoint_holds(micro_params):
    state = make_state(micro_params, r"denoising_unet\.", optax.sgd(0.1), ema=True, teacher=jnp.bfloat16)
    copies = {path for path in state.frozen if path.startswith(TEACHER)}
    assert {path.removeprefix(TEACHER) for path in copies} == set(state.trainable)
    assert {state.frozen[path].dtype.name for path in copies} == {"bfloat16"}
    changed = state._replace(trainable={path: array + 1 for path, array in state.trainable.items()})
    student, teacher = split_teacher({**changed.frozen, **changed.trainable})
    assert student.keys() == teacher.keys() == micro_params.keys()
    assert_equal(teacher, {path: micro_params[path].astype(teacher[path].dtype) for path in teacher})
    path = "denoising_unet.conv_in.bias"
    np.testing.assert_array_equal(student[path], micro_params[path] + 1)
    assert sampling_params(state).keys() == saved_params(state).keys() == micro_params.keys()
    assert not any(pattern.startswith(TEACHER) for pattern, _ in RULES)  # it is divided as what it is a copy of


def test_beside_an_adapter_the_base_is_the_teacher(micro_params):
    adapter = make_adapter(micro_params, LoraConfig(rank=2), 0)
    student, teacher = split_teacher({**micro_params, **adapter})
    assert_equal(teacher, dict(micro_params))
    assert student.keys() - teacher.keys() == set(filter(is_adapter, student))


class Pull(losses.Loss):
    """One bias of the student is pulled to a number beyond the teacher's."""

    has_teacher = True

    def sample_randomness(self, batch, key):
        return {"noise": jax.random.normal(key, batch["number"].shape)}

    def compute(self, model, batch, randomness):
        student, teacher = (each.vae.quant_conv.bias[...] for each in model)
        wanted = teacher + 1 + 0.1 * (batch["number"] + randomness["noise"]).mean()
        return jnp.square(student - jax.lax.stop_gradient(wanted)).mean(), {"teacher": teacher.mean()}


@pytest.fixture
def config(tmp_path, micro_checkpoint):
    return changed(pulling(tmp_path / "run", micro_checkpoint), stage="distill", steps=4)


def test_a_stopped_run_goes_on_exactly_with_its_teacher(config, micro_params, tmp_path):
    finished = run(changed(config, output=str(tmp_path / "whole")), Pull(), Numbers())
    stopped = run(config, Pull(), Numbers(stop=2))
    assert int(stopped.step) == 2
    assert_equal(run(config, Pull(), Numbers()), finished)
    np.testing.assert_array_equal(finished.frozen[TEACHER + TRAINED], micro_params[TRAINED])
    assert np.abs(finished.trainable[TRAINED] - micro_params[TRAINED]).min() > 0.05


def test_a_run_is_a_checkpoint_that_samples_in_few_steps(config, micro_params):
    run(changed(config, steps=1), Pull(), Numbers())
    params, preset = checkpoint.load(config.output)
    assert params.keys() == micro_params.keys()
    assert (preset.sampling.steps, preset.sampling.guidance) == (4, 1.0)
    assert preset.schedule.timestep_spacing == "trailing" and preset.frames == MICRO.frames
    found = with_carried_preset(changed(config, steps=2), named=False)
    assert found.preset == MICRO  # not the student's own, which is not guided
    metadata = json.loads((checkpoint.find(config.output) / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    assert metadata["base"]["checkpoint"] == config.init and metadata["base"]["checksum"]


def test_a_teacher_is_needed(config):
    assert "--init: distillation needs the teacher" in refusal(changed(config, init=None), Pull(), Numbers())
