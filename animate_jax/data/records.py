"""Recorded clips: a TFDS folder of ArrayRecord shards, each record an H.264 video and its keypoints.

Read without TensorFlow: `dataset_info.json` names the shards, array_record reads them (also from gs://), and a record
is a `tf.train.Example`, a small Protocol Buffer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import av
import grain
import numpy as np
from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from jaxtyping import UInt8

from animate_jax.errors import UserError, reading
from animate_jax.pose.keypoints import Keypoints
from animate_jax.storage import is_remote, talking_to, to_path
from animate_jax.video.open import open_video

INFO = "dataset_info.json"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"  # TFDS's default
ADVICE = "build the data set again"
DEPTH = 3  # folders between a data directory and its data set: name, configuration, version
POINTS = {"body": (18, 2), "hands": (2, 21, 2), "face": (68, 2)}


@dataclasses.dataclass(frozen=True)
class RecordedClip:
    """One record: a short video of one person and the pose in every frame."""

    id: str
    video: bytes  # an mp4 of constant frame rate
    fps: float
    width: int  # pixels
    height: int
    keypoints: Keypoints  # [F], in units of the video's width and height
    shard: str = ""  # the file that holds it
    # Of clips whose frames were encoded (data/latents.py): the crop that was encoded, and the first frame's number in
    # the file of frames beside the shard.
    box: tuple[int, int, int, int] | None = None
    first_frame: int = 0

    def __len__(self) -> int:
        return len(self.keypoints)

    @property
    def place(self) -> str:
        """For error messages."""
        return f"clip {self.id} of {self.shard}" if self.shard else f"clip {self.id}"


class RecordedClips:
    """The clips of a split of a data set, as a sequence. It may be pickled; every process opens the shards for itself.

    Args:
        root: the data set's folder, or one above it that holds no other data set (of several versions the newest
            is read); a path or gs:// address.
        split: a split that the data set has.

    Raises:
        UserError: no such folder, no data set or several, no such split, missing shards, or records of another kind.
    """

    def __init__(self, root: str, split: str):
        folder = find_data_set(root)
        self._where = f"--data.root {root}"
        self.shards, self.records = open_split(folder, split, self._where)
        try:
            self[0]
        except UserError as error:  # perhaps only this record is damaged
            try:
                self[len(self) - 1]
            except UserError:
                raise error from None

    def __len__(self) -> int:
        return len(self.records)  # pyright: ignore[reportArgumentType]  # its base class has the length

    def __getitem__(self, index: int) -> RecordedClip:
        """
        Raises:
            UserError: the record cannot be read, or is not a video with keypoints.
        """
        shard, number = self._place(index)
        try:
            return dataclasses.replace(to_clip(parse(self.records[index])), shard=shard)
        except Exception as error:  # of the file, of Protocol Buffers, of values that no clip has
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{self._where}: record {number} of {shard} is damaged or no clip with keypoints "
                f"({type(error).__name__}: {reason}): {ADVICE}"
            ) from error

    def _place(self, index: int) -> tuple[str, int]:
        """The shard of a record and its number there."""
        for shard, length in self.shards:
            if index < length:
                return shard, index
            index -= length
        raise IndexError(f"record {index} is past the last one")


def open_split(
    folder: epath.Path, split: str, where: str
) -> tuple[list[tuple[str, int]], grain.sources.ArrayRecordDataSource]:
    """The shards of a data set's split with their lengths, and all their records; `where` is for errors.

    Raises:
        UserError: no description, no such split, missing shards, or records of another kind.
    """
    try:
        info = json.loads((folder / INFO).read_text())
        splits = {each["name"]: each for each in info["splits"]}
        lengths = [int(length) for length in splits.get(split, {}).get("shardLengths", [])]
        template, file_format = splits.get(split, {}).get("filepathTemplate", TEMPLATE), info.get("fileFormat")
        for field, value in {"{DATASET}": info["name"], "{SPLIT}": split, "{FILEFORMAT}": file_format}.items():
            template = template.replace(field, str(value))
        if min(lengths, default=0) < 0:
            raise ValueError("negative shard lengths")
    except Exception as error:  # JSON's, or of values that no description has
        raise UserError(f"{folder / INFO}: not TFDS's description of a data set: {ADVICE}") from error
    if file_format != "array_record":
        raise UserError(f"{where}: its files are {file_format}, not array_record: build it in that format")
    if not sum(lengths):
        known = ", ".join(sorted(str(each) for each in splits if splits[each].get("shardLengths"))) or "none"
        raise UserError(f"{where}: has no clips in a split {split!r}: choose --data.split from {known}")

    count = len(lengths)
    shards = [template.replace("{SHARD_X_OF_Y}", f"{i:05d}-of-{count:05d}") for i in range(count)]
    if missing := set(shards) - {file.name for file in folder.iterdir()}:
        raise UserError(f"{folder / min(missing)}: {len(missing)} of {count} shards missing: copy the whole data set")
    # With its length given, a shard is not opened before a record of it is wanted.
    shards = [(shard, n) for shard, n in zip(shards, lengths, strict=True) if n]
    return shards, grain.sources.ArrayRecordDataSource([f"{folder / shard}[0:{n}]" for shard, n in shards])


def find_data_set(root: str) -> epath.Path:
    """The folder with the `dataset_info.json` that `root` means: itself or the newest version below it.

    Raises:
        UserError: there is none, or there are several data sets.
    """
    start = epath.Path(to_path(root))
    with talking_to(root) if is_remote(root) else contextlib.nullcontext():
        if not start.exists():
            raise UserError(f"--data.root {root}: no such folder: check the path")
        for depth in range(DEPTH + 1):
            found = [file.parent for file in start.glob("*/" * depth + INFO)]
            folders = [folder for folder in found if "incomplete" not in folder.name]  # a build under way
            if folders:
                break
    if not folders:
        raise UserError(f"--data.root {root}: holds no {INFO}: give the folder of a data set that has been built")
    if len({folder.parent for folder in folders}) > 1:
        raise UserError(
            f"--data.root {root}: holds several data sets: give one of {', '.join(sorted(map(str, folders)))}"
        )
    return max(folders, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.name)])


def to_clip(fields: dict[str, Any]) -> RecordedClip:
    """
    Raises:
        LookupError, ValueError, AttributeError: a field is missing, of another kind or of another length.
    """
    width, height, frames = (int(fields[name][0]) for name in ("width", "height", "frames"))
    identity, fps = fields["id"][0].decode(), float(fields["fps"][0])
    if min(width, height, frames) < 1 or not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{frames} frames of {width} x {height} pixels, {fps} frames/s")
    points = {}
    for name, shape in POINTS.items():
        points[name] = fields[name].reshape(frames, *shape)
        points[f"{name}_confidence"] = fields[f"{name}_confidence"].reshape(frames, *shape[:-1])
    keypoints = Keypoints(**points).affine((1 / width, 1 / height), (0, 0))
    if "box" in fields:
        (left, top, wide, tall), first = box, (first_frame,) = fields["box"], fields["first_frame"]
        if min(left, top, wide - 1, tall - 1, first_frame) < 0 or left + wide > width or top + tall > height:
            raise ValueError(f"box {box}, first frame {first}")
        return RecordedClip(identity, b"", fps, width, height, keypoints, box=tuple(box), first_frame=first_frame)
    return RecordedClip(identity, fields["video"][0], fps, width, height, keypoints)


def parse(record: bytes) -> dict[str, Any]:
    """The flat values of a serialized `tf.train.Example` by name: lists of bytes or of int, or float32 arrays.

    Raises:
        google.protobuf.message.DecodeError: it is none.
    """
    fields = {}
    for entry in example_message().FromString(record).features.feature:
        kind = entry.value.WhichOneof("kind")
        if kind == "float_list":
            fields[entry.key] = np.frombuffer(entry.value.float_list.value, "<f4")
        elif kind:
            fields[entry.key] = list(getattr(entry.value, kind).value)
    return fields


@functools.cache
def example_message() -> Any:
    """The class of `tf.train.Example` messages, in a form of the same bytes: the map of features is a list of entries,
    and packed floats are raw bytes, which NumPy reads without touching every number."""
    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="animate_jax", syntax="proto3")

    def message(name: str, *fields: tuple[str, int | str, bool], oneof: str = "") -> None:
        new = file.message_type.add(name=name)
        if oneof:
            new.oneof_decl.add(name=oneof)
        for number, (field, kind, repeated) in enumerate(fields, 1):
            label = types.LABEL_REPEATED if repeated else types.LABEL_OPTIONAL
            added = new.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = types.TYPE_MESSAGE, f".animate_jax.{kind}"
            else:
                added.type = types.Type.ValueType(kind)
            if oneof:
                added.oneof_index = 0

    message("BytesList", ("value", types.TYPE_BYTES, True))
    message("FloatList", ("value", types.TYPE_BYTES, False))
    message("Int64List", ("value", types.TYPE_INT64, True))
    kinds = ("bytes_list", "BytesList", False), ("float_list", "FloatList", False), ("int64_list", "Int64List", False)
    message("Feature", *kinds, oneof="kind")
    message("Entry", ("key", types.TYPE_STRING, False), ("value", "Feature", False))
    message("Features", ("feature", "Entry", True))
    message("Example", ("features", "Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("animate_jax.Example"))


def read_frames(
    clip: RecordedClip, numbers: Sequence[int]
) -> Iterator[tuple[int, UInt8[np.ndarray, "height width 3"]]]:
    """Decodes the frames with the given numbers, in rising order, each once, as (number, RGB image).

    Raises:
        UserError: the video is damaged or has no such frame.
    """
    if clip.box is not None:
        raise UserError(f"{clip.place}: holds encoded frames, no video: give the data set that was encoded")
    missing = set(numbers)
    for number, frame in decode(clip, sorted(missing)):
        if number in missing:
            missing.remove(number)
            yield number, frame.to_ndarray(format="rgb24")
    if missing:
        raise UserError(f"{clip.place}: its video has no frame {min(missing)}: {ADVICE}")


def decode(clip: RecordedClip, wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """All frames that must be decoded for the wanted ones (rising numbers): from the last keyframe before each of them.

    Raises:
        UserError: the video is damaged, or not of the clip's size.
    """
    with reading(clip.place, "video", ADVICE):
        with open_video(clip.video, clip.place, ADVICE) as (container, stream):
            stream.codec_context.thread_count = 1  # workers are the parallelism
            if not stream.average_rate or not stream.time_base:
                raise ValueError("no frame rate")
            ticks = 1 / (stream.average_rate * stream.time_base)  # per frame
            origin = stream.start_time or 0
            keys = np.array([i for i, packet in enumerate(stream.index_entries) if packet.is_keyframe])
            frames, number = iter(()), -1
            for target in wanted:
                if keys[keys <= target].max(initial=0) > number:
                    container.seek(origin + round(target * ticks), stream=stream)
                    frames = container.decode(stream)
                while number < target:
                    frame = next(frames, None)
                    if frame is None:
                        return
                    if frame.pts is None:
                        raise ValueError("a frame without a time")
                    spare = frame.width - clip.width, frame.height - clip.height
                    if not {0, 1}.issuperset(spare):  # H.264 has even sides
                        raise ValueError(f"{frame.width} x {frame.height} pixels, not {clip.width} x {clip.height}")
                    number = round((frame.pts - origin) / ticks)
                    yield number, frame
