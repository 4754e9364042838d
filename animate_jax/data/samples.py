"""One training sample from one clip: which frames, which crop, poses drawn on the fly, a mask of the person."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from animate_jax.config import DataConfig, Preset, TrainConfig
from animate_jax.errors import UserError
from animate_jax.images import center_crop_box
from animate_jax.pose.draw import LIMBS, draw
from animate_jax.pose.inpaint import without_person
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints
from animate_jax.pose.warp import NUM_PARTS, LazyWarpedImages, capsules
from animate_jax.presets import preset_of
from animate_jax.video.clip_image import clip_pixels

if TYPE_CHECKING:
    from animate_jax.data.records import RecordedClip, RecordedClips

DEFAULT_FPS = 30.0  # of videos: what clips are trained at where nothing names a rate
MAX_ERROR_BYTES = 300  # of the message about a damaged clip
CROP_MARGIN = 0.12  # around the person's keypoints, which end at eyes, wrists and ankles, per their larger extent
CROP_SCALE = (1.0, 1.4)  # size of a crop per size of the person with this margin
MASK_WIDTH = 0.12  # width of the masked band around a bone, per diagonal of the person's keypoints
TORSO = [2, 5, 11, 8]  # shoulders and hips, in the order of the outline

# A share of the warps is made with the errors of a detector, as rendered poses and masks are exact.
DETECTED_SHARE = 0.5
MAX_JOINT_NOISE = 2 / 128  # largest standard deviation of the joints, in image heights
MAX_MASK_ERROR = 2  # pixels by which the mask may be too small or too large
CAPSULE_SHARE = 0.3  # of the clips with errors: a mask estimated from the pose alone
LOST_CHANCE = 0.1  # of every body part not to be warped, and of all parts of a clip

BoxXYWH = tuple[int, int, int, int]  # left, top, width and height in pixels


@runtime_checkable
class ClipSource(Protocol):
    """A data set of rendered clips: any frames of the clip with a given number."""

    def clip(self, index: int, frames: int, pick: list[int] | None = None) -> Any: ...


@dataclasses.dataclass
class RenderedSamples:
    """A clip number -> one training sample; the same number always gives the same sample.

    A sample is a dict of NumPy arrays, the fields of `Batch` without their first axis.
    """

    source: ClipSource
    config: TrainConfig

    def __call__(self, index: int) -> dict[str, np.ndarray]:
        data = self.config.data
        rng = np.random.Generator(np.random.PCG64([data.seed, 1, int(index)]))
        if data.consecutive:
            first = int(rng.integers(data.clip_frames - data.frames + 1))
            targets = list(range(first, first + data.frames))
            reference = int(rng.integers(data.clip_frames))
        else:
            reference, *targets = map(int, rng.permutation(data.clip_frames)[: data.frames + 1])
        picked = self.source.clip(int(index), data.clip_frames, [reference, *targets])
        return to_sample(
            picked.frames, picked.keypoints, picked.mask, preset_of(self.config), detection_rng(data, index)
        )


@dataclasses.dataclass
class RecordedSamples:
    """A recorded clip and its position in the endless order of clips -> one training sample.

    Reference and targets share one crop in the preset's proportions (a random one around the person, or the largest
    central one) and one horizontal flip. Recorded clips have no masks: `person_mask` estimates them.
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
        if data.framing == "frame":
            box = center_crop_box(clip.width, clip.height, target.width, target.height)
        else:
            box = choose_crop(keypoints, clip.width, clip.height, target.width / target.height, rng)
        mirrored = rng.random() < data.flip
        frames = read_crop(clip, numbers, box, target.width, target.height)
        keypoints = keypoints_in_box(clip, keypoints, box)
        masks = person_mask(keypoints, target.height, target.width)
        if mirrored:
            frames, masks, keypoints = flip_horizontally(frames), flip_horizontally(masks), keypoints.flipped()
        return to_sample(frames, keypoints, masks, preset, detection_rng(data, position))


