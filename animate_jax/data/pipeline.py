"""The loader: from clips to batches of pictures, poses drawn on the fly. grain gives order, processes and position."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import cv2
import grain
import grain.experimental
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8

from animate_jax.config import DataConfig, Preset
from animate_jax.errors import UserError
from animate_jax.pose.draw import LIMBS, VISIBLE, draw
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.preprocess import clip_pixels

if TYPE_CHECKING:
    from animate_jax.data.records import Clip

ENDLESS = 1 << 40
RIM = 0.12  # around the person's keypoints, which end at eyes, wrists and ankles, per their larger extent
ROOM = (1.0, 1.4)  # size of a crop per size of the person with the rim
LIMB = 0.12  # width of the masked band around a bone, per diagonal of the person's keypoints
TORSO = [2, 5, 11, 8]  # shoulders and hips, around


@runtime_checkable
class ClipSource(Protocol):
    """What the loader asks of a data set: any frames of the clip with a given number."""

    def clip(self, index: int, frames: int, pick: list[int] | None = None) -> Any: ...


@dataclasses.dataclass
class Samples:
    """A clip number -> one training sample; the same number always gives the same sample.

    reference, reference_pose [H, W, 3] uint8; clip_pixels [S, S, 3] float32; frames, poses [F, H, W, 3] uint8;
    masks [F, H, W] uint8, the person's share of each pixel.
    """

    source: ClipSource
    data: DataConfig
    preset: Preset

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        data = self.data
        rng = np.random.Generator(np.random.PCG64([data.seed, 1, int(index)]))
        if data.consecutive:
            first = int(rng.integers(data.span - data.frames + 1))
            targets = list(range(first, first + data.frames))
            reference = int(rng.integers(data.span))
        else:
            reference, *targets = map(int, rng.permutation(data.span)[: data.frames + 1])
        picked = self.source.clip(int(index), data.span, [reference, *targets])
        return to_sample(picked.frames, picked.keypoints, picked.mask, self.preset)


@dataclasses.dataclass
class RecordedSamples:
    """A recorded clip and its position in the endless stream -> one training sample, of the same form as `Samples`'s.

    Reference and targets share one crop around the person, in the preset's proportions, and one flip. Recorded clips
    have no masks: a band around every bone stands for the person.
    """

    data: DataConfig
    preset: Preset

    def __call__(self, position: int, clip: Clip) -> dict[str, np.ndarray]:
        """
        Raises:
            UserError: the clip is too short or damaged.
        """
        from animate_jax.data.records import pictures

        data, sampling = self.data, self.preset.sampling
        if data.workers:
            leave_group()
        rng = np.random.Generator(np.random.PCG64([data.seed, 2, int(position)]))
        numbers = choose_frames(clip, data, sampling.fps, rng)
        keypoints = clip.keypoints[numbers]
        left, top, width, height = choose_crop(
            keypoints, clip.width, clip.height, sampling.width / sampling.height, rng
        )
        keypoints = keypoints.moved((clip.width / width, clip.height / height), (-left / width, -top / height))
        mirrored = rng.random() < data.flip
        method = cv2.INTER_AREA if height > sampling.height else cv2.INTER_CUBIC
        frames = np.empty((len(numbers), sampling.height, sampling.width, 3), np.uint8)
        for number, picture in pictures(clip, numbers):
            crop = np.ascontiguousarray(picture[top : top + height, left : left + width])
            resized = cv2.resize(crop, (sampling.width, sampling.height), interpolation=method)
            frames[np.equal(numbers, number)] = cv2.flip(resized, 1) if mirrored else resized
        masks = cover(keypoints, sampling.height, sampling.width)
        if mirrored:  # OpenCV's flip is many times faster than copying a NumPy view
            masks, keypoints = np.stack([cv2.flip(mask, 1) for mask in masks]), keypoints.mirrored()
        return to_sample(frames, keypoints, masks, self.preset)


def to_sample(
    frames: UInt8[np.ndarray, "_ h w 3"], keypoints: Keypoints, mask: UInt8[np.ndarray, "_ h w"], preset: Preset
) -> dict[str, np.ndarray]:
    """The training sample of a reference frame and the target frames behind it."""
    model, sampling = preset.model, preset.sampling
    poses = draw(keypoints, *frames.shape[1:3], sampling.pose_style)
    return {
        "reference": frames[0],
        "reference_pose": poses[0],
        "clip_pixels": clip_pixels(frames[0], model.image_encoder.image_size, sampling.clip_resize),
        "frames": frames[1:],
        "poses": poses[1:],
        "masks": mask[1:],
    }


def choose_frames(clip: Clip, data: DataConfig, fps: float | None, rng: np.random.Generator) -> list[int]:
    """Numbers of the reference frame and, behind it, of the target frames.

    The peers' rules: targets are far from the reference in stage 1, evenly spaced in stage 2; a clip too short for
    margin or stride has smaller ones.

    Raises:
        UserError: the clip has fewer frames than a sample takes.
    """
    length, needed = len(clip), data.frames if data.consecutive else data.frames + 1
    if length < needed:
        raise UserError(
            f"--data.root {data.root}: clip {clip.id} has {length} frames, a sample takes {needed}: "
            "lower --data.frames or build the data set with longer clips"
        )
    reference = int(rng.integers(length))
    if data.consecutive:
        stride = data.stride or max(1, round(clip.fps / (fps or clip.fps)))
        stride = min(stride, (length - 1) // max(1, data.frames - 1))
        first = int(rng.integers(length - stride * (data.frames - 1)))
        return [reference, *(first + stride * i for i in range(data.frames))]
    margin = min(data.margin, (length - data.frames + 1) // 2)  # leaves enough frames wherever the reference lies
    distant = np.flatnonzero(np.abs(np.arange(length) - reference) >= max(1, margin))
    return [reference, *map(int, rng.permutation(distant)[: data.frames])]


def choose_crop(
    keypoints: Keypoints, width: int, height: int, aspect: float, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random box of the given width per height that lies inside the picture and around the person: left, top, width
    and height in pixels. A person who does not fit is cut, one whom nobody found may be anywhere."""
    size = np.array([width, height])
    points = keypoints.body[keypoints.body_confidence >= VISIBLE] * size
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), size)
    rim = RIM * (high - low).max()
    low, high = np.clip([low - rim, high + rim], 0, size)
    largest = min(height, width / aspect)
    wanted = max(high[1] - low[1], (high[0] - low[0]) / aspect) * rng.uniform(*ROOM)
    tall = min(max(wanted, largest / 4), largest)  # hardly anything would be left of a far away person
    box = np.array([max(1, round(tall * aspect)), max(1, round(tall))]).clip(max=size)
    # Where the crop may begin: its end behind the person's end, or inside a person who is larger.
    ends = np.sort([high - box, low], axis=0).clip(0, size - box)
    left, top = np.round(rng.uniform(*ends)).astype(int).tolist()
    return left, top, int(box[0]), int(box[1])


