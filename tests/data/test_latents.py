"""Encoded frames: training on them is training on the pixels, and what they cannot be used for is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax.checkpoints import checkpoint
from animate_jax.config import DataConfig, DiffusionLossConfig, TrainConfig
from animate_jax.data.latents import encoding_of
from animate_jax.data.loader import batches
from animate_jax.data.records import RecordedClips, read_frames
from animate_jax.errors import UserError
from animate_jax.models.params import abstract_model, merge_model
from animate_jax.training.encoding import ENCODERS, EncodeOptions, check_encoded, encode
from animate_jax.training.losses import DiffusionLoss
from tests.conftest import MICRO, training

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]

EXACT = EncodeOptions(dtype="float32", mirrored=True, batch=7)
DATA = DataConfig(batch=4, frames=2, min_reference_distance=10, framing="frame", num_workers=0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory, write, clips):
    """Six clips in two shards."""
    return str(write(tmp_path_factory.mktemp("videos") / "set", [clips(n, 20) for n in range(6)]))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, compile_fast, videos, micro_checkpoint):
    folder = tmp_path_factory.mktemp("encoded") / "set"
    encode(videos, micro_checkpoint, folder, EXACT)
    return str(folder)


def first_batch(root, preset, **options):
    return next(batches(training(dataclasses.replace(DATA, root=root, **options), preset)))


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_loss_and_gradients_on_encoded_frames_are_those_on_pixels(stage, videos, encoded, micro, micro_params):
    """Half of the clips mirrored, the posterior's noise drawn alike."""
    graphdef, _ = abstract_model(micro.model)
    loss = DiffusionLoss(TrainConfig(stage=stage, output="", preset=micro))
    still = {path: array for path, array in micro_params.items() if ENCODERS.match(path)}
    trained = {path: array for path, array in micro_params.items() if path not in still}

    @jax.jit
    def of(trained, batch):
        return jax.value_and_grad(
            lambda trained: loss(merge_model(graphdef, trained | still), batch, jax.random.key(3)), has_aux=True
        )(trained)

    pixels, latents = (first_batch(root, micro, consecutive=stage == "stage2") for root in (videos, encoded))
    for name in ("reference_pose", "poses", "masks"):
        np.testing.assert_array_equal(getattr(pixels, name), getattr(latents, name))
    with_pixels, encoded = (
        {name for name, array in each._asdict().items() if array is not None} for each in (pixels, latents)
    )
    assert with_pixels - encoded == {"reference", "frames", "clip_pixels"}
    (_, expected), gradients = of(trained, pixels)
    (_, found), same = of(trained, latents)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    largest = max(float(np.abs(each).max()) for each in gradients.values())
    assert largest > 1e-3
    for path, gradient in gradients.items():
        np.testing.assert_allclose(same[path], gradient, rtol=1e-5, atol=1e-5 * largest, err_msg=path)
    other = of(trained, latents._replace(moments=latents.moments[::-1]))[0][1]["mse"]
    assert abs(other - expected["mse"]) > 1e-3, "it is the moments that are denoised"


def test_another_size_in_half_precision_beside_splits_of_videos(videos, tmp_path, micro, micro_checkpoint):
    shutil.copy(f"{videos}/clips-train.array_record-00000-of-00002", f"{videos}/clips-test.array_record-00000-of-00002")
    encode(videos, micro_checkpoint, tmp_path / "set", EncodeOptions(size=(24, 32)))
    encoding = encoding_of(str(tmp_path), "train")
    assert encoding.bytes == 2 * (8 * 6 * 8 + 8) and encoding_of(str(tmp_path), "test") is None
    assert (tmp_path / "set" / "clips-test.array_record-00000-of-00002").exists()
    small = dataclasses.replace(micro, frames=dataclasses.replace(micro.frames, width=24, height=32))
    batch = first_batch(str(tmp_path), small, flip=0.0)
    assert batch.moments.shape == (4, 2, 8, 6, 8) and batch.moments.dtype == np.float16
    assert np.isfinite(batch.moments).all() and batch.moments.std() > 0.01


