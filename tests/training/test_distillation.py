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
from animate_jax.diffusion.samplers import SAMPLERS, ddim_step
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

KEY, SKIP = jax.random.key(0), 20
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
    for times in ((999, 500), (20, 19), (1, 0)):
        value, metrics = loss.compute((model, model), batch, drawn(loss, batch, *times))
        assert value < 1e-4 and metrics["mse"] < 1e-5


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("prediction", ["x0", "v", "epsilon"])
def test_the_teachers_step_is_the_samplers(prediction, rescale, batch):
    config = predicting(prediction)
    sampling = dataclasses.replace(config.preset.sampling, guidance=3.0, guidance_rescale=rescale)
    config = dataclasses.replace(config, preset=dataclasses.replace(config.preset, sampling=sampling))
    loss, schedule = losses.DistillationLoss(config), make_schedule(config.preset.schedule)
    random = np.random.default_rng(1)
    without, conditional = (random.normal(size=X0.shape).astype(np.float32) for _ in range(2))
    teacher = Predictor(lambda x, t: jnp.stack([without, conditional], 1).reshape(x.shape))
    student = Predictor(lambda x, t: x)
    times = 999, 500
    loss.compute((student, teacher), batch, drawn(loss, batch, *times))
    (x_t, t), (earlier, previous) = student.asked
    ((rows, both),) = teacher.asked
    assert t.ravel().tolist() == list(times) and previous.ravel().tolist() == [979, 480]
    assert both.ravel().tolist() == [999, 999, 500, 500]
    np.testing.assert_array_equal(rows, np.repeat(x_t, 2, 0))
    guided = without + 3.0 * (conditional - without)
    if rescale:
        ratio = [c.std(ddof=1) / g.std(ddof=1) for c, g in zip(conditional, guided, strict=True)]
        guided *= (rescale * np.array(ratio) + 1 - rescale)[:, None, None, None, None]
    for clip, time in enumerate(times):
        expected = ddim_step(schedule, guided[clip], np.asarray(x_t[clip]), time, 1000 // SKIP)
        np.testing.assert_allclose(earlier[clip], expected, rtol=1e-4, atol=1e-4)


def test_the_last_steps_target_is_the_teachers_x0(batch):
    loss = losses.DistillationLoss(dataclasses.replace(CONFIG, distill=DistillConfig(guidance=1.0)))
    student, teacher = Predictor(lambda x, t: 0 * x + 1.5), Predictor(lambda x, t: 0 * x + 1.0)
    value, metrics = loss.compute((student, teacher), batch, drawn(loss, batch, 19, 3))
    assert metrics["mse"] == pytest.approx(0.25) and value == pytest.approx(0.499, rel=1e-3)
    assert len(teacher.asked[0][0]) == CLIPS  # not guided: no second half
    value, metrics = loss.compute((student, teacher), batch, drawn(loss, batch, 20, 999))
    assert metrics["mse"] == 0 and value == 0  # the student is consistent with itself


def test_only_the_students_prediction_has_a_gradient(batch):
    # A long step, so that what is compared differs.
    loss = losses.DistillationLoss(dataclasses.replace(CONFIG, distill=DistillConfig(skip=400)))
    random = drawn(loss, batch, 999, 500)

    def value(student, teacher, target=None):
        models = Predictor(lambda x, t: student * x), Predictor(lambda x, t: teacher * x)
        made = models[0].predict
        if target is not None:  # the second thing that the student is asked
            other = lambda x, t: made(x, t) if len(models[0].asked) == 1 else target * x  # noqa: E731
            object.__setattr__(models[0], "predict", other)
        return loss.compute(models, batch, random)[0]

    of_student, of_teacher = jax.grad(value, (0, 1))(0.7, 0.4)
    assert of_teacher == 0
    step = 1e-3
    numeric = (value(0.7 + step, 0.4, target=0.7) - value(0.7 - step, 0.4, target=0.7)) / (2 * step)
    assert abs(of_student) > 1e-2 and of_student == pytest.approx(float(numeric), rel=2e-2)


@pytest.mark.slow
def test_a_student_makes_in_one_pass_what_its_guided_teacher_makes_in_twenty(batch, monkeypatch):
    """Latents are normal, around one mean with the character and around another without: then the best prediction of
    x0 is linear in x_t. The student has a slope and an offset for every 50 timesteps."""
    config = dataclasses.replace(CONFIG, distill=DistillConfig(guidance=2.0, skip=100))
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

    wanted = sample(guided, 10)
    far = {steps: np.abs(sample(guided, steps) - wanted).mean() for steps in (1, 2)}  # two and four passes
    made = np.abs(sample(student, 1) - wanted).mean()
    assert made < 0.5 * far[2] and made < 0.3 * far[1]
    assert np.abs(sample(not_guided, 10) - wanted).mean() > 10 * made


@pytest.mark.parametrize(
    "fields, complaint",
    [
        (
            {"loss": DiffusionLossConfig(perceptual_weight=0.5)},
            r"--loss\.perceptual-weight 0\.5: is for stages 1",
        ),
        ({"loss": DiffusionLossConfig(weighting="x0")}, r"--loss\.weighting x0: is for stages 1"),
        ({"distill": DistillConfig(skip=0)}, r"--distill\.skip 0: must be 1 to 999"),
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