def cover(keypoints: Keypoints, height: int, width: int) -> UInt8[np.ndarray, "frames {height} {width}"]:
    """Stands in for a person's mask: 255 on head and torso and in a band around every bone that is seen."""
    masks = np.zeros((len(keypoints), height, width), np.uint8)
    for mask, points, confidence in zip(masks, keypoints.body, keypoints.body_confidence, strict=True):
        seen = confidence >= VISIBLE
        if not seen.any():
            continue
        pixels = points * (width, height)
        band = max(1, round(LIMB * float(np.hypot(*np.ptp(pixels[seen], axis=0)))))
        pixels = np.round(pixels).astype(int)
        if seen[0]:
            cv2.circle(mask, pixels[0].tolist(), band, 255, cv2.FILLED)
        if seen[TORSO].all():
            cv2.fillConvexPoly(mask, cv2.convexHull(pixels[TORSO].astype(np.int32)), 255)
        for start, end in LIMBS:
            if seen[start] and seen[end]:
                cv2.line(mask, pixels[start].tolist(), pixels[end].tolist(), 255, band)
    return masks


def open_source(data: DataConfig, preset: Preset) -> ClipSource:
    """The data set that a configuration names, at the preset's size and frame rate.

    Raises:
        UserError: no such split.
    """
    from animate_jax.data.mocap_people import MocapPeople  # numba; only programs that render need it

    sampling = preset.sampling
    return MocapPeople(data.split, data.seed, sampling.height, sampling.width, sampling.fps or 10.0)


