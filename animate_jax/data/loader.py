"""The loader: from clips to batches of pictures, poses drawn on the fly. grain gives order, processes and position."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import cv2
import grain
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import UInt8
from tqdm import tqdm

from animate_jax.config import DataConfig, Preset, TrainConfig
from animate_jax.errors import UserError
from animate_jax.pose.draw import LIMBS, draw
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints
from animate_jax.pose.warp import PARTS, LazyWarpedImages, capsules, without_person
from animate_jax.presets import preset_of
from animate_jax.video.clip_image import clip_pixels

if TYPE_CHECKING:
    from animate_jax.data.records import RecordedClip, RecordedClips

ENDLESS = 1 << 40
USUAL_FPS = 30.0  # of videos: what clips are trained at where nothing names a rate
TOLD = 300  # bytes kept of what is wrong with a clip
RIM = 0.12  # around the person's keypoints, which end at eyes, wrists and ankles, per their larger extent
ROOM = (1.0, 1.4)  # size of a crop per size of the person with the rim
LIMB = 0.12  # width of the masked band around a bone, per diagonal of the person's keypoints
TORSO = [2, 5, 11, 8]  # shoulders and hips, around

# What a share of the clips sees as if poses and mask had been detected, not rendered.
DETECTED = 0.5
JITTER = 2 / 128  # standard deviation of joints is up to this, in picture heights
MASK_ERROR = 2  # pixels by which the mask may be too small or too large
CAPSULES = 0.3  # share of them without any mask
LOST = 0.1  # chance of a part to be lost, and of all in any clip

Box = tuple[int, int, int, int]  # left, top, width and height in pixels


@runtime_checkable
class ClipSource(Protocol):
    """What the loader asks of a data set: any frames of the clip with a given number."""

    def clip(self, index: int, frames: int, pick: list[int] | None = None) -> Any: ...


@dataclasses.dataclass
class Samples:
    """A clip number -> one training sample; the same number always gives the same sample.

    reference, reference_pose [H, W, 3] uint8; clip_pixels [S, S, 3] float32; frames, poses [F, H, W, 3] uint8;
    masks [F, H, W] uint8, the person's share of each pixel. For models with `appearance` also background [H, W, 3],
    warp [F, H, W, 3], warp_masks [F, H, W, 2] uint8, of `LazyWarpedImages`.
    """

    source: ClipSource
    config: TrainConfig

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        data = self.config.data
        rng = np.random.Generator(np.random.PCG64([data.seed, 1, int(index)]))
        if data.consecutive:
            first = int(rng.integers(data.span - data.frames + 1))
            targets = list(range(first, first + data.frames))
            reference = int(rng.integers(data.span))
        else:
            reference, *targets = map(int, rng.permutation(data.span)[: data.frames + 1])
        picked = self.source.clip(int(index), data.span, [reference, *targets])
        return to_sample(picked.frames, picked.keypoints, picked.mask, preset_of(self.config), errors(data, index))


@dataclasses.dataclass
class RecordedSamples:
    """A recorded clip and its position in the endless stream -> one training sample, of the same form as `Samples`'s.

    Reference and targets share one crop in the preset's proportions, around the person or the largest there is, and
    one flip. Recorded clips have no masks: a band around every bone stands for the person.
    """

    config: TrainConfig

    def __call__(self, position: int, clip: RecordedClip) -> dict[str, np.ndarray]:
        """
        Raises:
            UserError: the clip is too short or damaged.
        """
        data, preset = self.config.data, preset_of(self.config)
        target = preset.frames
        rng = np.random.Generator(np.random.PCG64([data.seed, 2, int(position)]))
        numbers = choose_frames(clip, data, target.fps, rng)
        keypoints = clip.keypoints[numbers]
        size, aspect = (clip.width, clip.height), target.width / target.height
        whole = data.framing == "frame"
        box = largest_crop(*size, aspect) if whole else choose_crop(keypoints, *size, aspect, rng)
        mirrored = rng.random() < data.flip
        frames = cut(clip, numbers, box, target.width, target.height)
        keypoints = in_box(clip, keypoints, box)
        masks = cover(keypoints, target.height, target.width)
        if mirrored:
            frames, masks, keypoints = mirror(frames), mirror(masks), keypoints.flipped()
        return to_sample(frames, keypoints, masks, preset, errors(data, position))


def cut(
    clip: RecordedClip, numbers: Sequence[int], box: Box, width: int, height: int
) -> UInt8[np.ndarray, "_ {height} {width} 3"]:
    """A box of a recorded clip's frames with the given numbers, in another size.

    Raises:
        UserError: the clip is damaged.
    """
    from animate_jax.data.records import pictures

    left, top, wide, tall = box
    method = cv2.INTER_AREA if tall > height else cv2.INTER_CUBIC
    frames = np.empty((len(numbers), height, width, 3), np.uint8)
    for number, picture in pictures(clip, numbers):
        crop = np.ascontiguousarray(picture[top : top + tall, left : left + wide])
        frames[np.equal(numbers, number)] = cv2.resize(crop, (width, height), interpolation=method)
    return frames


def in_box(clip: RecordedClip, keypoints: Keypoints, box: Box) -> Keypoints:
    """A clip's keypoints in units of the box."""
    left, top, width, height = box
    return keypoints.affine((clip.width / width, clip.height / height), (-left / width, -top / height))


