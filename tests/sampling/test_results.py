"""What an animation is saved as: videos, sheets, and what it was made from."""

import dataclasses

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.draw import LazyPoseImages
from animate_jax.pose.files import read_poses
from animate_jax.pose.keypoints import Keypoints
from animate_jax.sampling.inputs import DrivingMotion
from animate_jax.sampling.results import Animation, AnimationStream
from animate_jax.video.images import read_image
from animate_jax.video.read import frame_rate, read_video


@pytest.fixture(scope="module")
def animation():
    random = np.random.default_rng(0)
    frames, poses = random.integers(0, 256, (2, 5, 64, 48, 3), np.uint8)
    return Animation(frames, 10.0, frames[0, ::-1], poses)


def keypoints(frames: int) -> Keypoints:
    body = np.random.default_rng(frames).uniform(0.1, 0.9, (frames, 18, 2)).astype(np.float32)
    return dataclasses.replace(Keypoints.empty(frames), body=body, body_confidence=np.ones((frames, 18), np.float32))


@pytest.fixture
def stream(animation):
    chunks = iter([animation.frames[:3], animation.frames[3:]])
    motion = DrivingMotion(10.0, keypoints(5), (320, 240))
    return AnimationStream(
        chunks, 10.0, animation.reference, keypoints(1)[0], motion, LazyPoseImages(keypoints(5), 64, 48, "tiny")
    )


@pytest.mark.parametrize("name", ["new folder/out.mp4", "out.webm", "out.gif"])
def test_saving(name, animation, tmp_path):
    animation.save(tmp_path / name)
    frames, fps = read_video(tmp_path / name)
    assert frames.shape == (5, 64, 48, 3) and fps == pytest.approx(10)
    assert frame_rate(tmp_path / name) == pytest.approx(10)


def test_a_folder_of_frames(animation, stream, tmp_path):
    animation.save(tmp_path / "all")
    stream.save(tmp_path / "streamed")
    for folder in ("all", "streamed"):
        files = sorted((tmp_path / folder).glob("*.png"))
        assert [file.name for file in files] == [f"{number:05d}.png" for number in range(5)]
        for file, frame in zip(files, animation.frames, strict=True):
            np.testing.assert_array_equal(read_image(file), frame)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("")
    with pytest.raises(UserError, match="is there already and no folder of frames"):
        animation.save(tmp_path / "mine")


def test_what_a_notebook_shows_of_a_result(animation, stream):
    assert len(animation) == 5
    np.testing.assert_array_equal(list(animation), animation.frames)
    assert repr(animation) == "Animation(5 frames of 48 x 64 pixels at 10 frames/s)"
    assert repr(stream) == "AnimationStream(5 frames of 48 x 64 pixels at 10 frames/s)"
    assert animation._repr_html_().startswith('<video autoplay loop muted controls src="data:video/mp4;base64,')


def test_side_by_side(animation, tmp_path):
    wide = animation.side_by_side()
    assert wide.shape == (5, 64, 144, 3)
    animation.save(tmp_path / "wide.gif", side_by_side=True)
    assert read_video(tmp_path / "wide.gif")[0].shape == wide.shape
    for place, picture in enumerate((animation.reference, animation.poses[3], animation.frames[3])):
        np.testing.assert_array_equal(wide[3, :, 48 * place : 48 * place + 48], picture)


def test_contact_sheets(animation, tmp_path):
    sheet = animation.contact_sheet(columns=3, zoom=2)
    assert sheet.shape[1] == 4 * 2 * 48 + 5 * 8  # the reference and three frames, with margins
    for cell in (animation.reference, animation.poses[2], animation.frames[4]):
        large = cell.repeat(2, 0).repeat(2, 1)
        windows = np.lib.stride_tricks.sliding_window_view(sheet, large.shape)[:, ::8]
        assert (windows == large).all((-3, -2, -1)).any()
    animation.save_contact_sheet(tmp_path / "sheet.png")
    assert read_image(tmp_path / "sheet.png").shape[0] > 2 * 192
    short = dataclasses.replace(animation, frames=animation.frames[:1], poses=animation.poses[:1])
    assert short.contact_sheet(columns=8).shape[1] == 2 * 48 + 3 * 8


def test_a_notebook_plays_it(animation):
    shown = animation.show(zoom=2)
    html = shown._repr_html_()
    assert html.startswith("<video autoplay loop") and "data:video/mp4;base64," in html
    assert "save()" in repr(shown) and "base64" not in repr(shown)  # at a prompt, without IPython


def test_a_stream_writes_all_its_files_in_one_pass(stream, animation, tmp_path):
    stream.save(tmp_path / "out.mp4", tmp_path / "beside.mp4", tmp_path / "sheet.png", columns=3)
    frames, fps = read_video(tmp_path / "out.mp4")
    assert frames.shape == (5, 64, 48, 3) and fps == pytest.approx(10)
    animation.save(tmp_path / "expected.mp4")
    assert np.abs(frames.astype(int) - read_video(tmp_path / "expected.mp4")[0]).mean() < 1
    assert read_video(tmp_path / "beside.mp4")[0].shape == (5, 64, 144, 3)
    whole = dataclasses.replace(animation, poses=stream.poses[:])
    whole.save_contact_sheet(tmp_path / "whole.png", columns=3)
    np.testing.assert_array_equal(read_image(tmp_path / "sheet.png"), read_image(tmp_path / "whole.png"))


def test_a_stream_in_memory(stream, animation):
    whole = stream.animation()
    np.testing.assert_array_equal(whole.frames, animation.frames)
    np.testing.assert_array_equal(whole.poses, stream.poses[:])


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_stream_leaves_nothing(failure, stream, animation, tmp_path):
    def broken():
        yield animation.frames[:3]
        raise failure

    with pytest.raises(failure):
        files = tmp_path / "out.mp4", tmp_path / "beside.gif", tmp_path / "sheet.png"
        dataclasses.replace(stream, chunks=broken()).save(*files)
    assert list(tmp_path.iterdir()) == []


def test_what_drove_it_is_kept(stream, tmp_path):
    stream.save_poses(tmp_path / "debug")
    before, canvas = read_poses(tmp_path / "debug" / "driving.npz")
    assert canvas == (320, 240)
    np.testing.assert_array_equal(before.body, stream.motion.keypoints.body)
    after, canvas = read_poses(tmp_path / "debug" / "fitted.npz")
    assert canvas == (64, 48)
    np.testing.assert_array_equal(after.body, stream.poses.keypoints.body)
    own, _ = read_poses(tmp_path / "debug" / "reference.npz")
    np.testing.assert_array_equal(own.body[0], stream.reference_keypoints.body)
    pictures = sorted((tmp_path / "debug" / "poses").iterdir())
    assert len(pictures) == 5
    np.testing.assert_array_equal(read_image(pictures[4]), stream.poses[4])
    np.testing.assert_array_equal(read_image(tmp_path / "debug" / "reference.png"), stream.reference)


def test_ready_made_poses_have_pictures_only(stream, animation, tmp_path):
    ready = dataclasses.replace(stream, motion=DrivingMotion(10.0, images=animation.poses), poses=animation.poses)
    ready.save_poses(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"animate_jax.json", "reference.png", "reference.npz", "poses"}
