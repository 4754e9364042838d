import gc
import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import PIL.Image
import pytest

from animate_jax.errors import UserError
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.images import read_image, write_image
from animate_jax.video.read import frame_count, frame_rate, iter_frames, read_video
from animate_jax.video.write import check_output, video_writer, write_video

pytestmark = pytest.mark.compiles

RED, GREEN, BLUE, BROWN = (250, 10, 10), (20, 200, 30), (10, 20, 240), (150, 90, 40)


def quarters(height=48, width=64):
    """Red, green; blue, brown."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = RED, GREEN
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = BLUE, BROWN
    return picture


def counting(frames=8, height=48, width=64):
    """Gray frames whose brightness tells their number: 20, 40, 60..."""
    return np.broadcast_to(
        np.arange(1, frames + 1, dtype=np.uint8)[:, None, None, None] * 20, (frames, height, width, 3)
    )


def numbers(video):
    return np.rint(video.mean((1, 2, 3)) / 20).astype(int).tolist()


def corners(picture):
    """Top left, top right, bottom left, bottom right."""
    return picture[[5, 5, -5, -5], [5, -5, 5, -5]].astype(int)


def encode(path, frames, codec="libx264", rate=25, times=None, rotation=0, time_base=None, format="yuv420p"):
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], format
        if rotation:
            stream.set_display_rotation(rotation)
        if time_base:
            stream.codec_context.time_base = time_base
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format=format)
            if times:
                frame.pts, frame.time_base = times[index], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def assert_user_error(act, path, *reasons):
    with pytest.raises(UserError) as error:
        act()
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for reason in reasons:
        assert reason in message


@pytest.mark.parametrize("fps", [25, 12.5, Fraction(30000, 1001), 60])
def test_mp4_keeps_colors_frames_and_rate(tmp_path, fps):
    video = np.stack([quarters()] * 5)
    write_video(tmp_path / "a.mp4", video, fps)
    back, rate = read_video(tmp_path / "a.mp4")
    assert rate == pytest.approx(float(fps), abs=1e-9)
    assert (back.shape, back.dtype) == (video.shape, np.uint8)
    for frame in back:
        np.testing.assert_allclose(corners(frame), [RED, GREEN, BLUE, BROWN], atol=6)


def test_mp4_is_h264_that_every_player_shows(tmp_path):
    write_video(tmp_path / "a.mp4", counting(), 25)
    with av.open(tmp_path / "a.mp4") as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")


def test_odd_sizes_gain_a_copy_of_the_last_row_and_column(tmp_path):
    video = np.stack([quarters(47, 63)] * 2)
    write_video(tmp_path / "a.mp4", video, 25)
    back, _ = read_video(tmp_path / "a.mp4")
    assert back.shape == (2, 48, 64, 3)
    np.testing.assert_allclose(corners(back[0]), [RED, GREEN, BLUE, BROWN], atol=6)
    np.testing.assert_allclose(back[0, 47, -5].astype(int), BROWN, atol=6)


def test_frames_may_come_from_an_iterator(tmp_path):
    write_video(tmp_path / "a.mp4", (frame for frame in counting()), 25)
    assert numbers(read_video(tmp_path / "a.mp4")[0]) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("fps", "expected"), [(10, 8), (30, 8), (25, 8), (100, 4)])
def test_gif_keeps_frames_and_rate(tmp_path, fps, expected):
    write_video(tmp_path / "a.gif", counting(), fps)
    back, rate = read_video(tmp_path / "a.gif")
    assert len(back) == expected
    assert len(back) / rate == pytest.approx(8 / fps, abs=0.005)  # the length in seconds
    assert numbers(back) == list(range(1, 9, 8 // expected))


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mkv", "ffv1", "yuv444p"),
        ("a.mov", "mpeg4", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
    ],
)
def test_other_containers(tmp_path, name, codec, format):
    encode(tmp_path / name, [quarters()] * 6, codec, Fraction(30000, 1001), format=format)
    back, rate = read_video(tmp_path / name)
    assert back.shape == (6, 48, 64, 3)
    assert rate == pytest.approx(30000 / 1001)
    np.testing.assert_allclose(corners(back[3]), [RED, GREEN, BLUE, BROWN], atol=12)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_flag_is_applied(tmp_path, rotation):
    """The flag turns the picture counter-clockwise."""
    encode(tmp_path / "a.mp4", [quarters()] * 2, rotation=rotation)
    back, _ = read_video(tmp_path / "a.mp4")
    expected = np.rot90(quarters(), rotation // 90)
    assert back[0].shape == expected.shape
    np.testing.assert_allclose(corners(back[0]), corners(expected), atol=12)


def test_variable_rate_becomes_constant(tmp_path):
    """Shown for 0.1, 0.3, 0.1, 0.1, 0.3 and 0.1 s: 6 frames/s on average."""
    times = [0, 100, 400, 500, 600, 900]
    encode(tmp_path / "a.mkv", counting(6), "ffv1", times=times, time_base=Fraction(1, 1000), format="yuv444p")
    back, rate = read_video(tmp_path / "a.mkv", fps=10)
    assert rate == 10
    assert numbers(back) == [1, 2, 2, 3, 3, 4, 5, 5, 6, 6]  # nearest in time


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(25, [1, 2, 3, 4, 5, 6, 7, 8]), (50, [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8])],
)
def test_asking_for_a_rate(tmp_path, fps, expected):
    write_video(tmp_path / "a.mp4", counting(), 25)
    back, rate = read_video(tmp_path / "a.mp4", fps=fps)
    assert rate == fps
    assert len(back) == len(expected)
    assert np.abs(np.array(numbers(back)) - expected).max() <= (fps > 25)


def test_half_the_rate_takes_every_second_frame(tmp_path):
    write_video(tmp_path / "a.mp4", counting(), 25)
    assert numbers(read_video(tmp_path / "a.mp4", fps=12.5)[0]) == [1, 3, 5, 7]


def test_start_and_number_of_frames(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, counting(), 25)
    assert numbers(read_video(path, start=2, frames=3)[0]) == [3, 4, 5]
    assert numbers(read_video(path, start=6, frames=30)[0]) == [7, 8]
    assert next(iter_frames(path, start=1)).mean() == pytest.approx(40, abs=2)
    assert frame_rate(path) == 25
    assert_user_error(lambda: read_video(path, start=8), path, "number 8", "earlier start")


def test_files_that_are_not_videos(tmp_path):
    text, empty, folder = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "folder.mp4"
    text.write_text("not a video\n" * 100)
    empty.write_bytes(b"")
    folder.mkdir()
    assert_user_error(lambda: read_video(tmp_path / "none.mp4"), tmp_path / "none.mp4", "no such file")
    assert_user_error(lambda: read_video(text), text, "not a readable video")
    assert_user_error(lambda: read_video(empty), empty, "empty")
    assert_user_error(lambda: read_video(folder), folder, "is a folder")


def test_a_playlist_opens_no_other_file(tmp_path):
    write_video(tmp_path / "private.mp4", np.zeros((4, 32, 32, 3), np.uint8), 4)
    listed = tmp_path / "list.m3u8"
    listed.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/private.mp4\n#EXT-X-ENDLIST\n")
    assert_user_error(lambda: read_video(listed), listed, "not a readable video")


def test_videos_that_are_cut_off(tmp_path):
    """An mp4's table of contents may be at the end, and so lost, or in front; a webm just ends."""
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3)).astype(np.uint8)
    encode(tmp_path / "late.mp4", noise)
    write_video(tmp_path / "early.mp4", noise, 25)
    encode(tmp_path / "a.webm", noise, "libvpx-vp9")
    reasons = {"late.mp4": "not a readable video", "early.mp4": "is cut off", "a.webm": "ends after"}
    for name, reason in reasons.items():
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert_user_error(lambda path=path: read_video(path), path, reason)