def test_an_interrupted_encoding_goes_on_and_leaves_out_what_is_damaged(
    tmp_path, write, clips, micro, micro_checkpoint, encoded, capsys
):
    made = [dict(clips(n, 20)) for n in range(6)]
    made[3]["video"] = made[3]["video"][:600] + b"\0" * 2000
    root, output = str(write(tmp_path / "videos", made)), tmp_path / "set"
    output.mkdir()
    shutil.copy(f"{encoded}/latents.json", output)
    for name in ("train", "train_frames"):
        shutil.copy(f"{encoded}/clips-{name}.array_record-00000-of-00002", output)
    made_before = (output / "clips-train.array_record-00000-of-00002").stat().st_mtime_ns
    with pytest.raises(UserError, match="was begun with other options"):
        encode(root, micro_checkpoint, output, dataclasses.replace(EXACT, mirrored=False))
    encode(root, micro_checkpoint, output, EXACT)
    assert (output / "clips-train.array_record-00000-of-00002").stat().st_mtime_ns == made_before
    assert capsys.readouterr().err.count("left out: clip clip3 of") == 1
    assert [clip.id for clip in RecordedClips(str(output), "train")] == [f"clip{n}" for n in (0, 2, 4, 1, 5)]
    assert np.isfinite(first_batch(str(output), micro).moments).all()
    with pytest.raises(UserError, match="is there already"):
        encode(root, micro_checkpoint, output, EXACT)
    with pytest.raises(UserError, match="is encoded already"):
        encode(encoded, micro_checkpoint, tmp_path / "new", EXACT)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"framing": "person"}, "--data.framing person: .* give --data.framing frame"),
        ({"flip": 0.5, "size": (96, 128)}, "--size 96 128: .* encoded at 48 64: give --size 48 64"),
        ({"clip_resize": "pad"}, "--preset micro: .* for another model"),
    ],
)
def test_other_pixels_than_were_encoded_are_refused(options, words, encoded, micro):
    size = options.pop("size", (48, 64))
    resize = options.pop("clip_resize", "squash")
    frames = dataclasses.replace(micro.frames, width=size[0], height=size[1], clip_resize=resize)
    with pytest.raises(UserError, match=words):
        first_batch(encoded, dataclasses.replace(micro, frames=frames), **options)


def test_mirrored_frames_that_there_are_not_are_refused(encoded, tmp_path, micro):
    values = json.loads(open(f"{encoded}/latents.json").read()) | {"mirrored": False}
    shutil.copytree(encoded, tmp_path / "set")
    (tmp_path / "set" / "latents.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"--data.flip 0.5: .* without mirrored frames: give --data.flip 0"):
        first_batch(str(tmp_path), micro)
    (tmp_path / "set" / "latents.json").write_text("{}")
    with pytest.raises(UserError, match=r"latents.json: not a readable description of encoded frames"):
        first_batch(str(tmp_path), micro)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stage": "vae"}, "training an autoencoder needs pixels"),
        ({"loss": DiffusionLossConfig(flicker_weight=1.0)}, "--loss.flicker-weight 1.0 needs pixels"),
        ({"loss": DiffusionLossConfig(perceptual_weight=0.1)}, "--loss.perceptual-weight 0.1 needs pixels"),
        ({"trainable": ".*"}, "--trainable matches '(vae|image_encoder)"),
        ({"init": None}, "give --init"),
    ],
)
def test_runs_that_need_pixels_are_refused(options, words, encoded, micro_checkpoint):
    usual = {"stage": "stage1", "init": str(micro_checkpoint), "trainable": "denoising_unet"}
    config = TrainConfig(output="", preset=MICRO, data=dataclasses.replace(DATA, root=encoded), **usual | options)
    with pytest.raises(UserError, match=words):
        check_encoded(config, encoding_of(encoded, "train"))


def test_weights_of_another_encoder_are_refused_and_rounded_ones_are_not(
    encoded, tmp_path, micro, micro_params, micro_checkpoint
):
    encoding = encoding_of(encoded, "train")
    half = {path: array.astype(jnp.bfloat16) for path, array in micro_params.items()}
    other = {path: array * (1.01 if path == "vae.quant_conv.bias" else 1) for path, array in micro_params.items()}
    for name, params in {"half": half, "other": other}.items():
        checkpoint.save(tmp_path / name, params, micro)
    config = TrainConfig(
        stage="stage1", output="", trainable="denoising_unet", init=str(micro_checkpoint), preset=MICRO
    )
    check_encoded(config, encoding)
    check_encoded(dataclasses.replace(config, init=str(tmp_path / "half")), encoding)
    with pytest.raises(
        UserError, match=r"another autoencoder or CLIP than .*other's \('vae.quant_conv.bias' differs\)"
    ):
        check_encoded(dataclasses.replace(config, init=str(tmp_path / "other")), encoding)


def test_clips_without_pictures_say_so(encoded):
    clip = RecordedClips(encoded, "train")[0]
    with pytest.raises(UserError, match=r"clip0 of .*: holds encoded frames, no video: give the data set"):
        list(read_frames(clip, [0]))
