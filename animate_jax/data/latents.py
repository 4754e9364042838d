"""Clips whose frames were encoded once by the frozen autoencoder and CLIP, instead of in every epoch.

`animate-jax data encode` writes such a data set, for one image size: `latents.json` describes it, and the frames are
records of their own beside the clips'. A frame's record is the posterior's mean and log variance, from which training
still samples, and CLIP's embedding.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from jaxtyping import Float

from animate_jax.config import ClipResize, TrainConfig
from animate_jax.data.records import TEMPLATE, RecordedClip, example_message, find_data_set, open_split
from animate_jax.data.samples import BoxXYWH, choose_frames, flip_horizontally, keypoints_in_box, person_mask
from animate_jax.errors import UserError, reading
from animate_jax.pose.draw import draw
from animate_jax.presets import preset_of
from animate_jax.storage import is_remote

FILE = "latents.json"
AGAIN = "encode the data set again (animate-jax data encode)"

Moments = Float[np.ndarray, "frames height width moments"]


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What a split's frames were encoded as, and by what."""

    split: str
    width: int  # pixels that the autoencoder saw
    height: int
    clip_resize: ClipResize
    mirrored: bool  # every frame is stored a second time, mirrored
    dtype: Literal["float16", "float32"]
    moments: tuple[int, int, int]  # shape: latent height, width, twice the channels
    embedding: int  # numbers
    encoders: dict[str, float]  # path -> root mean square of small arrays of autoencoder and CLIP

    @property
    def bytes(self) -> int:
        """Of a frame."""
        return (math.prod(self.moments) + self.embedding) * np.dtype(self.dtype).itemsize


def encoding_of(root: str, split: str) -> Encoding | None:
    """None where the clips are videos.

    Raises:
        UserError: no such data set, or its description is damaged.
    """
    file = find_data_set(root) / FILE
    if not file.exists():
        return None
    with reading(file, "description of encoded frames", AGAIN):
        values = json.loads(file.read_text())
        found = Encoding(**values | {"moments": tuple(map(int, values["moments"]))})
    return found if found.split == split else None


def frames_split(split: str) -> str:
    """The split of the data set's description whose records are the frames of `split`."""
    return f"{split}_frames"


def shard_name(name: str, split: str, number: int, count: int) -> str:
    fields = {"DATASET": name, "SPLIT": split, "FILEFORMAT": "array_record"}
    return TEMPLATE.format(**fields, SHARD_X_OF_Y=f"{number:05d}-of-{count:05d}")


