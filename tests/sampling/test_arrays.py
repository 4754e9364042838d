"""What Python programs hand over as a picture or a video."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.draw import draw
from animate_jax.pose.keypoints import Keypoints
from animate_jax.sampling.arguments import motions_of
from animate_jax.sampling.arrays import to_image, to_images
from animate_jax.sampling.inputs import read_motion
from animate_jax.video.images import write_image
from tests.conftest import STANDING

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
RGBA = np.concatenate([RGB, np.full((6, 5, 1), 255, np.uint8)], -1)


@pytest.mark.parametrize(
    "picture",
    [
        RGB,
        RGBA,
        RGB.astype(np.int64),
        RGB / 255,
        (RGB / 255).astype(np.float32),
        jnp.asarray(RGB / 255),
        PIL.Image.fromarray(RGB),
        PIL.Image.fromarray(RGBA),
    ],
    ids=["uint8", "RGBA", "int", "float64", "float32", "jax", "PIL", "PIL RGBA"],
)
def test_every_kind_of_picture_is_the_same(picture):
    image = to_image(picture, "x")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


def test_gray_and_transparent_pictures():
    gray = to_image(RGB[..., 0], "x")
    assert gray.shape == (6, 5, 3) and (gray == RGB[..., :1]).all()
    clear = np.concatenate([RGB, np.zeros((6, 5, 1), np.uint8)], -1)
    assert (to_image(clear, "x") == 255).all() and (to_image(PIL.Image.fromarray(clear), "x") == 255).all()
    np.testing.assert_array_equal(to_image(RGB[..., 0] > 127, "x")[..., 0], 255 * (RGB[..., 0] > 127))


def test_a_photo_of_a_phone_is_upright():
    photo = PIL.Image.fromarray(RGB)
    photo.getexif()[0x0112] = 6
    np.testing.assert_array_equal(to_image(photo, "x"), np.rot90(RGB, -1))


@pytest.mark.parametrize(
    "picture, message",
    [
        (RGB.transpose(2, 0, 1), "an array of shape [3, 6, 5] is no picture: give uint8 or floats in [0, 1]"),
        (RGB[None], "an array of shape [1, 6, 5, 3] is no picture"),
        (RGB / 127.5 - 1, "float64 from -1"),
        (RGB * 1.0, "float64 from "),
        (RGB.astype(np.uint16) * 257, "uint16 from "),
        (np.full((6, 5, 3), np.nan), "float64 from nan"),
        (RGB[:0], "an array of shape [0, 5, 3] is no picture"),
    ],
)
def test_what_is_no_picture(picture, message):
    with pytest.raises(UserError) as caught:
        to_image(picture, "the reference picture")
    assert str(caught.value).startswith(f"the reference picture: {message}")


@pytest.mark.parametrize(
    "video",
    [[RGB, RGB], [PIL.Image.fromarray(RGB)] * 2, np.stack([RGB, RGB]), np.stack([RGBA, RGBA]) / 255, (RGB, RGBA)],
    ids=["list", "PIL", "array", "float RGBA", "mixed"],
)
def test_every_kind_of_video_is_the_same(video):
    (frames,), several = motions_of(video)
    assert not several
    np.testing.assert_array_equal(frames, np.stack([RGB, RGB]))


def test_lists_of_motions_stay_lists():
    assert motions_of(["a.mp4", Path("b.npz")]) == (["a.mp4", Path("b.npz")], True)
    assert motions_of("a.mp4") == (["a.mp4"], False)
    motions, several = motions_of([RGB[None], [RGB, RGB], "c.mp4"])
    assert several and [getattr(motion, "shape", motion) for motion in motions] == [(1, 6, 5, 3), (2, 6, 5, 3), "c.mp4"]


@pytest.mark.parametrize(
    "frames, message",
    [
        ([RGB, RGB[:3]], "frames of 5 x 3 and 5 x 6 pixels: give frames of one size"),
        (np.zeros(3), "an array of shape [3] is no video: give [frames, height, width, 3]"),
        (np.zeros((0, 6, 5, 3), np.uint8), "no frames"),
    ],
)
def test_what_is_no_video(frames, message):
    with pytest.raises(UserError, match=r"^x: ") as caught:
        to_images(frames, "x")
    assert message in str(caught.value)


@pytest.fixture
def drawn():
    body = np.tile(STANDING, (3, 1, 1))
    body[:, [4, 7], 1] -= 0.1 * np.arange(3)[:, None]
    poses = dataclasses.replace(Keypoints.empty(3), body=body, body_confidence=np.ones((3, 18), np.float32))
    return draw(poses, 128, 96, "tiny")


def test_a_folder_of_pictures_drives_in_the_order_of_its_numbers(drawn, tmp_path):
    """Such as the pose pictures that `--debug-dir` writes."""
    for number, picture in zip((8, 9, 10), drawn, strict=True):
        write_image(tmp_path / f"{number}.png", picture)
    (tmp_path / "animate_jax.json").write_text("{}")
    motion = read_motion(tmp_path, fps=12.0, driving_kind="poses")
    assert motion.fps == 12 and motion.keypoints is None
    np.testing.assert_array_equal(motion.images, drawn)
    assert len(read_motion(tmp_path, frames=2, driving_kind="poses")) == 2
    write_image(tmp_path / "11.png", drawn[0, :64])
    with pytest.raises(UserError, match=r"11\.png: frames of 96 x 64 and 96 x 128 pixels"):
        read_motion(tmp_path, driving_kind="poses")


def test_an_array_drives(drawn):
    motion = read_motion(drawn, frames=2, driving_kind="poses")
    assert motion.fps == 30 and repr(motion) == "DrivingMotion(2 frames of drawn poses at 30 frames/s)"
    np.testing.assert_array_equal(motion.images, drawn[:2])
    seen = []

    def detector(frames, progress, person):
        seen.extend(frames)
        return dataclasses.replace(
            Keypoints.empty(3), body=np.tile(STANDING, (3, 1, 1)), body_confidence=np.ones((3, 18), np.float32)
        )

    motion = read_motion(drawn, fps=8.0, driving_kind="video", detector=detector, progress=False)
    assert len(motion) == len(seen) == 3 and motion.fps == 8 and motion.canvas == (128, 96)