def test_damaged_video(tmp_path):
    """The pictures after the damage are lost, and the message says when."""
    path = tmp_path / "a.avi"
    encode(
        path,
        np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3)).astype(np.uint8),
        "mjpeg",
        format="yuvj420p",
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 3000] = bytes(3000)
    path.write_bytes(content)
    assert_user_error(lambda: read_video(path), path, "damaged after 0.")


def test_videos_without_pictures(tmp_path):
    silent, empty = tmp_path / "sound.mp4", tmp_path / "empty.avi"
    with av.open(silent, "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert_user_error(lambda: read_video(silent), silent, "no video stream")
    with av.open(empty, "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        container.start_encoding()
    assert_user_error(lambda: read_video(empty), empty, "no frames in it")


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    for path, reason in [
        (tmp_path / "file" / "a.mp4", "cannot be written"),
        (tmp_path / "folder.mp4", "is a folder"),
        (tmp_path / "a.xyz", ".mp4, .webm or .gif"),
        (tmp_path / "a", ".mp4, .webm or .gif"),
    ]:
        assert_user_error(lambda path=path: write_video(path, counting(), 25), path, reason)
        assert_user_error(lambda path=path: check_output(path), path, reason)
    assert_user_error(lambda: write_video(tmp_path / "a.mp4", counting(), 0), tmp_path / "a.mp4", "frames/s")
    assert_user_error(
        lambda: write_image(tmp_path / "a.mp4", quarters()), tmp_path / "a.mp4", ".png, .jpg, .jpeg or .webp"
    )
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


def test_a_failure_leaves_the_old_file_and_nothing_half_written(tmp_path):
    def failing():
        yield from counting(3)
        raise RuntimeError("out of memory")

    for name in ("a.mp4", "a.gif"):
        (tmp_path / name).write_text("old")
        with pytest.raises(RuntimeError, match="out of memory"):
            write_video(tmp_path / name, failing(), 25)
        assert (tmp_path / name).read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.gif", "a.mp4"]


def test_missing_folders_are_made(tmp_path):
    check_output(tmp_path / "new" / "deep" / "a.mp4")
    assert os.listdir(tmp_path / "new" / "deep") == []
    write_image(tmp_path / "other" / "a.png", quarters())
    assert (tmp_path / "other" / "a.png").is_file()


@pytest.mark.parametrize(("name", "tolerance"), [("a.png", 0), ("a.jpg", 12), ("a.webp", 12)])
def test_images_keep_their_colors(tmp_path, name, tolerance):
    write_image(tmp_path / name, quarters())
    back = read_image(tmp_path / name)
    assert (back.shape, back.dtype) == ((48, 64, 3), np.uint8)
    np.testing.assert_allclose(corners(back), [RED, GREEN, BLUE, BROWN], atol=tolerance)


def test_exif_orientation_is_applied(tmp_path):
    image = PIL.Image.fromarray(quarters())
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate clockwise to show
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(quarters(), -1))


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    path, image = tmp_path / "a.png", PIL.Image.fromarray(quarters())
    image.quantize(8).save(path)
    np.testing.assert_allclose(corners(read_image(path)), [RED, GREEN, BLUE, BROWN], atol=2)
    image.convert("L").save(path)
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("L").convert("RGB")))
    PIL.Image.fromarray(np.full((4, 5), 32896, np.uint16)).save(path)
    np.testing.assert_array_equal(read_image(path), np.full((4, 5, 3), 128, np.uint8))
    image.convert("CMYK").save(tmp_path / "a.jpg")
    np.testing.assert_allclose(corners(read_image(tmp_path / "a.jpg")), [RED, GREEN, BLUE, BROWN], atol=40)


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, RED), (51, (254, 206, 206))])
def test_transparency_lies_on_white(tmp_path, alpha, expected):
    image = PIL.Image.new("RGBA", (6, 4), (*RED, alpha))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[2, 2], expected)


