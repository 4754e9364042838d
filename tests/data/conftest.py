"""Made-up recorded data sets, in the layout that TFDS writes."""

import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from animate_jax.data.records import POINTS, example_message
from animate_jax.video.write import encode_mp4

HEIGHT, WIDTH, FPS = 96, 80, 30


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


def serialise(fields):
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
            writer.write(clip if isinstance(clip, bytes) else serialise(clip))
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
