"""What is behind the page: what it refuses, what it says, and what it leaves."""

import contextlib
import shutil
import threading
import tracemalloc

import numpy as np
import pytest

from animate_jax import limits
from animate_jax.errors import UserError
from animate_jax.pose.detect import detect
from animate_jax.pose.inspect import warn
from animate_jax.presets import presets
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.images import read_image
from animate_jax.video.read import frame_count, read_video
from animate_jax.video.write import write_video
from animate_jax.web.studio import PICTURE_SIZE, Request, Studio, VisitorLimits, shrink, size_choices

PICTURE, MOTION = str(EXAMPLE / "reference.png"), str(EXAMPLE / "driving.mp4")
pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]


def ask(reference=PICTURE, driving=MOTION, frames=3, size="48 x 64", guidance=2.0, **rest):
    return Request(reference, driving, frames, "largest", "bones", size, guidance=guidance, **rest)


def last(updates):
    return list(updates)[-1]


@pytest.fixture
def studio(micro_params, micro, tmp_path):
    return Studio(Pipeline(micro_params, micro), VisitorLimits(frames=5, seconds=4, megabytes=1), tmp_path / "made")


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "made").mkdir()


def test_what_it_refuses(studio, tmp_path):
    (tmp_path / "big.png").write_bytes(b"0" * 1_000_001)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "page.html").write_text("<script>")
    write_video(tmp_path / "long.mp4", np.zeros((25, 32, 32, 3), np.uint8), 5)
    for reference, driving, message in (
        (None, MOTION, "No picture yet"),
        (PICTURE, None, "No motion yet"),
        (str(tmp_path / "page.html"), MOTION, "^page.html: this is no picture: use one of .png"),
        (PICTURE, str(tmp_path / "page.html"), "^page.html: this is no motion"),
        (str(tmp_path / "big.png"), MOTION, "^big.png: larger than 1 MB"),
        (PICTURE, str(tmp_path / "long.mp4"), "^long.mp4: 5 s long, more than 4 s"),
        (PICTURE, str(tmp_path / "text.mp4"), "^text.mp4: not a readable video"),
    ):
        with pytest.raises(UserError, match=message):
            last(studio.preview_poses(ask(reference, driving)))
        with pytest.raises(UserError, match=message):
            next(studio.animate(ask(reference, driving, steps=1)))


def test_the_poses_before_running(studio):
    updates = list(studio.preview_poses(ask()))
    told = [update.text for update in updates]
    assert told[-4:] == ["Reading poses: 0%", "Reading poses: 33%", "Reading poses: 67%", "Poses of 3 frames"]
    picture, video = updates[-1].reference, updates[-1].poses
    assert picture.shape == (64, 96, 3) and picture[:, 48:].any()
    frames, fps = read_video(video)
    assert len(frames) == 3 and fps == pytest.approx(10) and frames.shape[1] == 64
    for half in (frames[:, :, :-48], frames[:, :, -48:]):  # a person of some height in both
        assert np.ptp(np.nonzero(half.max((0, 2, 3)) > 64)[0]) > 32


def test_another_detector(studio, tmp_path):
    """Finds the person of the picture and of the video."""
    asked = []

    def detector(frames, *options):
        asked.append(len(options))
        return detect(frames)

    other = Studio(studio.pipeline, studio.limits, studio.folder, detector)
    picture = last(other.preview_poses(ask())).reference
    assert asked == [0, 2]
    np.testing.assert_array_equal(picture, last(studio.preview_poses(ask())).reference)
    assert len(asked) == 2


def test_poses_are_read_once(studio, tmp_path):
    """For the same file and options; a removed file's are forgotten."""
    read = []

    def detector(frames, *options):
        read.append(bool(options))
        return detect(frames)

    file = tmp_path / "made" / "mine.mp4"
    shutil.copy(MOTION, file)
    studio.detector = detector
    *_, looked = studio.preview_poses(ask(driving=str(file)), "me")
    assert looked.poses and sum(read) == 1
    *_, made = studio.animate(ask(driving=str(file), steps=1, guidance=1.0), "me")
    assert made.video and sum(read) == 1
    last(studio.preview_poses(ask(driving=str(file), frames=2), "me"))
    assert sum(read) == 2 and len(studio.motions) == 2
    studio.end_session("me")
    assert not studio.motions


