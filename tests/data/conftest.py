"""Made-up data sets: recorded ones, in the layout that TFDS writes, and one whose images say what they are."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from animate_jax.config import DataConfig
from animate_jax.data.records import POINTS, RecordedClips, example_message
from animate_jax.data.samples import open_source
from animate_jax.video.write import encode_mp4
from tests.conftest import training

HEIGHT, WIDTH, FPS = 96, 80, 30

FRAMES = DataConfig(batch=2, frames=3, clip_frames=8, num_workers=0)
CLIPS = dataclasses.replace(FRAMES, consecutive=True)
STAGE_1 = dataclasses.replace(FRAMES, batch=4, frames=2, min_reference_distance=10)
STAGE_2 = dataclasses.replace(STAGE_1, consecutive=True, frames=5)


def made_up_clip(number, frames, height=HEIGHT, width=WIDTH, keyframes=12):
    """The fields of a record. Frame i of clip n has red 5 i + 20 and green 12 n + 20, and a skeleton that is known.

    Blue is a pattern that stands still; without one, every frame would be cheapest as a keyframe.
    """
    random = np.random.default_rng(number)
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = 5 * np.arange(frames)[:, None, None] + 20
    video[..., 1] = 12 * number + 20
    video[..., 2] = np.kron(random.integers(80, 176, (height // 8, width // 8)), np.ones((8, 8)))
    fields = {}
    for name, shape in POINTS.items():
        low, high = (0.3 * width, 0.25 * height), (0.7 * width, 0.75 * height)
        fields[name] = random.uniform(low, high, (frames, *shape)).astype(np.float32)
        fields[f"{name}_confidence"] = np.ones((frames, *shape[:-1]), np.float32)
    texts = {"video": encode_mp4(video, FPS, keyframes), "source": b"made up", "id": f"clip{number}".encode()}
    numbers = {"width": width, "height": height, "frames": frames}
    return {**fields, **texts, **numbers, "fps": np.float32(FPS), "start": np.float32(0)}


def serialize(fields):
    """A `tf.train.Example`, as TFDS writes it."""
    example = example_message()()
    for name, value in fields.items():
        entry = example.features.feature.add(key=name)
        if isinstance(value, bytes):
            entry.value.bytes_list.value.append(value)
        elif isinstance(value, int):
            entry.value.int64_list.value.append(value)
        else:
            entry.value.float_list.value = np.asarray(value, "<f4").tobytes()
    return example.SerializeToString()


def write_data_set(folder, clips, split="train", shards=2, name="clips"):
    """A data set of one split; gives the folder back."""
    folder.mkdir(parents=True, exist_ok=True)
    dealt = [clips[i::shards] for i in range(shards)]
    for i, part in enumerate(dealt):
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-{i:05d}-of-{shards:05d}"), "group_size:1")
        for clip in part:
            writer.write(clip if isinstance(clip, bytes) else serialize(clip))
        writer.close()
    lengths = [str(len(part)) for part in dealt]
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [{"name": split, "shardLengths": lengths, "filepathTemplate": template}]
    info = {"name": name, "version": folder.name, "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.fixture(scope="session")
def clips():
    """Makes clips, each once."""
    made = {}

    def clip(number, frames=40, **options):
        key = number, frames, *options.items()
        if key not in made:
            made[key] = made_up_clip(number, frames, **options)
        return made[key]

    return clip


@pytest.fixture(scope="session")
def data_set(tmp_path_factory, clips):
    """13 clips of 40 frames in two shards; the folder above them."""
    root = tmp_path_factory.mktemp("recorded")
    write_data_set(root / "clips" / "1.0.0", [clips(n) for n in range(13)])
    return root


@pytest.fixture(scope="session")
def write():
    return write_data_set


def assert_equal(a, b):
    """Of two samples or batches; other fields are an error."""
    jax.tree.map(np.testing.assert_array_equal, a, b)


def clip_and_frame_numbers(batch):
    """The clips' numbers and the frames' numbers (reference first) that the pictures of a batch show."""
    clips = np.round((batch.reference[..., 1].mean((1, 2)) - 20) / 12).astype(int)
    pictures = np.concatenate([batch.reference[:, None], batch.frames], 1)
    return clips, np.round((pictures[..., 0].mean((2, 3)) - 20) / 5).astype(int)


class Numbers:
    """A data set whose pictures say which clip and frame they are."""

    def __init__(self, source):
        self._clip = source.clip(0, 2)

    def clip(self, index, frames, pick=None):
        chosen = np.array(range(frames) if pick is None else pick)
        pictures = np.zeros((len(chosen), 64, 48, 3), np.uint8)
        pictures[..., 0], pictures[..., 1] = index, chosen[:, None, None]
        return dataclasses.replace(
            self._clip,
            frames=pictures,
            keypoints=self._clip.keypoints[chosen % 2],
            mask=pictures[..., 1],
            depth=self._clip.depth[chosen % 2],
        )


@pytest.fixture
def numbers(micro, monkeypatch):
    """Lets the loader read `Numbers`."""
    pytest.importorskip("numba")
    source = Numbers(open_source(training(FRAMES, micro)))
    monkeypatch.setattr("animate_jax.data.loader.open_source", lambda config: source)
    return source


@pytest.fixture
def stage_1(data_set):
    return dataclasses.replace(STAGE_1, root=str(data_set))


@pytest.fixture
def stage_2(data_set):
    return dataclasses.replace(STAGE_2, root=str(data_set))


@pytest.fixture(scope="session")
def clip(data_set):
    return RecordedClips(str(data_set), "train")[0]


@pytest.fixture
def damaged(tmp_path, write, clips):
    """13 clips; the video of the fifth is cut short, and the eighth is no clip at all."""
    made = [dict(clips(n)) for n in range(13)]
    made[4]["video"] = made[4]["video"][:600] + b"\0" * 2000
    order = [*range(0, 13, 2), *range(1, 13, 2)]  # dealt out to two shards
    write(tmp_path / "set", [b"nothing" if n == 7 else made[n] for n in range(13)])
    return str(tmp_path / "set"), [order.index(4), order.index(7)]
