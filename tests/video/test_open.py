"""Files of unknown origin: none opens an address or another file, takes much memory or time, or ends in a traceback."""

import contextlib
import io
import os
import socket
import stat
import threading
import warnings
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from animate_jax import limits
from animate_jax.errors import UserError
from animate_jax.video.images import read_image
from animate_jax.video.open import SeekableFile, check_rate, open_video
from animate_jax.video.read import frame_count, frame_rate, iter_frames, read_video
from animate_jax.video.write import write_video

pytestmark = pytest.mark.compiles


def moving(frames=6, height=48, width=64):
    """A white bar that moves over gray."""
    video = np.full((frames, height, width, 3), 60, np.uint8)
    for index, frame in enumerate(video):
        frame[:, 4 * index : 4 * index + 8] = 250
    return video


def encode(path, codec, times=None, rate=25, video=None, pixels="yuv420p"):
    """`times`: of every frame in 1/1000 s."""
    video = moving() if video is None else video
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            if times:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def refused(act):
    """The one line that a user is told."""
    with pytest.raises(UserError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


# Addresses and other files


@contextlib.contextmanager
def listening():
    """A port of this machine, and a list that grows with every connection to it."""
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connections.append(connection.recv(100))
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], connections
        server.shutdown(socket.SHUT_RDWR)


def lists(folder, port):
    """Files that name others, by what they are."""
    other, address = folder / "other.ts", f"http://127.0.0.1:{port}/"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" '
        'bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    )
    sdp = (
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    )
    return {
        "hls_address.m3u8": hls.format(address + "a.ts"),
        "hls_file.m3u8": hls.format(other),
        "hls_named_mp4.mp4": hls.format(other),
        "concat.ffconcat": "ffconcat version 1.0\nfile other.ts\n",
        "concat_address.mp4": f"ffconcat version 1.0\nfile {address}a.ts\n",
        "session.sdp": sdp,
        "dash_address.mpd": dash.format(address + "a.mp4"),
        "dash_file.mpd": dash.format(other),
        "stream.asx": f'<asx version="3.0"><entry><ref href="{address}"/></entry></asx>',
        "images.txt": f"{other}\n",
    }


def test_no_list_opens_an_address_or_another_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "other.ts", "mpeg2video")
    assert len(read_video(tmp_path / "other.ts")[0]) == 6  # would be shown
    with listening() as (port, connections):
        for name, text in lists(tmp_path, port).items():
            Path(name).write_text(text)
            for source in (Path(name), text.encode()):
                with open_in_line(source, name) as message:
                    assert message.startswith(f"{name}: not a readable video")
        assert connections == []


@contextlib.contextmanager
def open_in_line(source, name):
    def act():
        with open_video(source, name):
            pass

    yield refused(act)


@pytest.mark.parametrize(
    "name", ["concat:other.ts|other.ts", "subfile,,start,0,end,0,,:other.ts", "file:other.ts", "http:a"]
)
def test_a_name_is_no_address(tmp_path, monkeypatch, name):
    """FFmpeg takes each of these for something else than the file that is called so."""
    monkeypatch.chdir(tmp_path)
    encode(tmp_path / "other.ts", "mpeg2video")
    assert "no such file" in refused(lambda: read_video(name))
    encode(tmp_path / "mine.mkv", "ffv1", video=moving(3))
    Path("mine.mkv").rename(name)
    assert len(read_video(name)[0]) == 3


def test_videos_as_contents(tmp_path):
    contents = encode(tmp_path / "a.mkv", "ffv1").read_bytes()
    with open_video(contents, "clip 7") as (container, stream):
        assert len(list(container.decode(stream))) == 6
    with open_in_line(contents[:100], "clip 7") as message:
        assert message.startswith("clip 7: not a readable video (")


def test_no_picture_is_given_to_another_program(tmp_path, monkeypatch):
    """Pillow calls Ghostscript, where it is installed, for whatever begins like PostScript."""
    called, program = tmp_path / "called", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\necho $@ >> {called}\necho 10.0\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert "not a readable picture" in refused(lambda: read_image(path))
    assert not called.exists()


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "PCX", "ICO", "JPEG2000", "TGA", "SGI", "PDF"])
def test_only_common_kinds_of_pictures_are_opened(tmp_path, kind):
    path = tmp_path / "a.png"
    PIL.Image.fromarray(moving()[0]).save(path, format=kind)
    assert "give a whole PNG, JPEG or WebP file" in refused(lambda: read_image(path))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
def test_whatever_they_are_called(tmp_path, kind):
    PIL.Image.init()
    if kind not in PIL.Image.SAVE:
        pytest.skip("Pillow without AVIF")
    PIL.Image.fromarray(moving()[0]).save(tmp_path / "a.jpg", format=kind)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - moving()[0]).mean() < 12


# Sizes


def claims_png(width, height):
    """A PNG of black pixels, one bit each."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    data = zlib.compress(bytes(min(height * (1 + (width + 7) // 8), 1 << 24)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(10_001, 10_000), (12_000, 12_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_pictures_too_large(tmp_path, size):
    """Said by us, not by Pillow's warnings."""
    path = tmp_path / "a.png"
    path.write_bytes(claims_png(*size))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert "more than 100 million pixels: scale it down" in refused(lambda: read_image(path))
    assert not warned


