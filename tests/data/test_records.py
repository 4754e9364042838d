"""Recorded data sets: what a folder holds, what a record says, and that only needed frames are decoded."""

import dataclasses
import io
import itertools
import json
import random
from fractions import Fraction

import av
import numpy as np
import pytest
from etils import epath

from animate_jax.data.records import RecordedClips, decode, example_message, find_data_set, parse, read_frames, to_clip
from animate_jax.errors import UserError
from animate_jax.video.write import write_video


@pytest.fixture(scope="module")
def recorded(data_set):
    return RecordedClips(str(data_set), "train")


def number_of(picture):
    """The frame number that a made-up picture shows."""
    return round((float(picture[..., 0].mean()) - 20) / 5)


def test_a_clip_is_what_was_written(recorded, clips):
    assert len(recorded) == 13
    order = [*range(0, 13, 2), *range(1, 13, 2)]  # shard by shard
    assert [recorded[i].id for i in range(13)] == [f"clip{n}" for n in order]
    clip, fields = recorded[1], clips(2)
    assert (len(clip), clip.width, clip.height, clip.fps) == (40, 80, 96, 30)
    assert clip.video == fields["video"]
    np.testing.assert_allclose(clip.keypoints.hands * (80, 96), fields["hands"], rtol=1e-5)
    np.testing.assert_array_equal(clip.keypoints.face_confidence, 1)


@pytest.mark.parametrize("below", ["", "clips", "clips/1.0.0"])
def test_the_folder_or_one_above_it(data_set, below):
    assert find_data_set(str(data_set / below)) == epath.Path(data_set / "clips" / "1.0.0")


def test_the_newest_whole_version(tmp_path):
    for version in ("2.0.0", "10.0.0", "11.0.0.incompleteX"):
        (tmp_path / "clips" / version).mkdir(parents=True)
        (tmp_path / "clips" / version / "dataset_info.json").touch()
    assert find_data_set(str(tmp_path)).name == "10.0.0"


def test_picked_frames_are_the_right_ones(recorded):
    clip = recorded[0]
    wanted = [39, 0, 11, 12, 25, 26, 12]
    seen = dict(read_frames(clip, wanted))
    assert list(seen) == sorted(set(wanted))
    assert {number: number_of(picture) for number, picture in seen.items()} == {n: n for n in seen}
    assert seen[0].shape == (96, 80, 3) and seen[0].dtype == np.uint8


def keyframes(clip):
    with av.open(io.BytesIO(clip.video)) as container:
        return [i for i, packet in enumerate(container.streams.video[0].index_entries) if packet.is_keyframe]


@pytest.mark.parametrize("wanted", [[0], [13], [22], [39], [2, 26], [14, 16], [11, 12], range(40)], ids=str)
def test_only_the_frames_after_a_keyframe_are_decoded(recorded, wanted):
    keys = [*keyframes(recorded[0]), 40]
    assert np.diff(keys).max() == 12
    needed = []
    for start, end in itertools.pairwise(keys):
        last = max((number for number in wanted if start <= number < end), default=start - 1)
        needed += range(start, last + 1)
    assert [number for number, _ in decode(recorded[0], wanted)] == needed


def test_other_parts_of_the_video_are_not_even_looked_at(recorded):
    """Zeros between the second and the third keyframe hurt only the frames there."""
    clip = recorded[0]
    start, end = keyframes(clip)[1:3]
    with av.open(io.BytesIO(clip.video)) as container:
        start, end = (container.streams.video[0].index_entries[number].pos for number in (start, end))
    video = bytearray(clip.video)
    video[start:end] = bytes(end - start)
    torn = dataclasses.replace(clip, video=bytes(video))
    assert [number_of(picture) for _, picture in read_frames(torn, [3, 30])] == [3, 30]
    with pytest.raises(UserError, match=r"clip clip0 of .*build the data set again"):
        list(read_frames(torn, [13]))


def test_videos_with_reordered_frames_and_odd_rates(tmp_path, recorded):
    """Any other program's H.264: B-frames, a keyframe where the picture changes, 30000/1001 frames/s."""
    frames = np.full((60, 32, 32, 3), 20, np.uint8) + (3 * np.arange(60, dtype=np.uint8))[:, None, None, None]
    write_video(tmp_path / "a.mp4", frames, Fraction(30000, 1001))
    clip = dataclasses.replace(recorded[0], width=32, height=32, video=(tmp_path / "a.mp4").read_bytes())
    seen = dict(read_frames(clip, [0, 7, 31, 59]))
    assert {n: round((float(picture.mean()) - 20) / 3) for n, picture in seen.items()} == {n: n for n in seen}


def test_a_frame_behind_the_end(recorded):
    with pytest.raises(UserError, match=r"clip0 of clips-train.array_record-00000-of-00002: its video has no frame 40"):
        list(read_frames(recorded[0], [2, 40]))


def test_a_video_of_another_size_than_the_clip_s(recorded):
    with pytest.raises(UserError, match=r"clip0 of .*: not a readable video \(80 x 96 pixels, not 90 x 96\)"):
        list(read_frames(dataclasses.replace(recorded[0], width=90), [2]))