def mirror(pictures: UInt8[np.ndarray, "n *picture"]) -> UInt8[np.ndarray, "n *picture"]:
    """OpenCV's flip is many times faster than copying a NumPy view."""
    return np.stack([cv2.flip(picture, 1) for picture in pictures])


def to_sample(
    frames: UInt8[np.ndarray, "_ h w 3"],
    keypoints: Keypoints,
    mask: UInt8[np.ndarray, "_ h w"],
    preset: Preset,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The training sample of a reference frame and the target frames behind it."""
    model, target = preset.model, preset.frames
    poses = draw(keypoints, *frames.shape[1:3], target.pose_style)
    warped = {} if model.unet.appearance == "none" else warp_of(frames[0], mask[0], keypoints, rng)
    return warped | {
        "reference": frames[0],
        "reference_pose": poses[0],
        "clip_pixels": clip_pixels(frames[0], model.image_encoder.image_size, target.clip_resize),
        "frames": frames[1:],
        "poses": poses[1:],
        "masks": mask[1:],
    }


def errors(data: DataConfig, number: int) -> np.random.Generator:
    """Of the errors added to a sample; its own generator, so that the rest of the sample does not depend on them."""
    return np.random.Generator(np.random.PCG64([data.seed, 3, int(number)]))


def warp_of(picture: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], keypoints: Keypoints,
            rng: np.random.Generator) -> dict[str, np.ndarray]:  # fmt: skip
    """The reference warped into the frames behind it, in a share of the clips with a detector's errors."""
    height, width = mask.shape
    lost: tuple[int, ...] = ()
    if rng.random() < DETECTED:
        error = rng.normal(0, rng.uniform(0, JITTER), keypoints.body.shape) * (height / width, 1)
        keypoints = dataclasses.replace(keypoints, body=(keypoints.body + error).astype(np.float32))
        if rng.random() < CAPSULES:
            mask = capsules(keypoints[0], height, width)
        change, reach = (cv2.erode, cv2.dilate)[rng.integers(2)], 2 * int(rng.integers(MASK_ERROR + 1)) + 1
        mask = cv2.GaussianBlur(change(mask, np.ones((reach, reach), np.uint8)), (3, 3), rng.uniform(0.3, 1.5))
        lost = tuple(np.flatnonzero(rng.random(PARTS) < LOST).tolist())
        if rng.random() < LOST:
            lost = tuple(range(PARTS))
    background = without_person(picture, mask)
    warp, masks = LazyWarpedImages(picture, mask, background, keypoints[0], keypoints[1:], lost)[:]
    return {"background": background, "warp": warp, "warp_masks": masks}


def choose_frames(clip: RecordedClip, data: DataConfig, fps: float | None, rng: np.random.Generator) -> list[int]:
    """Numbers of the reference frame and, behind it, of the target frames.

    The peers' rules: targets are far from the reference in stage 1, evenly spaced in stage 2, where a clip of twice the
    frame rate has twice the stride; a clip too short for margin or stride has smaller ones.

    Args:
        fps: the preset's frame rate, if it has one.

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
        stride = data.stride or max(1, round(clip.fps / (data.fps or fps or USUAL_FPS)))
        stride = min(stride, (length - 1) // max(1, data.frames - 1))
        first = int(rng.integers(length - stride * (data.frames - 1)))
        return [reference, *(first + stride * i for i in range(data.frames))]
    margin = min(data.margin, (length - data.frames + 1) // 2)  # leaves enough frames wherever the reference lies
    distant = np.flatnonzero(np.abs(np.arange(length) - reference) >= max(1, margin))
    return [reference, *map(int, rng.permutation(distant)[: data.frames])]


def choose_crop(keypoints: Keypoints, width: int, height: int, aspect: float, rng: np.random.Generator) -> Box:
    """A random box of the given width per height that lies inside the picture and around the person: left, top, width
    and height in pixels. A person who does not fit is cut, one whom nobody found may be anywhere."""
    size = np.array([width, height])
    points = keypoints.body[keypoints.body_confidence >= MIN_CONFIDENCE] * size
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


def largest_crop(width: int, height: int, aspect: float) -> Box:
    """The middle of a picture, as much as has the given width per height, as benchmarks cut it: left, top, width and
    height in pixels."""
    wide, tall = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def cover(keypoints: Keypoints, height: int, width: int) -> UInt8[np.ndarray, "frames {height} {width}"]:
    """Stands in for a person's mask: 255 on head and torso and in a band around every bone that is seen."""
    masks = np.zeros((len(keypoints), height, width), np.uint8)
    for mask, points, confidence in zip(masks, keypoints.body, keypoints.body_confidence, strict=True):
        seen = confidence >= MIN_CONFIDENCE
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


def open_source(config: TrainConfig) -> ClipSource:
    """The data set that a configuration names, at the preset's size and frame rate.

    Raises:
        UserError: no such split.
    """
    from animate_jax.data.mocap_people import MocapPeople  # numba; only programs that render need it

    data, target = config.data, preset_of(config).frames
    return MocapPeople(data.split, data.seed, target.height, target.width, target.fps or 10.0)


@dataclasses.dataclass
class WholeSamples:
    """A clip's number and its position in the endless stream -> `RecordedSamples` of it, or of the next whole clip
    where it is damaged, which `damaged` tells: its number and what is wrong with it, or nothing."""

    clips: RecordedClips
    samples: Callable[[int, RecordedClip], dict[str, np.ndarray]]
    most: int  # damaged clips

    def __call__(self, position: int, index: int) -> dict[str, np.ndarray]:
        """
        Raises:
            UserError: more than `most` in a row are damaged.
        """
        told = ""
        for number in range(index, index + self.most + 1):
            number %= len(self.clips)
            try:
                sample = self.samples(position, self.clips[number])
                return sample | {"damaged": np.array(told.encode()[:TOLD], f"S{TOLD}")}
            except UserError as error:
                told, last = told or f"{number}\t{error}", error
        raise last


def recorded(config: TrainConfig) -> tuple[grain.MapDataset, int]:
    """The endless, shuffled samples of a recorded data set, and how many damaged clips it may have.

    Raises:
        UserError: impossible options, or no such data set.
    """
    from animate_jax.data.latents import EncodedSamples, encoding_of
    from animate_jax.data.records import RecordedClips  # protobuf and array_record; only programs that read clips

    data = config.data
    if data.frames < 1:
        raise UserError(f"--data.frames {data.frames}: must be at least 1")
    if data.margin < 0:
        raise UserError(f"--data.margin {data.margin}: must be at least 0")
    if data.stride is not None and data.stride < 1:
        raise UserError(f"--data.stride {data.stride}: must be at least 1")
    if data.fps is not None and not data.fps > 0:
        raise UserError(f"--data.fps {data.fps}: must be greater than 0")
    for flag, share in (("flip", data.flip), ("max-bad", data.max_bad)):
        if not 0 <= share <= 1:
            raise UserError(f"--data.{flag} {share}: must be between 0 and 1")
    clips, encoding = RecordedClips(data.root, data.split), encoding_of(data.root, data.split)
    samples = EncodedSamples(config, encoding) if encoding else RecordedSamples(config)
    most = math.ceil(data.max_bad * len(clips))
    numbers = grain.MapDataset.range(len(clips)).seed(data.seed).shuffle().repeat()
    return numbers.map_with_index(WholeSamples(clips, samples, most)), most


class Stream(grain.DatasetIterator):
    """Endless batches. Their position is one number, the same in all processes: any other number of processes and
    workers can go on from it. Orbax saves and restores it as it does that of any grain iterator.

    Args:
        begin: samples that all processes together have taken -> grain's iterator of this process's batches from there.
        batch: samples that all processes together take at a time.
        most: damaged clips to put up with.
    """

    def __init__(self, begin: Callable[[int], grain.DatasetIterator], batch: int, most: int = 0):
        super().__init__()
        self._begin, self._batch, self._most = begin, batch, most
        self._position, self._iterator = 0, None
        self.damaged: set[int] = set()  # numbers of clips that this process had to replace

    def __next__(self) -> dict[str, np.ndarray]:
        """
        Raises:
            UserError: too many clips are damaged.
        """
        if self._iterator is None:
            self._iterator = self._begin(self._position)
        batch = next(self._iterator)
        self._position += self._batch
        for told in filter(None, batch.pop("damaged", ())):
            self._count(*told.decode(errors="ignore").split("\t", 1))
        return batch

    def _count(self, number: str, what: str) -> None:
        if int(number) in self.damaged:
            return
        self.damaged.add(int(number))
        tqdm.write(f"damaged clip number {len(self.damaged)}, replaced by the next: {what}", file=sys.stderr)
        if len(self.damaged) > self._most:
            raise UserError(
                f"{len(self.damaged)} damaged clips, the last: {what}; or raise --data.max-bad, the share of all clips "
                "that may be damaged"
            )

    def get_state(self) -> dict[str, int]:
        return {"global_next_index": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        self.close()
        position = state.get("global_next_index")
        if position is None:  # an older version's, of rendered data: how many batches each worker has made
            parts = state.get("iterators_in_use_states", [state])
            position = self._batch * sum(part["next_index"] for part in parts)
        self._position = position

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """grain would look for a file written by as many processes as there are now."""

        async def read() -> None:
            self.set_state(json.loads(min(directory.glob("process_*-of-*.json")).read_text()))

        return read()

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def batches(config: TrainConfig, process: int = 0, processes: int = 1) -> Stream:
    """An endless iterator of this process's share of every batch, with `get_state` and `set_state` (grain).

    Recorded clips come in an order shuffled anew every epoch, each once.

    Args:
        process, processes: clips are dealt out in turn, so the processes never see the same one.

    Raises:
        UserError: a batch that does not divide among the processes, impossible options, or no such data set.
    """
    data = config.data
    if not data.batch or data.batch % processes:
        raise UserError(f"--data.batch {data.batch}: must be a multiple of the {processes} processes")
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    workers = None
    if data.workers:
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, and we parse with tyro
        workers = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=4)

    def read(dataset: grain.MapDataset) -> grain.DatasetIterator:
        stream = dataset.to_iter_dataset(threads)
        return iter(stream.mp_prefetch(workers, worker_init_fn=leave_group) if workers else stream)

    share = data.batch // processes
    if data.root is not None:
        clips, most = recorded(config)
        begin = lambda position: read(clips[position + process :: processes].batch(share, drop_remainder=True))  # noqa: E731
        return Stream(begin, data.batch, most)

    needed = data.frames if data.consecutive else data.frames + 1  # the reference is none of the targets
    if not 1 <= data.frames <= needed <= data.span:
        raise UserError(f"--data.frames {data.frames}: must be at least 1 and fit into --data.span {data.span}")
    dataset = grain.MapDataset.range(ENDLESS).map(Samples(open_source(config), config))
    # Sliced after batching: a process has neighbouring rows, in the order that one process alone would see.
    dataset = dataset.batch(share, drop_remainder=True)
    return Stream(lambda position: read(dataset[position // share + process :: processes]), data.batch)


def leave_group(*_) -> None:
    """Ctrl-C and `timeout` signal a whole process group. Workers that ended then would take the training process, which
    wants to finish its step and save, with them."""
    os.setpgrp()