@dataclasses.dataclass
class EncodedSamples:
    """As `RecordedSamples`, of encoded clips: `reference_moments`, `moments` and `clip_embedding` in place of
    `reference`, `frames` and `clip_pixels`.

    Raises:
        UserError: the configuration asks for another size, framing or model than was encoded, or for mirrored frames
            where none were encoded.
    """

    config: TrainConfig
    encoding: Encoding

    def __post_init__(self):
        data, preset, encoding = self.config.data, preset_of(self.config), self.encoding
        frames, model, where = preset.frames, preset.model, f"{data.root} was encoded"
        scale = model.vae.downscale
        moments = (encoding.height // scale, encoding.width // scale, 2 * model.vae.latent_channels)
        if (frames.width, frames.height) != (encoding.width, encoding.height):
            size = f"{encoding.width} {encoding.height}"
            raise UserError(f"--size {frames.width} {frames.height}: {where} at {size}: give --size {size}")
        if data.framing != "frame":
            raise UserError(f"--data.framing {data.framing}: {where} as whole frames: give --data.framing frame")
        if data.flip and not encoding.mirrored:
            raise UserError(f"--data.flip {data.flip}: {where} without mirrored frames: give --data.flip 0")
        encoders = moments, model.image_encoder.projection_dim, frames.clip_resize
        if encoders != (encoding.moments, encoding.embedding, encoding.clip_resize):
            raise UserError(f"--preset {preset.name}: {where} for another model: {AGAIN}")
        if model.unet.appearance != "none":
            raise UserError(f"--preset {preset.name}: sees the reference's pixels, and {where}: give the videos")
        assert data.root is not None  # it is where the encoding is from
        shards, self._frames = open_split(
            find_data_set(data.root), frames_split(encoding.split), f"--data.root {data.root}"
        )
        self._first, count = {}, 0
        for shard, length in shards:
            self._first[shard.replace(frames_split(encoding.split), encoding.split)] = count
            count += length

    def __call__(self, position: int, clip: RecordedClip) -> dict[str, np.ndarray]:
        """
        Raises:
            UserError: the clip is too short, or its frames are damaged.
        """
        assert clip.box is not None  # of encoded clips
        data, frames = self.config.data, preset_of(self.config).frames
        rng = np.random.Generator(np.random.PCG64([data.seed, 2, int(position)]))
        numbers = choose_frames(clip, data, frames.fps, rng)
        mirrored = rng.random() < data.flip
        moments, embeddings = self.read(clip, numbers, mirrored)
        keypoints = keypoints_in_box(clip, clip.keypoints[numbers], clip.box)
        masks = person_mask(keypoints, frames.height, frames.width)
        if mirrored:
            masks, keypoints = flip_horizontally(masks), keypoints.flipped()
        poses = draw(keypoints, frames.height, frames.width, frames.pose_style)
        return {
            "reference_moments": moments[0],
            "reference_pose": poses[0],
            "clip_embedding": embeddings[0],
            "moments": moments[1:],
            "poses": poses[1:],
            "masks": masks[1:],
        }

    def read(
        self, clip: RecordedClip, numbers: Sequence[int], mirrored: bool = False
    ) -> tuple[Moments, Float[np.ndarray, "frames d"]]:
        """Moments and CLIP embeddings of the frames with the given numbers.

        Raises:
            UserError: they are damaged.
        """
        encoding = self.encoding
        with reading(clip.place, "record of frames", AGAIN):
            first = self._first[clip.shard] + clip.first_frame + mirrored * len(clip)
            records = [self._frames[first + number] for number in numbers]
            if {len(record) for record in records} != {encoding.bytes}:
                raise ValueError(f"not {encoding.bytes} bytes")
        values = np.stack([np.frombuffer(record, encoding.dtype) for record in records])
        size = math.prod(encoding.moments)
        return values[:, :size].reshape(-1, *encoding.moments), values[:, size:]


def write_shard(
    clips: Iterable[tuple[bytes, BoxXYWH, Iterable[bytes]]], path: epath.Path, frames_path: epath.Path
) -> None:
    """Writes records of clips without their videos to `path`, and of their frames to `frames_path`; each appears when
    complete, `path` last.

    Args:
        clips: of each the record as it was, the crop that was encoded, and its frames' records.
    """
    with tempfile.TemporaryDirectory(prefix="animate_jax_encode_") as temporary:
        local = epath.Path(temporary)
        writers = [ArrayRecordWriter(str(local / name), "group_size:1,uncompressed") for name in ("frames", "clips")]
        first = 0
        for record, box, frames in clips:
            writers[1].write(_without_video(record, box, first))
            for frame in frames:
                writers[0].write(frame)
                first += 1
        for writer, name, place in zip(writers, ("frames", "clips"), (frames_path, path), strict=True):
            writer.close()
            partial = place if is_remote(place) else place.with_name(f".{place.name}.partial")
            (local / name).copy(partial, overwrite=True)  # objects in a bucket appear complete
            if partial != place:
                partial.replace(place)


def _without_video(record: bytes, box: BoxXYWH, first_frame: int) -> bytes:
    example = example_message().FromString(record)
    kept = [entry for entry in example.features.feature if entry.key != "video"]
    del example.features.feature[:]
    example.features.feature.extend(kept)
    for name, values in {"box": box, "first_frame": [first_frame]}.items():
        example.features.feature.add(key=name).value.int64_list.value.extend(values)
    return example.SerializeToString()