@pytest.mark.parametrize(
    "contents",
    [b"", b"ffconcat version 1.0\nfile other.mp4\n", b"#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n", bytes(999)],
)
def test_a_record_that_holds_no_video_opens_no_other(tmp_path, monkeypatch, recorded, contents):
    """A list would show the file that it names."""
    (tmp_path / "other.mp4").write_bytes(recorded[0].video)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^clip clip0 of .*: not a readable video .*: build the data set again$"):
        list(read_frames(dataclasses.replace(recorded[0], video=contents), [0]))


def test_damaged_records(recorded):
    """Whatever is damaged, a clip is read or refused in a line."""
    chance, outcomes = random.Random(0), []
    for _ in range(150):
        video = bytearray(recorded[0].video)
        for _ in range(chance.choice([1, 4, 16])):
            place = int(len(video) * chance.random() ** 2)
            video[place : place + chance.choice([1, 4, 8])] = chance.randbytes(chance.choice([1, 4, 8]))
        clip = dataclasses.replace(recorded[0], video=bytes(video))
        try:
            assert len(list(read_frames(clip, [0, 13, 39]))) == 3
            outcomes.append(True)
        except UserError as error:
            assert str(error).startswith("clip clip0 of ") and "\n" not in str(error)
            outcomes.append(False)
    assert 0 < sum(outcomes) < 150


def test_examples_as_tensorflow_writes_them():
    """Bytes written down by hand from the format's definition: a: bytes "hi", b: floats 1 and 2, c: -1 and 300."""

    def feature(key, value):
        return (
            b"\x0a"
            + bytes([len(key) + len(value) + 4])
            + b"\x0a"
            + bytes([len(key)])
            + key
            + (b"\x12" + bytes([len(value)]) + value)
        )

    features = feature(b"a", b"\x0a\x04\x0a\x02hi")
    features += feature(b"b", b"\x12\x0a\x0a\x08" + np.float32([1, 2]).tobytes())
    features += feature(b"c", b"\x1a\x0e\x0a\x0c" + b"\xff" * 9 + b"\x01" + b"\xac\x02")
    values = parse(b"\x0a" + bytes([len(features)]) + features)
    assert values["a"] == [b"hi"] and values["c"] == [-1, 300]
    np.testing.assert_array_equal(values["b"], np.float32([1, 2]))


def test_what_tfds_writes(tmp_path, clips, write):
    """TFDS's own serialisation of the same record."""
    features = pytest.importorskip("tensorflow_datasets").features

    fields = clips(1)
    kinds = {
        name: features.Tensor(shape=(None, *value.shape[1:]), dtype=np.float32)
        for name, value in fields.items()
        if np.ndim(value)
    }
    kinds |= {"video": features.Tensor(shape=(), dtype=np.object_), "source": features.Text(), "id": features.Text()}
    kinds |= {name: features.Scalar(np.int32) for name in ("width", "height", "frames")}
    kinds |= {name: features.Scalar(np.float32) for name in ("fps", "start")}
    record = features.FeaturesDict(kinds)
    read = to_clip(parse(record.serialize_example(fields)))
    written = RecordedClips(str(write(tmp_path / "set", [fields], shards=1)), "train")[0]
    assert (read.id, read.video, read.fps, read.width) == (written.id, written.video, written.fps, written.width)
    for name in read.keypoints.names():
        np.testing.assert_array_equal(getattr(read.keypoints, name), getattr(written.keypoints, name))


def test_what_is_no_data_set(tmp_path, data_set, write, clips):
    def fails(root, match, split="train"):
        with pytest.raises(UserError, match=match):
            RecordedClips(str(root), split)

    fails(tmp_path / "nothing", "--data.root .*nothing: no such folder: check the path")
    fails(tmp_path, "holds no dataset_info.json: give the folder of a data set")
    fails(data_set, "no clips in a split 'test': choose --data.split from train", "test")
    for name in ("a", "b"):
        write(tmp_path / "two" / name / "1.0.0", [clips(0)])
    fails(tmp_path / "two", "holds several data sets: give one of .*a/1.0.0, .*b/1.0.0")

    folder = write(tmp_path / "broken", [clips(0), clips(1)])
    next(folder.glob("*00001-of-00002")).unlink()
    fails(folder, "train.array_record-00001-of-00002: 1 of 2 shards missing")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    fails(folder, "its files are tfrecord, not array_record")
    (folder / "dataset_info.json").write_text("{")
    fails(folder, "not TFDS's description of a data set")


def test_records_of_another_kind(tmp_path, write, clips):
    fields = clips(0)
    strange = example_message()().SerializeToString(), b"no message", {**fields, "body": fields["body"][:-1]}
    for number, record in enumerate(strange):
        with pytest.raises(
            UserError,
            match=r"record 0 of .*-00000-of-00001 is damaged or no clip with keypoints .*build the data set again",
        ):
            RecordedClips(str(write(tmp_path / str(number), [record], shards=1)), "train")
    cut = write(tmp_path / "cut", [fields, clips(1)], shards=1)
    shard = next(cut.glob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"record 0 of .* is damaged"):
        RecordedClips(str(cut), "train")