def recorded(data: DataConfig, preset: Preset) -> grain.MapDataset:
    """The endless, shuffled samples of a recorded data set.

    Raises:
        UserError: impossible options, or no such data set.
    """
    from animate_jax.data.records import RecordedClips  # protobuf and array_record; only programs that read clips

    if data.frames < 1:
        raise UserError(f"--data.frames {data.frames}: must be at least 1")
    if data.margin < 0:
        raise UserError(f"--data.margin {data.margin}: must be at least 0")
    if data.stride is not None and data.stride < 1:
        raise UserError(f"--data.stride {data.stride}: must be at least 1")
    if not 0 <= data.flip <= 1:
        raise UserError(f"--data.flip {data.flip}: must be between 0 and 1")
    clips = grain.MapDataset.source(RecordedClips(data.root, data.split))
    return clips.seed(data.seed).shuffle().repeat().map_with_index(RecordedSamples(data, preset))


class ElasticStream:
    """grain's elastic iterator as Orbax saves and restores it. All processes have the same position; grain would look
    for a file written by as many processes as there are now, here any process's file will do."""

    def __init__(self, stream: grain.experimental.ElasticIterator):
        self._iterator = iter(stream)
        self.get_state, self.set_state = self._iterator.get_state, self._iterator.set_state
        self.save, self.close = self._iterator.save, self._iterator.close

    def __iter__(self) -> ElasticStream:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        async def read() -> None:
            self.set_state(json.loads(min(directory.glob("process_*-of-*.json")).read_text()))

        return read()


def batches(data: DataConfig, preset: Preset, process: int = 0, processes: int = 1) -> Any:
    """An endless iterator of this process's share of every batch, with `get_state` and `set_state` (grain).

    Recorded clips come in an order shuffled anew every epoch, each once; their position is one number, which any other
    number of processes can go on from.

    Args:
        process, processes: clips are dealt out in turn, so the processes never see the same one.

    Raises:
        UserError: a batch that does not divide among the processes, impossible options, or no such data set.
    """
    if not data.batch or data.batch % processes:
        raise UserError(f"--data.batch {data.batch}: must be a multiple of the {processes} processes")
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    workers = None
    if data.workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, and we parse with tyro
        workers = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=4)
    if data.root is not None:
        shard = grain.sharding.ShardOptions(process, processes)
        samples = recorded(data, preset)
        return ElasticStream(
            grain.experimental.ElasticIterator(
                samples, data.batch, shard, read_options=threads, multiprocessing_options=workers
            )
        )

    needed = data.frames if data.consecutive else data.frames + 1  # the reference is none of the targets
    if not 1 <= data.frames <= needed <= data.span:
        raise UserError(f"--data.frames {data.frames}: must be at least 1 and fit into --data.span {data.span}")
    dataset = grain.MapDataset.range(ENDLESS).map(Samples(open_source(data, preset), data, preset))
    # Sliced after batching: a process has neighbouring rows, in the order that one process alone would see.
    dataset = dataset.batch(data.batch // processes, drop_remainder=True)[process::processes]
    stream = dataset.to_iter_dataset(threads)
    if workers:
        stream = stream.mp_prefetch(workers, worker_init_fn=leave_group)
    return iter(stream)


def leave_group(*_) -> None:
    """Ctrl-C and `timeout` signal a whole process group. Workers that ended then would take the training process, which
    wants to finish its step and save, with them."""
    os.setpgrp()