def read_crop(
    clip: RecordedClip, numbers: Sequence[int], box: BoxXYWH, width: int, height: int
) -> UInt8[np.ndarray, "_ {height} {width} 3"]:
    """The frames with the given numbers of a recorded clip, cropped to `box` and resized.

    Raises:
        UserError: the clip is damaged.
    """
    from animate_jax.data.records import read_frames

    left, top, wide, tall = box
    method = cv2.INTER_AREA if tall > height else cv2.INTER_CUBIC
    frames = np.empty((len(numbers), height, width, 3), np.uint8)
    for number, image in read_frames(clip, numbers):
        crop = np.ascontiguousarray(image[top : top + tall, left : left + wide])
        frames[np.equal(numbers, number)] = cv2.resize(crop, (width, height), interpolation=method)
    return frames


def keypoints_in_box(clip: RecordedClip, keypoints: Keypoints, box: BoxXYWH) -> Keypoints:
    """A clip's keypoints in units of the box's width and height."""
    left, top, width, height = box
    return keypoints.affine((clip.width / width, clip.height / height), (-left / width, -top / height))


def flip_horizontally(images: UInt8[np.ndarray, " n *image"]) -> UInt8[np.ndarray, " n *image"]:
    return np.stack([cv2.flip(image, 1) for image in images])  # many times faster than copying a NumPy view


