"""How fast recorded clips become training samples, and what is read for one.

    python benchmarks/data.py [--root data/mine] [--preset paper] [--seconds 10]

Stage 1 takes a reference and one target frame of a clip, stage 2 a reference and 24 frames; both cropped, flipped,
with drawn poses. Without --root, a data set of a few rendered clips is made first. Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import tyro
from array_record.python.array_record_module import ArrayRecordWriter

from animate_jax.config import DataConfig, TrainConfig
from animate_jax.data import records
from animate_jax.data.loader import batches, recorded_dataset
from animate_jax.video.write import encode_mp4

CLIPS, FRAMES, FPS, KEYFRAMES = 4, 60, 30.0, 12
STAGES = {"stage 1": DataConfig(frames=1), "stage 2": DataConfig(frames=24, consecutive=True)}


@dataclasses.dataclass(frozen=True)
class Arguments:
    root: str | None = None  # a data set of your own
    split: str = "train"
    preset: str = "paper"
    batch: int = 4
    workers: tuple[int, ...] = (0, 1, 2)
    seconds: float = 10.0  # per row
    height: int = 768  # of the clips that are made
    width: int = 576


def make_data_set(folder: Path, height: int, width: int) -> None:
    """Rendered people in the form of recorded clips."""
    from animate_jax.data.mocap_people import MocapPeople

    people = MocapPeople("train", height=height, width=width, fps=FPS)
    writer = ArrayRecordWriter(str(folder / "made-train.array_record-00000-of-00001"), "group_size:1")
    for number in range(CLIPS):
        clip = people.clip(number, FRAMES)
        keypoints = clip.keypoints.affine((width, height), (0, 0))
        example = records.example_message()()

        def feature(name: str, example=example):
            return example.features.feature.add(key=name).value

        for name in keypoints.names():
            feature(name).float_list.value = np.asarray(getattr(keypoints, name), "<f4").tobytes()
        feature("fps").float_list.value = np.float32(FPS).tobytes()
        feature("video").bytes_list.value.append(encode_mp4(clip.frames, FPS, KEYFRAMES))
        feature("id").bytes_list.value.append(f"clip {number}".encode())
        for name, value in (("width", width), ("height", height), ("frames", FRAMES)):
            feature(name).int64_list.value.append(value)
        writer.write(example.SerializeToString())
    writer.close()
    splits = [{"name": "train", "shardLengths": [str(CLIPS)]}]
    info = {"name": "made", "fileFormat": "array_record", "splits": splits}
    (folder / records.INFO).write_text(json.dumps(info))


def samples_per_second(data: DataConfig, arguments: Arguments) -> float:
    stream = batches(TrainConfig("stage1", "", arguments.preset, data=data))
    for _ in range(1 + 4 * data.num_workers):  # start-up, and the buffers' contents
        next(stream)
    start, count = time.perf_counter(), 0
    while time.perf_counter() < start + arguments.seconds or not count:
        next(stream)
        count += data.batch
    rate = count / (time.perf_counter() - start)
    stream.close()
    return rate


def cost_of_a_sample(data: DataConfig, preset: str, count: int = 24) -> tuple[float, float, float]:
    """Seconds of one core, frames that pass the decoder, and bytes that the process reads, on average."""
    numbers, original = [], records.decode

    def counting(clip, wanted):
        for number, frame in original(clip, wanted):
            numbers.append(number)
            yield number, frame

    samples = recorded_dataset(TrainConfig("stage1", "", preset, data=data))
    samples[0]  # opens files
    records.decode = counting
    try:
        started, before = time.process_time(), bytes_read()
        for position in range(1, count + 1):
            samples[position]
        return (time.process_time() - started) / count, len(numbers) / count, (bytes_read() - before) / count
    finally:
        records.decode = original


def bytes_read() -> int:
    """By this process so far, cached or not (Linux)."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def main(arguments: Arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.root
        if root is None:
            make_data_set(Path(folder), arguments.height, arguments.width)
            root = folder
        clips = records.RecordedClips(root, arguments.split)
        print(f"{len(clips)} clips; the first: {len(clips[0])} frames, {clips[0].width}x{clips[0].height} pixels\n")
        print("| sample | workers | samples/s | frames/s | a sample: CPU time | frames decoded | bytes read |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, stage in STAGES.items():
            data = dataclasses.replace(stage, root=root, split=arguments.split, batch=arguments.batch, num_workers=0)
            seconds, decoded, size = cost_of_a_sample(data, arguments.preset)
            cost = f"{1e3 * seconds:.0f} ms | {decoded:.1f} | {size / 1e3:.0f} kB"
            for workers in arguments.workers:
                rate = samples_per_second(dataclasses.replace(data, num_workers=workers), arguments)
                frames = rate * (data.frames + 1)
                print(f"| {name} | {workers} | {rate:.1f} | {frames:.0f} | {cost} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
