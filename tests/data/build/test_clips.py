"""From a video to clips: scenes, tracks, reasons to drop, regions, and what is stored."""

import dataclasses
import io

import av
import numpy as np
import pytest

from animate_jax.data.build.clips import KEYFRAME_INTERVAL, BuiltClip, ClipOptions, Segment, Video, extract_clips
from animate_jax.data.build.shots import shots
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.images import write_image
from animate_jax.video.write import write_video

pytestmark = pytest.mark.compiles

HEIGHT, WIDTH = 96, 128
OPTIONS = ClipOptions(min_person=30, min_motion=0.05)
PLACES = np.stack(np.meshgrid([0.1, 0.5, 0.9], np.linspace(0.05, 0.95, 6)), -1).reshape(18, 2)


def scene(seed: int) -> np.ndarray:
    """A background without pure green."""
    small = np.random.default_rng(seed).integers(40, 160, (6, 8, 3), dtype=np.uint8)
    return small.repeat(16, 0).repeat(16, 1)


def frame(x: float | None, height: int = 48, background: int = 0) -> np.ndarray:
    """A green box whose left side is at x; its lower side is 10 pixels above the picture's."""
    picture = scene(background)
    if x is not None:
        picture[HEIGHT - 10 - height : HEIGHT - 10, int(x) : int(x) + height // 2] = (0, 255, 0)
    return picture


def moving(frames: int, start: float = 10, step: float = 1, **look) -> list[np.ndarray]:
    return [frame(start + step * i, **look) for i in range(frames)]


def find_boxes(frames) -> Keypoints:
    """A detector for the green boxes: 18 points in each."""
    poses = []
    for picture in frames:
        pose, (height, width, _) = Keypoints.empty(), picture.shape
        rows, columns = np.nonzero((picture[..., 1] > 180) & (picture[..., 0] < 100) & (picture[..., 2] < 100))
        if rows.size > 50:
            low = np.array([columns.min(), rows.min()])
            points = low + PLACES * (np.array([columns.max(), rows.max()]) + 1 - low)
            body = (points / (width, height)).astype(np.float32)
            pose = dataclasses.replace(pose, body=body, body_confidence=np.ones(18, np.float32))
        poses.append(pose)
    return Keypoints.stack(poses)


@pytest.fixture
def read(tmp_path):
    """Writes frames to a video, extracts its clips, and checks that every frame went somewhere."""

    def run(frames, options=OPTIONS, fps=25):
        write_video(tmp_path / "video.mp4", frames, fps)
        rate, results, pictures = extract_clips(Video("video.mp4", tmp_path / "video.mp4"), options, find_boxes)
        assert rate == (options.fps or fps)
        segments = [result if isinstance(result, Segment) else result.segment for result in results]
        starts = np.cumsum([0] + [segment.frames for segment in segments])
        assert [segment.start for segment in segments] == starts[:-1].tolist()
        assert starts[-1] == round(len(frames) * rate / fps)
        assert len(pictures) == len(segments) and all(picture[:2] == b"\xff\xd8" for picture in pictures)
        return results

    return run


def kinds(results):
    return [
        ("kept", result.segment.frames) if isinstance(result, BuiltClip) else (result.reason, result.frames)
        for result in results
    ]


def decode(clip):
    with av.open(io.BytesIO(clip.video)) as container:
        return [(picture.to_ndarray(format="rgb24"), picture) for picture in container.decode(video=0)]


def test_a_cut_is_found_and_motion_is_none():
    frames = [*moving(12, step=8, background=0), *moving(3, background=1), *moving(12, background=2)]
    numbered = list(shots(frames))
    assert [shot for shot, _ in numbered] == [0] * 12 + [1] * 3 + [2] * 12
    assert all(found is given for (_, found), given in zip(numbered, frames, strict=True))


def test_a_picture_that_changes_all_the_time_is_one_shot():
    """A camera that whirls around: every frame is new, none stands out."""
    assert {shot for shot, _ in shots(scene(i) for i in range(20))} == {0}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_shots_of_hardly_any_frames(count):
    assert [shot for shot, _ in shots([scene(0)] * count)] == [0] * count


def test_reasons(read):
    nobody = [frame(None)] * 6
    results = read(
        [
            *moving(30),
            *nobody,
            *moving(10),
            *nobody,
            *moving(30, step=0),
            *nobody,
            *moving(30, height=24),
            *nobody,
            *moving(25, step=2),
        ]
    )
    assert kinds(results) == [
        ("kept", 30),
        ("no person", 6),
        ("too short", 10),
        ("no person", 6),
        ("too little motion", 30),
        ("no person", 6),
        ("too small a person", 30),
        ("no person", 6),
        ("kept", 25),
    ]


def test_a_cut_and_a_person_elsewhere_end_a_clip(read):
    results = read([*moving(30), *moving(30, background=1), *moving(30, start=90, step=-1, background=1)])
    assert kinds(results) == [("kept", 30)] * 3


def test_long_ones_become_several_of_equal_length(read):
    results = read(moving(70, step=0.7), dataclasses.replace(OPTIONS, max_seconds=1.2))
    assert kinds(results) == [("too short", 23), ("too short", 23), ("too short", 24)]
    assert kinds(read(moving(70, step=0.7), dataclasses.replace(OPTIONS, max_seconds=1.6))) == [("kept", 35)] * 2


@pytest.mark.parametrize("max_side", [1024, 40])
def test_stored_video_and_points_belong_together(read, max_side):
    (clip,) = read(moving(30), dataclasses.replace(OPTIONS, max_side=max_side))
    pictures = [picture for picture, _ in decode(clip)]
    assert len(pictures) == len(clip.keypoints) == 30
    assert all(picture.shape == (clip.height, clip.width, 3) for picture in pictures)
    assert clip.width % 2 == clip.height % 2 == 0 and max(clip.width, clip.height) <= max_side
    assert (clip.width < WIDTH) and (clip.height < HEIGHT)
    found = find_boxes(pictures)
    distance = np.abs(found.body * (clip.width, clip.height) - clip.keypoints.body)
    assert distance.max() < 1.5 and clip.keypoints.body.max() > 20
    assert clip.segment.motion > 0.05 and clip.segment.height == pytest.approx(0.9 * 48, abs=2)


def test_padding_keeps_the_person_off_the_border_but_in_the_picture(read):
    (clip,) = read(moving(30))
    low, high = clip.keypoints.body.min((0, 1)), clip.keypoints.body.max((0, 1))
    margin = 0.15 * 0.9 * 48 - 2
    assert (low >= margin).all() and (np.array([clip.width, clip.height]) - high >= margin).all()


def test_stored_video_can_be_entered_every_few_frames(read):
    (clip,) = read(moving(60, step=0.5))
    pictures = [picture for _, picture in decode(clip)]
    keys = [index for index, picture in enumerate(pictures) if picture.key_frame]
    assert keys[0] == 0 and np.diff(keys).max() <= KEYFRAME_INTERVAL
    assert {picture.pict_type for picture in pictures} <= {av.video.frame.PictureType.I, av.video.frame.PictureType.P}
    assert [round(picture.time * 25) for picture in pictures] == list(range(60))


def test_another_frame_rate(read):
    (clip,) = read(moving(60), dataclasses.replace(OPTIONS, fps=12.5, min_seconds=2.0))
    assert len(decode(clip)) == len(clip.keypoints) == 30
    step = np.diff(clip.keypoints.body[:, 0, 0])
    np.testing.assert_allclose(step, 2, atol=0.6)


def test_whole_videos(read):
    """For benchmarks: one clip of the whole picture, even where nobody is seen, moves, or the scene changes."""
    frames = [*moving(10, step=0), *[frame(None)] * 5, *moving(10, background=1)]
    (clip,) = read(frames, ClipOptions(whole=True))
    assert (clip.width, clip.height, len(clip.keypoints)) == (WIDTH, HEIGHT, 25)
    assert (clip.keypoints.body_confidence.any(-1) == [True] * 10 + [False] * 5 + [True] * 10).all()
    assert kinds(read([frame(None)] * 4, ClipOptions(whole=True))) == [("no person", 4)]


def test_a_folder_of_pictures(tmp_path):
    for index, picture in enumerate(moving(30)):
        write_image(tmp_path / "images" / f"{index:04d}.png", picture)
    video = Video("images", tmp_path / "images", fps=30.0)
    fps, (clip,), _ = extract_clips(video, OPTIONS, find_boxes)
    assert fps == 30 and len(clip.keypoints) == 30
    fps, (clip,), _ = extract_clips(video, dataclasses.replace(OPTIONS, fps=15.0, whole=True), find_boxes)
    assert fps == 15 and len(clip.keypoints) == 15
    np.testing.assert_allclose(np.diff(clip.keypoints.body[:, 0, 0]), 2, atol=0.01)


def test_the_same_video_gives_the_same_bytes(read):
    (a,), (b,) = read(moving(30)), read(moving(30))
    assert a.video == b.video and np.array_equal(a.keypoints.body, b.keypoints.body)