def to_sample(
    frames: UInt8[np.ndarray, "_ h w 3"],
    keypoints: Keypoints,
    mask: UInt8[np.ndarray, "_ h w"],
    preset: Preset,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The training sample of a clip whose first frame is the reference and whose others are the targets.

    Args:
        rng: of the warp's errors, see `warp_reference`.
    """
    model, target = preset.model, preset.frames
    poses = draw(keypoints, frames.shape[1], frames.shape[2], target.pose_style)
    warped = {} if model.unet.appearance == "none" else warp_reference(frames[0], mask[0], keypoints, rng)
    return warped | {
        "reference": frames[0],
        "reference_pose": poses[0],
        "clip_pixels": clip_pixels(frames[0], model.image_encoder.image_size, target.clip_resize),
        "frames": frames[1:],
        "poses": poses[1:],
        "masks": mask[1:],
    }


def detection_rng(data: DataConfig, number: int) -> np.random.Generator:
    """For the errors of `warp_reference`. Its own generator: the rest of a sample does not depend on these errors."""
    return np.random.Generator(np.random.PCG64([data.seed, 3, int(number)]))


def warp_reference(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], keypoints: Keypoints, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The reference warped into the poses of the targets, in a share of the clips with a detector's errors.

    Args:
        keypoints: of the reference and then of the targets.
    """
    height, width = mask.shape
    lost: tuple[int, ...] = ()
    if rng.random() < DETECTED_SHARE:
        error = rng.normal(0, rng.uniform(0, MAX_JOINT_NOISE), keypoints.body.shape) * (height / width, 1)
        keypoints = dataclasses.replace(keypoints, body=(keypoints.body + error).astype(np.float32))
        if rng.random() < CAPSULE_SHARE:
            mask = capsules(keypoints[0], height, width)
        change, reach = (cv2.erode, cv2.dilate)[rng.integers(2)], 2 * int(rng.integers(MAX_MASK_ERROR + 1)) + 1
        mask = cv2.GaussianBlur(change(mask, np.ones((reach, reach), np.uint8)), (3, 3), rng.uniform(0.3, 1.5))
        lost = tuple(np.flatnonzero(rng.random(NUM_PARTS) < LOST_CHANCE).tolist())
        if rng.random() < LOST_CHANCE:
            lost = tuple(range(NUM_PARTS))
    background = without_person(image, mask)
    warp, masks = LazyWarpedImages(image, mask, background, keypoints[0], keypoints[1:], lost)[:]
    return {"background": background, "warp": warp, "warp_masks": masks}


def choose_frames(clip: RecordedClip, data: DataConfig, fps: float | None, rng: np.random.Generator) -> list[int]:
    """Numbers of the reference frame and then of the target frames.

    As the PyTorch implementations choose them: in stage 1 at least `data.min_reference_distance` frames from the
    reference; in stage 2 evenly spaced, with a stride in proportion to the clip's frame rate. In short clips distance
    and stride are smaller.

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
        stride = data.stride or max(1, round(clip.fps / (data.fps or fps or DEFAULT_FPS)))
        stride = min(stride, (length - 1) // max(1, data.frames - 1))
        first = int(rng.integers(length - stride * (data.frames - 1)))
        return [reference, *(first + stride * i for i in range(data.frames))]
    margin = min(
        data.min_reference_distance, (length - data.frames + 1) // 2
    )  # leaves enough frames wherever the reference lies
    distant = np.flatnonzero(np.abs(np.arange(length) - reference) >= max(1, margin))
    return [reference, *map(int, rng.permutation(distant)[: data.frames])]


def choose_crop(keypoints: Keypoints, width: int, height: int, aspect: float, rng: np.random.Generator) -> BoxXYWH:
    """A random box inside the image and around the person.

    A person who is larger than the box is cut off; without a detected person the box may be anywhere.

    Args:
        width, height: of the image in pixels.
        aspect: the box's width per height.
    """
    size = np.array([width, height])
    points = keypoints.body[keypoints.body_confidence >= MIN_CONFIDENCE] * size
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), size)
    margin = CROP_MARGIN * (high - low).max()
    low, high = np.clip([low - margin, high + margin], 0, size)
    largest = min(height, width / aspect)
    wanted = max(high[1] - low[1], (high[0] - low[0]) / aspect) * rng.uniform(*CROP_SCALE)
    tall = min(max(wanted, largest / 4), largest)  # smaller crops of distant people would show little
    box = np.array([max(1, round(tall * aspect)), max(1, round(tall))]).clip(max=size)
    # Range of the left and upper edge: the crop contains the person, or lies inside a person who is larger.
    ends = np.sort([high - box, low], axis=0).clip(0, size - box)
    left, top = np.round(rng.uniform(*ends)).astype(int).tolist()
    return left, top, int(box[0]), int(box[1])


def person_mask(keypoints: Keypoints, height: int, width: int) -> UInt8[np.ndarray, "frames {height} {width}"]:
    """An estimated mask of the person: 255 on head and torso and in a band around every visible bone, else 0."""
    masks = np.zeros((len(keypoints), height, width), np.uint8)
    for mask, points, confidence in zip(masks, keypoints.body, keypoints.body_confidence, strict=True):
        visible = confidence >= MIN_CONFIDENCE
        if not visible.any():
            continue
        pixels = points * (width, height)
        band = max(1, round(MASK_WIDTH * float(np.hypot(*np.ptp(pixels[visible], axis=0)))))
        pixels = np.round(pixels).astype(int)
        if visible[0]:
            cv2.circle(mask, pixels[0].tolist(), band, 255, cv2.FILLED)
        if visible[TORSO].all():
            cv2.fillConvexPoly(mask, cv2.convexHull(pixels[TORSO].astype(np.int32)), 255)
        for start, end in LIMBS:
            if visible[start] and visible[end]:
                cv2.line(mask, pixels[start].tolist(), pixels[end].tolist(), 255, band)
    return masks


def open_source(config: TrainConfig) -> ClipSource:
    """The rendered data set of a configuration, at the preset's size and frame rate.

    Raises:
        UserError: no such split.
    """
    from animate_jax.data.mocap_people import MocapPeople  # numba; only programs that render need it

    data, target = config.data, preset_of(config).frames
    return MocapPeople(data.split, data.seed, target.height, target.width, target.fps or 10.0)


@dataclasses.dataclass
class SkipDamaged:
    """A clip's position in the endless order and its number -> the sample of this clip or, where it is damaged, of the
    next readable one. The sample's `damaged` is then "number<tab>message" of the damaged clip, else empty."""

    clips: RecordedClips
    samples: Callable[[int, RecordedClip], dict[str, np.ndarray]]  # position and clip -> sample
    max_damaged: int

    def __call__(self, position: int, index: int) -> dict[str, np.ndarray]:
        """
        Raises:
            UserError: more than `max_damaged` clips in a row are damaged.
        """
        message = ""
        last: UserError | None = None
        for number in range(index, index + self.max_damaged + 1):
            number %= len(self.clips)
            try:
                sample = self.samples(position, self.clips[number])
                return sample | {"damaged": np.array(message.encode()[:MAX_ERROR_BYTES], f"S{MAX_ERROR_BYTES}")}
            except UserError as error:
                message, last = message or f"{number}\t{error}", error
        assert last is not None  # at least one was tried
        raise last