def test_what_is_wrong_with_the_poses_is_said(studio, monkeypatch):
    """Also when they are not read again."""

    def gaps(*_):
        warn("driving.mp4: only 1 of 3 frames show a person")

    monkeypatch.setattr("animate_jax.sampling.inputs.warn_of_gaps", gaps)
    monkeypatch.setattr(
        "animate_jax.sampling.inputs.warn_of_fit", lambda *_: warn("9% of the fitted joints lie outside")
    )
    for _ in range(2):
        assert last(studio.preview_poses(ask())).text.splitlines() == [
            "Poses of 3 frames",
            "driving.mp4: only 1 of 3 frames show a person",
            "9% of the fitted joints lie outside",
        ]


def test_poses_of_a_npy_file(studio, tmp_path):
    """They do not tell the size of their pictures: the result's is taken."""
    body = np.random.default_rng(0).uniform(0.2, 0.8, (4, 18, 2))
    np.save(tmp_path / "poses.npy", body)
    video = last(studio.preview_poses(ask(driving=str(tmp_path / "poses.npy")))).poses
    frames, _ = read_video(video)
    assert frames.shape == (3, 64, 98, 3) and frames[:, :, :48].max() > 64


def test_a_video_with_progress_and_preview(studio, monkeypatch):
    monkeypatch.setattr("animate_jax.web.studio.PREVIEW_EVERY", 0)
    updates = list(studio.animate(ask(frames=9, steps=2, speed="fast")))
    percent = [update.text for update in updates if "Denoising" in update.text]
    assert len(percent) == 5 and percent[-1].endswith("100%")  # 2 steps of 2 windows; 5 frames are the limit
    assert all(update.preview.shape == (64, 48, 3) for update in updates if update.preview is not None)
    assert updates[-1].text.startswith("5 frames in ")
    assert len(read_video(updates[-1].video)[0]) == 5 and read_video(updates[-1].side_by_side)[0].shape[2] == 144


def test_the_preview_nears_the_result(micro_params, micro):
    """After the last step of DDIM without guidance, what the model makes of the first frame is that frame."""
    seen = []
    animation = Pipeline(micro_params, micro)(
        PICTURE,
        MOTION,
        frames=2,
        guidance=1.0,
        progress=False,
        callback=lambda done, preview: seen.append((done, preview())),
    )
    assert [done for done, _ in seen] == [0.5, 1.0]
    first, last = (np.abs(preview.astype(int) - animation.frames[0]).mean() for _, preview in seen)
    assert last < 2 < first


def test_leaving_stops_the_work(studio):
    before = set(threading.enumerate())
    updates = studio.animate(ask(frames=5, steps=500))
    while "Denoising" not in next(updates).text:
        pass
    updates.close()
    assert not studio.device_lock.locked() and not set(threading.enumerate()) - before
    assert not list(studio.folder.rglob("*.mp4"))


def test_cancel(studio):
    updates = studio.animate(ask(frames=5, steps=500), "me")
    while "Denoising" not in next(updates).text:
        pass
    studio.cancel("somebody else")
    assert "%" in next(updates).text
    assert studio.cancel("me") == "Cancelled"
    assert len(rest := list(updates)) < 500 and rest[-1].text == "Cancelled"
    assert not studio.device_lock.locked()


def test_the_pictures_own_size_and_its_backgrounds(studio):
    request = ask(size=PICTURE_SIZE, background="green", steps=1)
    picture = last(studio.preview_poses(request)).reference
    height, width = read_image(PICTURE).shape[:2]
    assert picture.shape == (height, 2 * width, 3)
    frames, _ = read_video(last(studio.animate(request)).video)
    assert frames.shape == (3, height, width, 3)
    for message, size, background in (
        ("Background /etc/passwd: choose one of reference, driving", PICTURE_SIZE, "/etc/passwd"),
        ("Background white: goes with the size: the picture's own", "48 x 64", "white"),
    ):
        with pytest.raises(UserError, match=message):
            last(studio.preview_poses(ask(size=size, background=background)))


def test_sizes_on_offer(micro):
    """Few, so that few are compiled; none with much more than four times the preset's pixels."""
    for preset in (micro, *presets().values()):
        found, multiple = size_choices(preset), preset.model.vae.downscale
        width, height = preset.frames.width, preset.frames.height
        assert len(found) <= 10 and next(iter(found.values())) == (width, height)
        assert all(side % multiple == 0 for size in found.values() for side in size)
        assert all(0.8 < w * h / (width * height) < 4.3 for w, h in found.values())


