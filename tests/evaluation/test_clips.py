"""Clips to measure on, out of the renderer and out of folders of videos."""

import dataclasses

import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.evaluation import clips
from animate_jax.evaluation.clips import (
    center_crop_resize,
    from_records,
    from_renderer,
    from_videos,
    open_clips,
    person_boxes,
    resize_lanczos,
    video_files,
)
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.write import encode_mp4, write_video


def film(path, frames=6, height=64, width=48):
    """A video whose frame number is its brightness."""
    video = np.repeat(np.arange(frames, dtype=np.uint8)[:, None] * 20, height * width * 3, 1)
    write_video(path, video.reshape(frames, height, width, 3), 10)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two true videos and their results; everybody is found in the middle."""
    for name in ("b", "a"):
        film(tmp_path / "true" / f"{name}.mp4")
        film(tmp_path / "made" / f"{name}.mp4")

    def detect(frames):
        body = np.full((len(frames), 18, 2), 0.5, np.float32)
        body[:, 0, 1], body[:, 10, 1] = 0.25, 0.75
        confidence = np.ones((len(frames), 18), np.float32)
        return dataclasses.replace(Keypoints.empty(len(frames)), body=body, body_confidence=confidence)

    monkeypatch.setattr(clips, "detect", detect)
    return tmp_path


def test_rendered_clips_begin_after_the_gap():
    pytest.importorskip("numba")
    from animate_jax.data.mocap_people import MocapPeople

    (clip,) = from_renderer("test_both", 1, 3, 4, (64, 48), 10.0)
    whole = MocapPeople("test_both", height=64, width=48).clip(0, 7)
    np.testing.assert_array_equal(clip.reference, whole.frames[0])
    np.testing.assert_array_equal(clip.frames, whole.frames[4:])
    np.testing.assert_array_equal(clip.masks, whole.mask[[0, 4, 5, 6]])
    np.testing.assert_array_equal(clip.keypoints.body, whole.keypoints.body[[0, 4, 5, 6]])
    assert clip.name.startswith("000_test-") and clip.result is None


def test_videos_of_a_folder(folders):
    files = video_files(folders / "true")
    assert [path.name for path in files] == ["a.mp4", "b.mp4"] and video_files(folders / "true", 1) == files[:1]
    first, _ = from_videos(files, 3, 2, None, None)
    assert first.name == "a" and first.fps == 10 and first.result is None
    assert first.reference.shape == (64, 48, 3) and first.reference.max() < 10
    brightness = first.frames.mean((1, 2, 3))
    assert len(brightness) == 3 and np.abs(brightness - [40, 60, 80]).max() < 3
    assert first.masks.shape == (4, 64, 48) and len(first.keypoints) == 4


def test_results_stand_beside_the_truth(folders):
    film(folders / "made" / "a.mp4", height=128, width=96)
    both = list(from_videos(video_files(folders / "true"), None, 1, None, None, folders / "made"))
    assert [clip.name for clip in both] == ["a", "b"]
    for clip in both:
        assert clip.result.shape == clip.frames.shape == (5, 64, 48, 3)
        assert np.abs(clip.result.astype(int) - clip.frames).mean() < 3


def test_a_folder_of_videos_needs_no_protocol(folders):
    opened = open_clips(folders / "true", clips=1, results=folders / "made")
    assert len(opened) == 1 and len(list(opened)) == len(list(opened)) == 1  # once more from the beginning
    (clip,) = opened
    assert clip.result is not None and len(clip.frames) == 5
    (alone,) = open_clips(folders / "true", clips=1, frames=2)
    assert alone.result is None and len(alone.frames) == 2


def test_recorded_clips_keep_their_joints(monkeypatch):
    """Frames are left out for a lower rate, and joints follow the cut."""
    from animate_jax.data import records

    frames = np.repeat(np.arange(12, dtype=np.uint8)[:, None] * 20, 64 * 96 * 3, 1).reshape(12, 64, 96, 3)
    keypoints = Keypoints.empty(12)
    keypoints.body[:, 0, 0], keypoints.body[:, 0, 1] = 0.75, np.arange(12) / 12
    keypoints.body_confidence[:, 0] = 1
    clip = records.RecordedClip("show/one", encode_mp4(frames, 20, 4), 20.0, 96, 64, keypoints)
    monkeypatch.setattr(records, "RecordedClips", lambda root, split: [clip, clip, clip])
    read = from_records("data", "test", 2, 3, 2, (64, 64), 10.0)
    first, _ = read
    assert len(read) == 2 and first.name == "show_one" and first.fps == 10
    assert first.reference.mean() < 5 and first.frames.shape == (3, 64, 64, 3)
    assert np.abs(first.frames.mean((1, 2, 3)) - [80, 120, 160]).max() < 3
    np.testing.assert_allclose(first.keypoints.body[:, 0, 1], np.float32([0, 4, 6, 8]) / 12)
    np.testing.assert_allclose(first.keypoints.body[:, 0, 0], (0.75 * 96 - 16) / 64)


@pytest.mark.parametrize(
    "made, message",
    [
        ({"frames": 5}, r"made/a\.mp4: 5 frames and 6 in .*true/a\.mp4"),
        ({"width": 64}, r"made/a\.mp4: 64x64 pixels, 48x64 in"),
    ],
)
def test_results_of_another_length_or_shape(folders, made, message):
    film(folders / "made" / "a.mp4", **made)
    with pytest.raises(UserError, match=message):
        list(from_videos(video_files(folders / "true"), None, 1, None, None, folders / "made"))


def test_what_is_missing_is_named(folders, monkeypatch):
    (folders / "made" / "b.mp4").unlink()
    files = video_files(folders / "true")
    with pytest.raises(UserError, match="made: no video named b"):
        list(from_videos(files, None, 1, None, None, folders / "made"))
    with pytest.raises(UserError, match=r"a\.mp4: only 6 frames: needs more than 6"):
        list(from_videos(files, None, 6, None, None))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        video_files(folders / "nowhere")
    with pytest.raises(UserError, match="no videos here"):
        video_files(folders)
    monkeypatch.setattr(clips, "detect", lambda frames: Keypoints.empty(len(frames)))
    with pytest.raises(UserError, match=r"a\.mp4: no person found"):
        list(from_videos(files, None, 1, None, None))


def test_the_center_is_cropped():
    wide = np.zeros((1, 64, 128, 3), np.uint8)
    wide[:, :, 48:80] = 200
    assert (center_crop_resize(wide, (64, 32)) == 200).all()
    assert center_crop_resize(wide, (32, 64)).shape == (1, 32, 64, 3)
    assert center_crop_resize(wide.transpose(0, 2, 1, 3), (32, 64)).min() == 200
    assert resize_lanczos(wide, (64, 128)) is wide


def test_boxes_around_people():
    keypoints = Keypoints.empty(2)
    keypoints.body[0, :2] = [[0.5, 0.25], [0.5, 0.75]]
    keypoints.body_confidence[0, :2] = 1
    masks = person_boxes(keypoints, (100, 80))
    assert not masks[1].any()
    y, x = np.nonzero(masks[0])
    assert (x.min(), x.max() + 1, y.min(), y.max() + 1) == (35, 45, 19, 81)
