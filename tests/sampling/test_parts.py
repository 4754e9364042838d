"""Hands and faces: found and drawn for the weights that know them, and no work at all for those that do not."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from animate_jax.config import AnimationConfig
from animate_jax.pose import detect as detect_module
from animate_jax.pose import hands_face
from animate_jax.pose.detect import detect
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.smooth import smooth
from animate_jax.presets import presets
from animate_jax.sampling.inputs import DrivingMotion, crop_reference, draw_motion, drawn_parts, read_motion
from animate_jax.video.images import read_image
from animate_jax.video.read import read_video
from animate_jax.video.write import write_video

ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.jpg"
BODY = {"pose_detection", "pose_landmark_full"}


@pytest.fixture
def models(monkeypatch):
    """The names of the models that were run."""
    names = set()
    for module in (detect_module, hands_face):
        run = module.run_model
        monkeypatch.setattr(module, "run_model", lambda name, picture, run=run: names.add(name) or run(name, picture))
    return names


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, np.stack([read_image(ASTRONAUT)] * 2), 10)
    return path


def options(style, **changes):
    return AnimationConfig(width=192, height=256, pose_style=style, **changes)


@pytest.mark.parametrize(
    "style, parts",
    [("none", ()), ("tiny", ()), ("paper", ("hands",)), ("musepose", ("hands",)), ("moore", ("hands", "face"))],
)
def test_parts_of_a_style(style, parts):
    assert drawn_parts(options(style)) == parts
    assert drawn_parts(options(style, hands="off")) == tuple(part for part in parts if part != "hands")
    assert drawn_parts(options(style, hands="off", face="off")) == ()


def test_the_bundled_model_runs_no_more_and_sees_the_same(models, film):
    tiny = presets()["tiny"].animation
    _, reference = crop_reference(ASTRONAUT, tiny)
    motion = read_motion(film, progress=False, parts=drawn_parts(tiny))
    assert models == BODY
    expected = smooth(detect(read_video(film)[0]), motion.canvas, motion.fps)
    for name in Keypoints.names():
        np.testing.assert_array_equal(getattr(motion.keypoints, name), getattr(expected, name))
    assert not reference.hands_confidence.any() and not reference.face_confidence.any()


def test_the_astronauts_face_is_drawn_for_moore(models, film):
    """White dots where her face is, in her own pose and in the motion's pictures; off: none, and no model is run."""
    moore = options("moore")
    _, reference = crop_reference(ASTRONAUT, moore)
    motion = read_motion(film, progress=False, parts=drawn_parts(moore))
    assert {"face_landmark", "hand_recrop"} <= models
    assert reference.face_confidence.min() > 0.9 and motion.keypoints.face_confidence.min() > 0.9
    motion = dataclasses.replace(motion, keypoints=with_hands(motion.keypoints))  # hers are cut off
    white = (draw_motion(motion, reference, moore)[0] == 255).all(-1)
    x, y = (reference.face * (192, 256)).mean(0)
    rows, columns = np.nonzero(white)
    assert white.sum() > 300 and abs(rows.mean() - y) < 5 and abs(columns.mean() - x) < 5
    assert not (draw_motion(motion, reference, options("moore", face="off"))[0] == 255).all(-1).any()


def test_off_asks_no_model(models, film):
    off = options("moore", hands="off", face="off")
    _, reference = crop_reference(ASTRONAUT, off)
    read_motion(film, progress=False, parts=drawn_parts(off))
    assert models == BODY and not reference.face_confidence.any()


@pytest.mark.parametrize("part", ["hands", "face"])
def test_off_holds_for_other_detectors_and_files_too(part, recwarn):
    """Who finds all of it, and a motion that has it."""
    whole = Keypoints(*(np.full_like(array, 0.5) for array in vars(Keypoints.empty(2)).values()))
    whole.body[:] = np.random.default_rng(0).uniform(0.2, 0.8, (18, 2))
    off = options("moore", **{part: "off"})
    _, reference = crop_reference(np.zeros((256, 192, 3), np.uint8), off, lambda frames: whole[:1])
    fitted = draw_motion(DrivingMotion(10.0, whole, (256, 192)), reference, off).keypoints
    for keypoints in (reference, fitted):
        for name in ("body", "hands", "face"):
            assert getattr(keypoints, f"{name}_confidence").any() == (name != part)
    assert not [each for each in recwarn if "in any frame" in str(each.message)]  # nobody wonders where it is


def with_hands(keypoints):
    hands, confidence = np.full_like(keypoints.hands, 0.5), np.ones_like(keypoints.hands_confidence)
    return dataclasses.replace(keypoints, hands=hands, hands_confidence=confidence)