def test_pictures_and_videos_that_are_hardly_more_than_a_line(tmp_path):
    (tmp_path / "a.png").write_bytes(claims_png(2000, 100))
    assert "2000 x 100 pixels: one side is over 16 times the other" in refused(lambda: read_image(tmp_path / "a.png"))
    encode(tmp_path / "a.mkv", "ffv1", video=np.zeros((2, 16, 400, 3), np.uint8))
    assert "400 x 16 pixels: one side" in refused(lambda: read_video(tmp_path / "a.mkv"))


def test_a_video_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mkv", "ffv1")
    monkeypatch.setattr(limits, "VIDEO_PIXELS", 48 * 64 - 1)
    assert "64 x 48 pixels: more than 0 million pixels" in refused(lambda: frame_rate(path))


def test_a_stream_that_grows_is_not_decoded(tmp_path, monkeypatch):
    """Its container tells the first size."""
    small, large = (encode(tmp_path / f"{n}.ts", "mpeg2video", video=moving(3, 16 * n, 16 * n)) for n in (2, 8))
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert read_video(path)[0].shape[1:] == (32, 32, 3)
    monkeypatch.setattr(limits, "VIDEO_PIXELS", 64 * 64)
    assert "damaged after" in refused(lambda: read_video(path))


# Times


@pytest.mark.parametrize("gap", [3600, 10 * 24 * 3600])
def test_a_gap_is_not_filled(tmp_path, gap):
    times = [0, 40, 80, *(1000 * gap + 40 * i for i in range(3))]
    path = encode(tmp_path / "a.mkv", "ffv1", times)
    frames = iter_frames(path, fps=25)
    assert next(frames).shape == (48, 64, 3)
    assert f"a.mkv: stands still from 0 to {gap} s, longer than 60 s: cut it" in refused(lambda: list(frames))


def test_a_gap_within_the_limit_is_filled(tmp_path):
    path = encode(tmp_path / "a.mkv", "ffv1", [0, 40, 80, 50_000, 50_040, 50_080])
    assert len(read_video(path, fps=2)[0]) == 101


def test_all_gaps_together_are_not_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "VIDEO_REPEATS", 1000)
    path = encode(tmp_path / "a.mkv", "ffv1", [50_000 * i for i in range(6)])
    assert "stands still for most of its time" in refused(lambda: read_video(path, fps=25))
    assert len(read_video(path, fps=1)[0]) > 250


def test_a_video_that_begins_late(tmp_path):
    """Matroska and ASF count their length from 0, not from their first frame."""
    for name, codec in {"a.mkv": "ffv1", "a.asf": "wmv2", "a.mp4": "libx264", "a.flv": "flv1"}.items():
        path = encode(tmp_path / name, codec, [100_000_000 + 40 * i for i in range(6)])
        frames, rate = read_video(path)
        assert (len(frames), rate, frame_count(path, 25)) == (6, 25, 6), name


def test_a_slide_show(tmp_path):
    path = encode(tmp_path / "a.mkv", "ffv1", [90_000 * i for i in range(6)], rate=Fraction(1, 90))
    assert "frames/s by its time stamps: re-encode it" in refused(lambda: frame_rate(path))


@pytest.mark.parametrize("fps", [0, -1, 1e-9, 0.001, 1e300, float("inf"), float("nan"), 1001])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_rates_that_no_video_has(tmp_path, fps, name):
    """Told before the first frame is made."""
    frames = iter(moving())
    assert "must be 0.017 to 1000 frames/s" in refused(lambda: write_video(tmp_path / name, frames, fps))
    assert len(list(frames)) == 6 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [1 / 60, 1000])
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_the_least_and_the_greatest_rate(tmp_path, fps, name):
    check_rate(fps, "--fps")
    write_video(tmp_path / name, moving(), fps)
    assert read_video(tmp_path / name)[1] == pytest.approx(min(fps, 50 if name == "a.gif" else 1000), rel=0.01)


# Names and texts


def test_odd_names(tmp_path):
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    for read in (read_image, read_video):
        assert "no such file" in refused(lambda read=read: read(loop))
        for length in (300, 5000):
            assert "name too long" in refused(lambda read=read, length=length: read("a" * length + ".png"))
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    write_video(f"{tmp_path}/a.mp4", moving(), 25)
    os.rename(tmp_path / "a.mp4", strange + ".mp4")
    assert len(read_video(strange + ".mp4")[0]) == 6


def test_texts_in_other_encodings_do_no_harm(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(moving()[0], format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"caf\xe9 "))
    assert len(read_video(path)[0]) == 1


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    """Their permissions are told, not that they were damaged."""
    path = encode(tmp_path / "a.mkv", "ffv1")
    PIL.Image.fromarray(moving()[0]).save(tmp_path / "a.png")

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", forbidden)
    monkeypatch.setattr("PIL.Image.open", forbidden)
    assert "may not be read (Permission denied): change its permissions" in refused(lambda: read_video(path))
    assert "may not be read" in refused(lambda: read_image(tmp_path / "a.png"))


def test_a_seek_to_nowhere_is_no_error():
    """PyAV prints what a file object raises."""
    file = SeekableFile(io.BytesIO(b"abc"))
    assert [file.seek(-5), file.seek(1, 99), file.seek(1)] == [-1, -1, 1]
