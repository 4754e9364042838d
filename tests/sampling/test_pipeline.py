"""The notebook API on a micro model: what goes in, what comes out, and that everything has its effect."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from animate_jax.diffusion.sampling_loop import num_function_evaluations
from animate_jax.errors import UserError
from animate_jax.models.appearance import PATCH
from animate_jax.pose.draw import LazyPoseImages, draw
from animate_jax.pose.files import write_poses
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.warp import warp
from animate_jax.sampling import compose as compose_module
from animate_jax.sampling import inputs as module
from animate_jax.sampling import pipeline as pipeline_module
from animate_jax.sampling.compose import read_scene
from animate_jax.sampling.inputs import DrivingMotion, crop_reference, draw_motion, fit_motion
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.torch_weights import fetching
from animate_jax.video.images import read_image
from animate_jax.video.read import read_video
from animate_jax.video.write import write_video
from tests.conftest import STANDING, random_params

pytestmark = pytest.mark.compiles

ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.jpg"


def waving(frames: int) -> Keypoints:
    body = np.tile(STANDING, (frames, 1, 1))
    body[:, [4, 7], 1] -= 0.2 * np.abs(np.sin(np.arange(frames, dtype=np.float32)))[:, None]
    return dataclasses.replace(Keypoints.empty(frames), body=body, body_confidence=np.ones((frames, 18), np.float32))


@pytest.fixture(scope="module")
def pipeline(micro_checkpoint, compile_fast):
    return Pipeline.from_pretrained(micro_checkpoint)


@pytest.fixture
def anybody(monkeypatch):
    """Every picture shows a person standing in its middle."""
    monkeypatch.setattr(module, "detect", lambda frames, progress=None, person="largest": waving(len(list(frames))))


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8)


def walk(frames=3, fps=10.0):
    return DrivingMotion(fps, waving(frames), (320, 240))


def test_one_seed_gives_one_video(pipeline, anybody, picture, capsys):
    first, again = (pipeline(picture, walk(), seed=3, progress=False) for _ in range(2))
    other = pipeline(picture, walk(), seed=4, progress=False)
    assert first.frames.shape == (3, 64, 48, 3) and first.frames.dtype == np.uint8
    np.testing.assert_array_equal(first.frames, again.frames)
    assert np.abs(first.frames.astype(int) - other.frames).max() > 5
    assert capsys.readouterr() == ("", "")


def test_character_pose_and_guidance_have_their_effect(pipeline, anybody, picture):
    def frames(reference=picture, motion=None, **options):
        return pipeline(reference, motion or walk(), progress=False, **options).frames.astype(int)

    usual = frames()
    assert np.abs(frames(picture[::-1]) - usual).max() > 2
    still = dataclasses.replace(walk(), keypoints=waving(1)[[0, 0, 0]])
    assert np.abs(frames(motion=still) - usual).max() > 2
    np.testing.assert_array_equal(frames(motion=still)[0], frames(motion=still)[0])
    assert np.abs(frames(guidance=6.0) - usual).max() > 2
    assert np.abs(frames(steps=3) - usual).max() > 2


def test_frames_see_their_neighbours_through_the_temporal_layers(pipeline, anybody, picture):
    """The first frame changes with the poses of the others."""
    one = pipeline(picture, walk(4), progress=False).frames[0].astype(int)
    keypoints = waving(4)
    keypoints.body[1:, :, 0] += 0.2
    other = pipeline(picture, DrivingMotion(10.0, keypoints, (320, 240)), progress=False)
    assert np.abs(other.frames[0] - one).max() > 2


def test_frames_and_size_are_honoured(pipeline, anybody, picture):
    animation = pipeline(picture, walk(6), frames=2, width=32, height=48, progress=False)
    assert animation.frames.shape == animation.poses.shape == (2, 48, 32, 3)
    assert animation.reference.shape == (48, 32, 3)


@pytest.mark.parametrize("frames, guidance", [(1, 1.0), (4, 2.0), (9, 2.0)])
def test_videos_of_any_length_are_made_window_by_window(frames, guidance, pipeline, anybody, picture, monkeypatch):
    calls, denoise = [], pipeline._run_unet
    monkeypatch.setattr(
        pipeline, "_run_unet", lambda params, x, *rest: calls.append(x.shape) or denoise(params, x, *rest)
    )
    options = pipeline.animation_config(guidance=guidance)
    animation = pipeline(picture, walk(frames), guidance=guidance, progress=False)
    assert len(animation.frames) == frames
    assert calls == [(1 + (guidance > 1), min(frames, 4), 16, 12, 4)] * num_function_evaluations(frames, options)


def test_every_window_gets_its_own_poses(pipeline, anybody, picture):
    """Windows are frames 0-3, 3-6 and 5-8; in two steps the last pose cannot reach the first three frames."""
    keypoints = waving(9)
    usual = pipeline(picture, DrivingMotion(10.0, keypoints, (320, 240)), progress=False).frames.astype(int)
    keypoints.body[8, :, 0] += 0.2
    other = pipeline(picture, DrivingMotion(10.0, keypoints, (320, 240)), progress=False).frames
    np.testing.assert_array_equal(other[:3], usual[:3])
    assert np.abs(other[8] - usual[8]).max() > 2


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_lists_give_every_pair_and_each_is_what_it_is_alone(sampler, pipeline, anybody, picture):
    """Two characters, two motions of one length and a longer one. A batch may sum in another order."""
    other = DrivingMotion(10.0, waving(3).affine((0.5, 1), (0.2, 0)), (320, 240))
    options = {"seed": 3, "progress": False, "sampler": sampler}
    pictures, motions = [picture, picture[::-1].copy()], [walk(3), other, walk(6)]
    found = pipeline(pictures, motions, **options)
    assert len(found) == 6
    for one, (reference, motion) in zip(found, itertools.product(pictures, motions), strict=True):
        alone = pipeline(reference, motion, **options)
        np.testing.assert_array_equal(one.reference, alone.reference)
        np.testing.assert_array_equal(one.poses, alone.poses)
        assert np.abs(one.frames.astype(int) - alone.frames).max() <= 1
    assert np.abs(found[0].frames.astype(int) - found[3].frames).max() > 2
    assert isinstance(pipeline([picture], walk(1), progress=False), list)


def test_a_list_reads_and_compiles_everything_once(pipeline, picture, monkeypatch):
    """Of one length: three videos are one batch, and again with other pictures."""
    looked = []

    def look(frames, progress=None, person="largest"):
        looked.append(1)
        return waving(len(list(frames)))

    monkeypatch.setattr(module, "detect", look)
    fresh = Pipeline(pipeline.params, pipeline.preset)
    for pictures in ([picture] * 3, [picture[::-1].copy()] * 3):
        fresh(pictures, walk(9), guidance=2.0, progress=False)
    assert len(looked) == 6
    assert [
        fresh._run_unet._cache_size(),
        fresh._conditioning._cache_size(),
        fresh._decode._cache_size(),
    ] == [1, 1, 1]


def test_a_stream_decodes_when_asked_and_is_the_animation(pipeline, anybody, picture, monkeypatch):
    decoded, decode = [], pipeline._decode
    monkeypatch.setattr(pipeline, "_decode", lambda params, x: decoded.append(len(x)) or decode(params, x))
    stream = pipeline.stream(picture, walk(19), progress=False)
    assert len(stream) == 19 and decoded == []
    frames = iter(stream)
    first = next(frames)
    assert decoded == [8]
    expected = pipeline(picture, walk(19), progress=False)
    np.testing.assert_array_equal([first, *frames], expected.frames)
    assert isinstance(stream.poses, LazyPoseImages)  # which draws when asked, too
    np.testing.assert_array_equal(stream.poses[:], expected.poses)


def test_the_device_never_holds_the_video(pipeline, anybody, picture, monkeypatch):
    """Neither latents nor poses nor frames: what lives on the device is as large for 60 frames as for 20."""
    held, denoise, decode = [], pipeline._run_unet, pipeline._decode

    def measured(function):
        def call(*inputs):
            held.append(sum(array.nbytes for array in jax.live_arrays()))
            return function(*inputs)

        return call

    monkeypatch.setattr(pipeline, "_run_unet", measured(denoise))
    monkeypatch.setattr(pipeline, "_decode", measured(decode))
    most = []
    for frames in (20, 20, 60):
        for _ in pipeline.stream(picture, walk(frames), progress=False):
            pass
        most.append(max(held))
        held.clear()
    assert most[2] <= most[1] * 1.001


def test_progress_is_shown_if_wanted(pipeline, anybody, picture, capsys):
    pipeline(picture, walk())
    assert "denoising" in capsys.readouterr().err


# Driving motions


@pytest.mark.parametrize("name", ["motion.json", "motion.npz", "folder"])
def test_keypoint_files(name, pipeline, anybody, picture, tmp_path):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        for i in range(3):
            write_poses(path / f"{i}.json", waving(3)[i : i + 1], (320, 240))
    else:
        write_poses(path, waving(3), (320, 240))
    animation = pipeline(picture, path, progress=False)
    np.testing.assert_array_equal(animation.poses, pipeline(picture, walk(), progress=False).poses)
    assert animation.fps == 10  # the model's
    motion = pipeline.read_motion(path, frames=2, fps=5)
    assert motion.fps == 5 and len(motion) == 2


def test_keypoints_are_aligned_to_the_reference(pipeline, anybody, picture):
    """Half as large and in a corner of a picture of another shape: the same poses."""
    small = DrivingMotion(10.0, waving(3).affine((0.25, 0.5), (0.7, 0.4)), (320, 480))
    expected = pipeline(picture, walk(), progress=False)
    drawn = pipeline(picture, small, progress=False).poses
    assert np.abs(drawn.astype(int) - expected.poses).mean() < 0.5
    assert drawn.max() > 200


def test_a_video_of_a_person(pipeline, tmp_path):
    """Nothing pretended: the astronaut moves to the right, and so does her skeleton."""
    astronaut = read_image(ASTRONAUT)
    wide = np.pad(astronaut, ((0, 0), (0, 96), (0, 0)), mode="edge")
    path = tmp_path / "drift.mp4"
    write_video(path, np.stack([np.roll(wide, shift, axis=1) for shift in (0, 12, 24, 36, 48, 60)]), 20)
    animation = pipeline(ASTRONAUT, path, progress=False)
    assert animation.fps == 10 and len(animation.frames) == 3  # of 20 frames/s every second one
    # The ink moves, but which limbs are drawn depends on the detector's confidence in each; the head is always seen.
    centers = [np.average(np.arange(48), weights=pose.sum((0, 2)) + 1e-6) for pose in animation.poses]
    assert centers[0] + 3 < centers[2]
    assert 15 < centers[0] < 33  # at first where she is in her own picture
    head = pipeline.read_motion(path, progress=False).keypoints.body[:, [0, 14, 15, 16, 17], 0].mean(1)
    np.testing.assert_allclose(np.diff(head), 24 / 480, atol=0.015)
    slow = pipeline.read_motion(path, fps=4.0, progress=False)
    assert slow.fps == 4 and slow.canvas == astronaut.shape[:1] + wide.shape[1:2]


def test_a_slow_video_keeps_its_rate(pipeline, anybody, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 48, 3), np.uint8)
    write_video(tmp_path / "slow.mp4", frames, 5)
    motion = pipeline.read_motion(tmp_path / "slow.mp4", progress=False)
    assert motion.fps == 5 and len(motion) == 4


@pytest.mark.parametrize("fps, rate, count", [(None, 10, 6), (15, 15, 9), (20.0, 20, 12), (60.0, 20, 12)])
def test_rates_beyond_the_models_keep_time(pipeline, anybody, tmp_path, fps, rate, count):
    """A video of 0.6 s drives as long, however many frames are made of it; it has no more than its own."""
    frames = np.random.default_rng(0).integers(0, 256, (12, 64, 48, 3), np.uint8)
    write_video(tmp_path / "fast.mp4", frames, 20)
    motion = pipeline.read_motion(tmp_path / "fast.mp4", fps=fps, progress=False)
    assert motion.fps == rate and len(motion) == count
    write_video(tmp_path / "result.mp4", frames[:count], motion.fps)
    made, made_rate = read_video(tmp_path / "result.mp4")
    assert len(made) / made_rate == pytest.approx(0.6)


def test_a_video_of_drawn_poses_is_taken_as_it_is(pipeline, anybody, picture, tmp_path):
    drawn = draw(waving(4), 128, 96, "tiny")
    write_video(tmp_path / "poses.mp4", drawn, 10)
    animation = pipeline(picture, tmp_path / "poses.mp4", frames=3, progress=False)
    assert len(animation.frames) == 3
    expected = drawn[:3].reshape(3, 64, 2, 48, 2, 3).mean((2, 4))
    assert np.abs(animation.poses - expected).mean() < 6  # compressed, another filter


def test_drawn_poses_that_begin_with_nobody(pipeline, tmp_path):
    """Black frames tell nothing; what comes after them does. At the wanted size from the start."""
    drawn = np.concatenate([np.zeros((12, 128, 96, 3), np.uint8), draw(waving(3), 128, 96, "tiny")])
    write_video(tmp_path / "poses.mp4", drawn, 10)
    motion = pipeline.read_motion(tmp_path / "poses.mp4", size=(64, 48))
    assert motion.keypoints is None and motion.images.shape == (15, 64, 48, 3)
    assert motion.images[:12].max() < 24 and motion.images[12:].max() > 150


# The reference picture


def test_the_reference_is_cut_around_its_person(pipeline, monkeypatch):
    """Marks in the picture at two points are, in the cut, where the keypoints say."""
    picture = np.full((300, 400, 3), 90, np.uint8)
    found = waving(1).affine((0.2, 0.5), (0.1, 0.2))
    for point, color in ((0, (255, 0, 0)), (10, (0, 255, 0))):
        x, y = (found.body[0, point] * (400, 300)).round().astype(int)
        picture[y - 6 : y + 6, x - 6 : x + 6] = color
    monkeypatch.setattr(module, "detect", lambda frames, progress=None, person="largest": found)
    cut, keypoints = crop_reference(picture, pipeline.animation_config(width=192, height=256))
    assert cut.shape == (256, 192, 3)
    for point, channel in ((0, 0), (10, 1)):
        y, x = np.argwhere((cut[..., channel] > 200) & (cut[..., 2] < 50)).mean(0) + 0.5
        np.testing.assert_allclose(keypoints.body[point] * (192, 256), (x, y), atol=1.5)
    assert (keypoints.body > 0).all() and (keypoints.body < 1).all()


def test_a_cut_beyond_the_picture_repeats_its_edge(pipeline, monkeypatch):
    picture = np.zeros((100, 400, 3), np.uint8)
    picture[0], picture[-1] = (0, 0, 255), (255, 0, 0)
    narrow = waving(1).affine((0.2, 1), (0.4, 0))
    monkeypatch.setattr(module, "detect", lambda frames, progress=None, person="largest": narrow)
    cut, keypoints = crop_reference(picture, pipeline.animation_config(width=96, height=128))
    assert (cut[0, :, 2] > 200).all() and (cut[-1, :, 0] > 200).all()
    assert (keypoints.body > 0).all() and (keypoints.body < 1).all()


def test_files_and_arrays_are_the_same_reference(pipeline):
    options = pipeline.animation_config()
    (from_file, found), (from_array, _) = (crop_reference(r, options) for r in (ASTRONAUT, read_image(ASTRONAUT)))
    np.testing.assert_array_equal(from_file, from_array)
    nose = found.body[0]
    assert 0.3 < nose[0] < 0.7 and 0.1 < nose[1] < 0.6


# Results


def test_decoding_in_pieces_is_decoding(pipeline):
    latents = np.random.default_rng(0).normal(size=(1, 9, 16, 12, 4)).astype(np.float32)
    whole = pipeline.decode(jax.numpy.asarray(latents))
    assert whole.shape == (9, 64, 48, 3)
    for i in (0, 7, 8):
        alone = pipeline.decode(jax.numpy.asarray(latents[:, i : i + 1]))
        assert np.abs(alone[0].astype(int) - whole[i]).max() <= 1


def test_encoding_is_the_autoencoders(pipeline, picture):
    latents = pipeline.encode(picture[None, :64, :48])
    assert latents.shape == (1, 1, 16, 12, 4)
    assert np.isfinite(latents).all() and np.std(latents) > 0


# Choices and refusals


def test_options_replace_the_presets_defaults(pipeline, micro):
    assert pipeline.animation_config() == micro.animation
    assert pipeline.animation_config(steps=None, window=8) == dataclasses.replace(micro.animation, window=8)
    with pytest.raises(TypeError, match="speed"):
        pipeline.animation_config(speed=2)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"width": 50}, "width 50: must be a multiple of 4 between 32 and 4096"),
        ({"height": 16}, "height 16: must be"),
        ({"width": 8192}, "width 8192: must be"),
        ({"window": 9}, "window 9: this model takes 1 to 8 frames"),
        ({"window": 0}, "window 0: "),
        ({"frames": 0}, "frames 0: must be greater than 0"),
        ({"steps": 0}, "steps 0: must be 1 to 1000"),
        ({"steps": 1001}, "steps 1001: "),
        ({"steps": "2"}, "steps '2': must be a whole number"),
        ({"steps": 2.0}, "steps 2.0: must be a whole number"),
        ({"guidance": "2"}, "guidance '2': must be a number from -100 to 100"),
        ({"sampler": "DDIM"}, "sampler 'DDIM': must be one of ddim, dpm_solver,"),
        ({"speed": "turbo"}, "speed turbo: choose one of exact, fast, fastest"),
        ({"align": "bone"}, "align bone: choose one of"),
        ({"hands": "maybe"}, "hands 'maybe': must be one of auto, off"),
        ({"num_inference_steps": 2}, "num_inference_steps: there is no such argument: it is called steps here"),
        ({"guidance_scale": 2}, "guidance_scale: there is no such argument: it is called guidance here"),
        ({"guidence": 2}, "guidence: there is no such argument: did you mean guidance?"),
        ({"xyz": 2}, "xyz: there is no such argument: choose of reference, driving, frames, fps, seed, "),
    ],
)
def test_impossible_options(pipeline, picture, fields, message):
    with pytest.raises(UserError) as caught:
        pipeline(picture, walk(), **fields)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_options_as_programs_have_them(pipeline):
    """NumPy's numbers, lists, and truth values for switches."""
    given = pipeline.animation_config(
        steps=np.int64(3), guidance=np.float32(2), guidance_interval=[0.0, 0.5], hands=False, audio=True
    )
    assert type(given.steps) is int and (given.steps, given.guidance) == (3, 2.0)
    assert (given.guidance_interval, given.hands, given.audio) == ((0.0, 0.5), "off", "auto")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"torch_dtype": "float16"}, "torch_dtype: there is no such argument: it is called dtype here"),
        ({"dtype": "float16"}, "dtype float16: choose float32 or bfloat16"),
        ({"dtype": np.float64}, "dtype float64: choose"),
        ({"preset": "huge"}, "preset 'huge': choose one of"),
        ({"revision": "main"}, "revision main: tiny has no revisions"),
    ],
)
def test_impossible_ways_to_load(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Pipeline.from_pretrained("tiny", **options)


def test_saving_and_moving(pipeline, tmp_path, micro):
    pipeline.save_pretrained(tmp_path / "mine")
    again = Pipeline.from_pretrained(tmp_path / "mine", dtype=jax.numpy.bfloat16)
    assert again.dtype == jax.numpy.bfloat16 and again.preset == pipeline.preset
    assert again.to("cpu") is again and again.to("cpu:0").params.keys() == pipeline.params.keys()
    assert again.to(jax.devices()[0]) is again
    with pytest.raises(UserError, match=r"^device cuda:7: JAX finds no such device: choose of cpu:0"):
        again.to("cuda:7")


def test_nobody_there(pipeline, tmp_path):
    empty = np.full((3, 96, 96, 3), 127, np.uint8)
    with pytest.raises(UserError, match=r"^the reference picture: no person found"):
        pipeline(empty[0], walk(), progress=False)
    write_video(tmp_path / "empty.mp4", empty, 10)
    with pytest.raises(UserError, match=r"empty\.mp4: no person found"):
        pipeline(ASTRONAUT, tmp_path / "empty.mp4", progress=False)


def test_a_missing_reference_is_noticed_before_a_long_video_is_searched(pipeline, monkeypatch, tmp_path):
    def never(*_, **__):
        raise AssertionError

    monkeypatch.setattr(module, "iter_frames", never)
    with pytest.raises(UserError, match=r"nobody\.png: no such file"):
        pipeline(tmp_path / "nobody.png", tmp_path / "long.mp4")


def test_loading_the_bundled_model_and_another_preset(micro, micro_checkpoint, monkeypatch):
    monkeypatch.setattr(fetching, "BUNDLED", micro_checkpoint)
    assert Pipeline.from_pretrained().preset == micro
    other = dataclasses.replace(micro, name="other", schedule=dataclasses.replace(micro.schedule, prediction="v"))
    pipeline = Pipeline.from_pretrained("tiny", other)
    assert pipeline.preset == other and pipeline.schedule.config.prediction == "v"
    with pytest.raises(UserError, match="no such checkpoint"):
        Pipeline.from_pretrained("nowhere")


def test_malformed_keypoints(pipeline, anybody, picture, tmp_path):
    (tmp_path / "poses.json").write_text(json.dumps({"people": 3}))
    with pytest.raises(UserError, match=r"poses\.json: "):
        pipeline(picture, tmp_path / "poses.json", progress=False)


@pytest.fixture(scope="module")
def copying(micro_copying, compile_fast):
    """A model whose prediction is the warped reference, and whose pictures are its pixels."""
    params = random_params(micro_copying)
    copies = [30.0, 0, 0, 0] * PATCH**2  # a share of 1, no correction
    for layer, bias in (("denoising_unet.appearance_conv_out", 1.0), ("appearance_blend.conv_out", np.array(copies))):
        params[f"{layer}.kernel"] = 0 * params[f"{layer}.kernel"]
        params[f"{layer}.bias"] = 0 * params[f"{layer}.bias"] + bias
    return Pipeline(params, micro_copying)


def test_every_frame_sees_the_reference_in_its_own_pose(copying, anybody, picture, monkeypatch):
    monkeypatch.setattr(module, "segment", lambda picture, person: None)  # capsules
    own, motion = crop_reference(picture, copying.animation_config())
    poses = draw_motion(walk(6), motion, copying.animation_config())
    warped = copying.warp(own, motion, poses)
    expected, masks = warped[:]
    assert len(np.unique(expected.reshape(6, -1), axis=0)) > 3 and (masks[..., 0] == 255).mean() > 0.1
    made = copying(picture, walk(6), progress=False).frames  # two windows
    assert np.abs(made.astype(int) - expected).max() <= 1
    options = copying.animation_config(steps=1)
    latents = copying.sample(
        copying.precompute_conditioning(own, poses[:1][0], options), poses, options, progress=False, warped=warped
    )
    np.testing.assert_allclose(latents, copying.encode(expected), atol=1e-3)
    shown = []
    copying(picture, walk(6), progress=False, callback=lambda share, preview: shown.append(preview()))
    assert np.abs(shown[-1].astype(int) - expected[2]).max() <= 1  # the last window's first frame


def test_several_references_keep_their_own_warp(copying, anybody, picture, monkeypatch):
    monkeypatch.setattr(module, "segment", lambda picture, person: None)
    other = 255 - picture
    both = copying([picture, other], walk(3), progress=False)
    for made, reference in zip(both, (picture, other), strict=True):
        np.testing.assert_array_equal(made.frames, copying(reference, walk(3), progress=False).frames)


def test_pose_pictures_without_joints_show_the_background(copying, anybody, picture, monkeypatch):
    monkeypatch.setattr(module, "segment", lambda picture, person: None)
    own, motion = crop_reference(picture, copying.animation_config())
    drawn = DrivingMotion(10.0, images=np.zeros((3, 64, 48, 3), np.uint8))
    made = copying(picture, drawn, progress=False).frames
    background = copying.warp(own, motion, drawn.images).background
    assert np.abs(made.astype(int) - background).max() <= 1


def large_picture():
    noise = np.random.default_rng(1).integers(0, 256, (20, 15, 3)).astype(np.uint8)
    return cv2.resize(noise, (240, 321), interpolation=cv2.INTER_CUBIC)


def test_composed_results_have_the_pictures_own_size_and_pixels(copying, anybody, monkeypatch):
    monkeypatch.setattr(compose_module, "segment", lambda picture, person: None)
    picture = large_picture()
    made = copying(picture, walk(6), progress=False, compose="on")
    assert made.frames.shape == made.poses.shape == (6, 320, 240, 3) and made.reference.shape == (320, 240, 3)
    scene = read_scene(picture, copying.animation_config(), detector=lambda frames: waving(1))
    fitted = fit_motion(walk(6), scene.keypoints, scene.size, copying.animation_config(), "bones")
    expected, _ = warp(scene.picture, scene.mask, scene.keypoints, fitted)[:]
    difference = np.abs(made.frames.astype(int) - expected)
    assert difference.mean() < 4  # the warped, at its own size
    enlarged = cv2.resize(cv2.resize(expected[3], (48, 64), interpolation=cv2.INTER_AREA), (240, 320))
    assert difference[3].mean() < 0.3 * np.abs(enlarged.astype(int) - expected[3]).mean()
    again = copying(picture, walk(6), progress=False, compose="on")
    np.testing.assert_array_equal(again.frames, made.frames)


def test_what_is_not_composed_is_what_the_model_decodes(pipeline, anybody, picture):
    usual = pipeline(picture, walk(), progress=False)
    np.testing.assert_array_equal(pipeline(picture, walk(), progress=False, compose="off").frames, usual.frames)


def test_only_where_joints_are_known_are_results_composed_unasked(copying, anybody, monkeypatch, tmp_path):
    monkeypatch.setattr(compose_module, "segment", lambda picture, person: None)
    picture, drawn = large_picture(), DrivingMotion(10.0, images=np.zeros((2, 64, 48, 3), np.uint8))
    write_poses(tmp_path / "poses.npz", walk(2).keypoints, walk(2).canvas)
    write_video(tmp_path / "drawn.mp4", drawn.images, 10)
    for small, sizes in ((True, (320, 64, 320, 64)), (False, (64, 64, 64, 64))):
        monkeypatch.setattr(pipeline_module, "composes", lambda preset, small=small: small)
        for motion, height in zip((walk(2), drawn, tmp_path / "poses.npz", tmp_path / "drawn.mp4"), sizes, strict=True):
            made = copying(picture, motion, progress=False, driving_kind="poses" if height == 64 else None)
            assert made.frames.shape[1] == height


def test_the_beginning_of_a_driving_video_is_looked_at_once(pipeline, anybody, picture, monkeypatch):
    class Enough(Exception):
        pass

    def stop(*args):
        raise Enough

    looks = []
    monkeypatch.setattr(compose_module, "segment", lambda picture, person: None)
    monkeypatch.setattr(pipeline_module, "composes", lambda preset: True)
    monkeypatch.setattr(module, "shows_drawn_poses", lambda frames: bool(looks.append(next(frames))))
    monkeypatch.setattr(pipeline, "composed_job", stop)
    with pytest.raises(Enough):
        pipeline(picture, np.full((3, 32, 24, 3), 90, np.uint8), progress=False)
    assert len(looks) == 1


def test_several_composed_results_before_other_backgrounds(copying, anybody, monkeypatch):
    monkeypatch.setattr(compose_module, "segment", lambda picture, person: None)
    pictures = [large_picture(), large_picture()[::-1].copy()]
    options = {"progress": False, "compose": "on", "width": 120}
    both = copying(pictures, walk(3), background="#00ff00", **options)
    assert [made.frames.shape for made in both] == [(3, 160, 120, 3)] * 2
    for made, reference in zip(both, pictures, strict=True):
        np.testing.assert_array_equal(made.frames, copying(reference, walk(3), background="#00ff00", **options).frames)
        green = (made.frames == np.uint8([0, 255, 0])).all(-1)
        assert 0.3 < green.mean() < 0.95


def test_impossible_compositions_are_refused_in_a_line(pipeline, anybody, picture):
    drawn = DrivingMotion(10.0, images=np.zeros((3, 64, 48, 3), np.uint8))
    for message, motion, options in (
        ("compose on: drawn poses do not say where joints are", drawn, {"compose": "on"}),
        ("background white: is for composed results: add compose on", walk(), {"background": "white"}),
        ("background whitish: give reference, driving, a color", walk(), {"compose": "on", "background": "whitish"}),
        ("background driving: only a video", walk(), {"compose": "on", "background": "driving"}),
        ("height 9000: must be between 32 and 4096", walk(), {"compose": "on", "height": 9000}),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            pipeline(picture, motion, progress=False, **options)