def test_files_that_are_not_images(tmp_path):
    text, empty, half = tmp_path / "text.png", tmp_path / "empty.png", tmp_path / "half.png"
    text.write_text("not a picture")
    empty.write_bytes(b"")
    write_image(half, np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    half.write_bytes(half.read_bytes()[:5000])
    assert_user_error(lambda: read_image(tmp_path / "none.png"), tmp_path / "none.png", "no such file")
    assert_user_error(lambda: read_image(tmp_path), tmp_path, "is a folder")
    assert_user_error(lambda: read_image(empty), empty, "empty")
    assert_user_error(lambda: read_image(text), text, "not a readable picture")
    assert_user_error(lambda: read_image(half), half, "not a readable picture")


def test_contact_sheet_shows_every_picture_once_at_its_size():
    small, large = np.full((20, 30, 3), RED, np.uint8), np.full((40, 50, 3), BLUE, np.uint8)
    sheet = contact_sheet([[small, large, large], [large, small]], ["reference", "poses", "a title much too long"])
    assert sheet.dtype == np.uint8
    assert (sheet == RED).all(-1).sum() == 2 * small.size // 3
    assert (sheet == BLUE).all(-1).sum() == 3 * large.size // 3
    border = np.concatenate([sheet[:4].reshape(-1, 3), sheet[-4:].reshape(-1, 3), sheet[:, :4].reshape(-1, 3)])
    assert (border == 255).all()
    titled, plain = sheet, contact_sheet([[small, large, large], [large, small]])
    assert titled.shape[0] > plain.shape[0]
    assert titled.shape[1] == plain.shape[1]
    np.testing.assert_array_equal(titled[-plain.shape[0] + 8 :], plain[8:])
    assert (titled[: titled.shape[0] - plain.shape[0]] < 128).any()  # letters


# Writing frame by frame


def noise(frames):
    return np.random.default_rng(0).integers(0, 256, (frames, 64, 48, 3), np.uint8)


WRITER = """
import os, signal, sys
import numpy as np
from animate_jax.video.write import video_writer

signal.signal(signal.SIGINT, signal.default_int_handler)
with video_writer(sys.argv[1], 10) as write:
    for index in range(300):
        write(np.full((64, 48, 3), index % 256, np.uint8))
        if index == 250:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_killed_writer_leaves_the_old_file_and_the_next_one_cleans_up(name, tmp_path):
    """What a killed one could not remove itself is hidden, and goes when the same video is written again."""
    path = tmp_path / "out [1].mp4"
    write_video(path, noise(5), 10)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), name], capture_output=True)
    assert done.returncode != 0
    assert path.read_bytes() == before
    left = {p.name for p in tmp_path.iterdir()} - {path.name}
    assert all(p.startswith(".") for p in left) and (name == "SIGINT") == (not left)
    write_video(path, noise(3), 10)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and len(read_video(path)[0]) == 3


def test_a_writer_leaves_files_of_living_ones_alone(tmp_path):
    with video_writer(tmp_path / "out.mp4", 10) as write:
        write(noise(1)[0])
        (other,) = tmp_path.iterdir()
        write_video(tmp_path / "out.mp4", noise(2), 10)
        assert other.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"] and len(read_video(tmp_path / "out.mp4")[0]) == 1


@pytest.mark.parametrize("left", [".out.99999999999999999999.partial.mp4", ".out.mp4.0123abcd.partial.mp4"])
@pytest.mark.parametrize("folder", [False, True])
def test_odd_leftovers_are_not_in_the_way(tmp_path, left, folder):
    (tmp_path / left).mkdir() if folder else (tmp_path / left).touch()
    write_video(tmp_path / "out.mp4", noise(2), 10)
    assert len(read_video(tmp_path / "out.mp4")[0]) == 2


def test_a_folder_that_appears_while_a_video_is_written(tmp_path):
    path = tmp_path / "out.mp4"

    def write():
        with video_writer(path, 10) as write:
            write(noise(1)[0])
            path.mkdir()

    assert_user_error(write, path, "cannot be written")
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize("length", [255, 300, 5000])
def test_names_too_long(tmp_path, length):
    """Told before there is a frame, also where only the temporary name would be too long."""
    path = tmp_path / ("a" * (length - 4) + ".mp4")
    assert_user_error(lambda: check_output(path), path, "name too long")
    assert not list(tmp_path.iterdir())


def test_how_many_frames_there_will_be(tmp_path):
    write_video(tmp_path / "a.mp4", noise(40), 20)
    assert frame_count(tmp_path / "a.mp4", 20) == 40 and frame_count(tmp_path / "a.mp4", 5) == 10


def test_frames_are_freed_as_they_are_read(tmp_path):
    """Without the collector of garbage, which comes late: 30 s of 1080p once held 750 MB."""
    write_video(tmp_path / "a.mp4", np.zeros((40, 32, 32, 3), np.uint8), 10)
    gc.collect()
    gc.disable()
    try:
        before = sum(type(each) is av.VideoFrame for each in gc.get_objects())
        assert sum(1 for _ in iter_frames(tmp_path / "a.mp4")) == 40
        assert sum(type(each) is av.VideoFrame for each in gc.get_objects()) - before <= 2
    finally:
        gc.enable()