def test_what_is_too_much(studio, monkeypatch):
    def animate(**changes):
        return studio.animate(ask(**{"frames": 5, "steps": 10} | changes))

    with pytest.raises(UserError, match="Size 1024 x 1024: choose one of 48 x 64, "):
        next(animate(size="1024 x 1024"))
    monkeypatch.setattr(limits, "PAGE_WORK", 100)
    animate().close()
    for more in ({"steps": 11}, {"size": "64 x 48", "steps": 11}, {"size": "96 x 128", "guidance": 1.0}):
        with pytest.raises(UserError, match=r"choose \d+% of the frames or steps, or a smaller size"):
            next(animate(**more))
    with pytest.raises(UserError, match="steps 0"):
        next(animate(steps=0))


def test_videos_of_too_many_pixels(studio, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_VIDEO_PIXELS", 5000)
    with pytest.raises(UserError, match=r"^driving.mp4: .* scale it down"):
        last(studio.preview_poses(ask()))
    monkeypatch.undo()
    monkeypatch.setattr(limits, "PAGE_VIDEO_DECODED", 100_000)
    with pytest.raises(UserError, match=r"^driving.mp4: too many pixels at 10 frames/s"):
        last(studio.preview_poses(ask()))


def test_a_wide_canvas_takes_no_memory(studio, tmp_path, keypoints):
    """Refused, or at most as wide as any picture: 5 frames of 64 x 1024 pixels."""
    tracemalloc.start()
    with contextlib.suppress(UserError):
        updates = studio.preview_poses(ask(PICTURE, keypoints(tmp_path / "wide.json", (999_999, 100), 240)))
        assert read_video(last(updates).poses)[0].shape[2] <= 64 * limits.CANVAS_RATIO + 50
    # 8.6 GB once; what libraries load at the first look is in it, as is what other threads take meanwhile.
    assert tracemalloc.get_traced_memory()[1] < 250e6
    tracemalloc.stop()


def test_keypoint_files_are_small(studio, tmp_path, monkeypatch, keypoints):
    monkeypatch.setattr(limits, "PAGE_KEYPOINTS_BYTES", 500_000)
    with pytest.raises(UserError, match=r"^large.json: larger than 0 MB"):
        last(studio.preview_poses(ask(PICTURE, keypoints(tmp_path / "large.json", (100, 100), 2, 500_000))))


def test_large_pictures_are_shrink():
    assert shrink(np.zeros((64, 48, 3), np.uint8)).shape == (64, 48, 3)
    assert shrink(np.zeros((8000, 500, 3), np.uint8)).shape == (2048, 128, 3)


def test_programs_are_dropped(studio, monkeypatch):
    monkeypatch.setattr(limits, "PAGE_PROGRAMS", 1)
    cleared = []
    monkeypatch.setattr("jax.clear_caches", lambda: cleared.append(True))
    for frames in (2, 2, 3):
        list(studio.animate(ask(frames=frames, steps=1, guidance=1.0)))
    assert len(cleared) == 1 and not studio.compiled_shapes


def test_sessions_are_forgotten_with_their_files(studio):
    mine, both = studio.folder / "a" / "me.png", studio.folder / "b" / "dance.mp4"
    for file, source in ((mine, PICTURE), (both, MOTION)):
        file.parent.mkdir()
        shutil.copy(source, file)
    for session in ("me", "you"):
        last(studio.preview_poses(ask(str(mine) if session == "me" else PICTURE, str(both)), session))
    list(studio.animate(ask(str(mine), str(both), frames=2, steps=1, guidance=1.0), "me"))
    assert not studio.running and len(list(studio.folder.rglob("*.mp4"))) == 5
    studio.end_session("me")
    assert sorted(file.name for file in studio.folder.rglob("*.*")) == ["dance.mp4", "poses.mp4"]
    assert set(studio.session_files) == {"you"}
    with pytest.raises(UserError, match=r"^me.png: is no longer here"):
        last(studio.preview_poses(ask(str(mine))))
    studio.store.keep = 0.0
    studio.evict()
    assert not studio.session_files and not list(studio.folder.rglob("*.*"))


def test_messages_name_no_folder(studio, monkeypatch):
    """Nor those of the page itself."""

    def full(path, *_):
        raise UserError(f"{path}: cannot be written (No space left on device): is the disk full?")

    monkeypatch.setattr("animate_jax.web.studio.write_video", full)
    with pytest.raises(UserError, match=r"^poses.mp4: cannot be written"):
        last(studio.preview_poses(ask()))


def test_the_end_waits_for_the_device(studio):
    updates = studio.animate(ask(frames=5, steps=500), "me")
    while "Denoising" not in next(updates).text:
        pass
    studio.close()
    assert list(updates)[-1].text == "Cancelled" and studio.device_lock.locked()  # nothing begins any more


def test_the_bundled_motion_fits_the_limits():
    assert frame_count(MOTION, 1) < VisitorLimits().seconds
