"""The inputs of a video: the reference cropped around its person, and a driving motion as keypoints or images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import operator
import os
import pathlib
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np

from animate_jax.atomic import MARKER
from animate_jax.config import AnimationConfig
from animate_jax.errors import UserError
from animate_jax.images import Image, Images, resize_lanczos
from animate_jax.pose.align import ALIGN_METHODS, AlignMethod, align_motion, crop_box, keep_inside
from animate_jax.pose.detect import Detector, detect, require_person, segment
from animate_jax.pose.draw import STYLES, LazyPoseImages
from animate_jax.pose.files import KEYPOINT_SUFFIXES, natural_order, read_poses
from animate_jax.pose.inspect import shows_drawn_poses, warn, warn_of_fit, warn_of_gaps
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.smooth import smooth
from animate_jax.pose.track import check_person
from animate_jax.pose.warp import LazyWarpedImages, warp
from animate_jax.progress import Progress
from animate_jax.sampling.arrays import check_sizes, to_image
from animate_jax.video.audio import extract_audio
from animate_jax.video.images import read_image
from animate_jax.video.open import IMAGE_SUFFIXES, check_rate
from animate_jax.video.read import frame_count, frame_rate, iter_frames

EXAMPLE = pathlib.Path(__file__).parents[1] / "assets" / "example"  # reference.png and driving.mp4
RATE = 30.0  # frames/s of what says nothing about it
SEEDS = 2**32  # JAX takes a seed modulo this

Number = float | int
Poses = Images | LazyPoseImages
DrivingKind = Literal["video", "poses"]  # of a video: of a person, or of drawn poses

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, repr=False)
class DrivingMotion:
    """A driving motion: keypoints of a video, or finished pose images."""

    fps: float
    keypoints: Keypoints | None = None
    canvas: tuple[int, int] = (1, 1)  # height, width of the keypoints' video
    images: Images | None = None
    audio: bytes | None = None  # the video's sound (`animate_jax.video.audio`), from the first frame on

    def __repr__(self) -> str:
        kind = "drawn poses" if self.keypoints is None else "keypoints"
        return f"DrivingMotion({len(self)} frames of {kind} at {self.fps:g} frames/s)"

    def __len__(self) -> int:
        parts = self.images if self.keypoints is None else self.keypoints
        return 0 if parts is None else len(parts)

    def __getitem__(self, frames: slice) -> DrivingMotion:
        keypoints, images = (part if part is None else part[frames] for part in (self.keypoints, self.images))
        audio = None if frames.indices(len(self))[0] else self.audio
        return dataclasses.replace(self, keypoints=keypoints, images=images, audio=audio)


def read_motion(
    driving: str | pathlib.Path | Images,
    frames: int | None = None,
    fps: Number | None = None,
    progress: bool = True,
    person: str = "largest",
    detector: Detector | None = None,
    canvas: tuple[int, int] | None = None,
    size: tuple[int, int] | None = None,
    driving_kind: DrivingKind | None = None,
    parts: Sequence[str] = (),
) -> DrivingMotion:
    """Reads a keypoints file (.json, .npz, .npy, a folder of .json), or a video of a person or of drawn poses: a file,
    a folder of pictures in the order of the numbers in their names, or an array.

    A video is read once, frame by frame, after a look at its beginning. Warns (`InputWarning`) of inputs that will give
    a bad result.

    Args:
        frames: at most that many.
        fps: frames/s to read a video at, at most its own; None keeps the video's. Of keypoints, pictures and arrays
            the rate that they have; None: 30.
        person, detector, canvas, driving_kind: as in `Pipeline.stream`.
        size: height, width that drawn poses are resized to; None keeps theirs.
        parts: what the built-in detector finds in addition to the body, see `drawn_parts`.

    Raises:
        UserError: missing or damaged, or nobody is in it.
    """
    check_request(fps, 0, person)
    if is_keypoints(driving):
        return _read_keypoints(pathlib.Path(driving), frames, fps, person, canvas)
    footage = _footage(driving, frames, fps)
    driving_kind = kind_of(driving, frames, fps, driving_kind)
    if driving_kind == "poses":
        drawn = np.stack([resize_lanczos(image, size or image.shape[:2]) for image in footage.read()])
        motion = DrivingMotion(footage.rate, images=drawn)
    else:
        motion = _detect_motion(footage, progress, person, detector or _detector(parts))
    log.info("%s: %s", footage.name, "drawn poses" if driving_kind == "poses" else "a video of a person")
    sound = extract_audio(footage.path, len(motion) / motion.fps) if footage.path else None
    return dataclasses.replace(motion, audio=sound)


class _Footage(NamedTuple):
    """A video whose frames can be read several times; `count` may be an estimate."""

    name: str
    rate: float
    count: int
    read: Callable[[], Generator[Image, None, None]]
    path: pathlib.Path | None = None  # of a file, which may have sound


def _footage(driving: str | pathlib.Path | Images, frames: int | None, fps: Number | None) -> _Footage:
    rate = float(fps or RATE)
    if isinstance(driving, np.ndarray):
        images = driving[:frames]
        return _Footage("the driving frames", rate, len(images), lambda: (image for image in images))
    path = pathlib.Path(driving)
    if files := _picture_files(path)[:frames]:
        return _Footage(str(path), rate, len(files), lambda: _read_pictures(files))
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        raise UserError(f"{path}: is a picture, not a motion: give a video, keypoints or a folder of pictures")
    rate = min(fps or math.inf, frame_rate(path))
    count = int(min(frames or math.inf, frame_count(path, rate)))
    return _Footage(str(path), float(rate), count, lambda: iter_frames(path, frames=frames, fps=rate), path)


def _picture_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The pictures in a folder, in order; none if it has OpenPose's files, beside which pictures of them may lie."""
    if not folder.is_dir() or any(file.name != MARKER for file in folder.glob("*.json")):
        return []
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES]
    return sorted(files, key=lambda file: natural_order(file.name))


def _read_pictures(files: Sequence[pathlib.Path]) -> Generator[Image, None, None]:
    first = None
    for file in files:
        image = read_image(file)
        first = image if first is None else first
        check_sizes([first, image], str(file))
        yield image


def is_keypoints(driving: Any) -> TypeGuard[str | os.PathLike]:
    """Whether it is a file of keypoints, or a folder of such, by its name."""
    if not isinstance(driving, str | os.PathLike):
        return False
    path = pathlib.Path(driving)
    return path.suffix.lower() in KEYPOINT_SUFFIXES or (path.is_dir() and not _picture_files(path))


def kind_of(
    driving: str | pathlib.Path | Images | DrivingMotion,
    frames: int | None = None,
    fps: Number | None = None,
    driving_kind: DrivingKind | None = None,
) -> DrivingKind:
    """What drives: drawn poses, in which it is not known where joints are, or a person. The beginning of a video of
    which it is not said is read. Arguments as in `read_motion`."""
    if isinstance(driving, DrivingMotion):
        return "poses" if driving.keypoints is None else "video"
    if is_keypoints(driving):
        return "video"
    if driving_kind:
        return driving_kind
    with contextlib.closing(_footage(driving, frames, fps).read()) as images:
        return "poses" if shows_drawn_poses(images) else "video"


def _read_keypoints(
    path: pathlib.Path, frames: int | None, fps: Number | None, person: str, canvas: tuple[int, int] | None
) -> DrivingMotion:
    keypoints, canvas = read_poses(path, canvas)
    keypoints = keypoints[:frames]
    require_person(keypoints, path)
    if person != "largest":
        warn(f"{path}: keypoints of one person: --person {person} has no effect")
    warn_of_gaps(path, keypoints)
    return DrivingMotion(float(fps or RATE), keypoints, canvas)


def _detect_motion(footage: _Footage, progress: bool, person: str, detector: Detector) -> DrivingMotion:
    images = footage.read()
    first = next(images)
    with Progress("reading poses", footage.count, bar=progress) as bar:
        keypoints = detector(bar.each(itertools.chain([first], images)), None, person)
    require_person(keypoints, footage.name)
    warn_of_gaps(footage.name, keypoints)
    return DrivingMotion(footage.rate, smooth(keypoints, first.shape[:2], footage.rate), first.shape[:2])


def crop_reference(
    reference: Any, options: AnimationConfig, detector: Detector | None = None
) -> tuple[Image, Keypoints]:
    """The reference cropped around its person to the size of the model's pictures, and the person's keypoints there.

    Raises:
        UserError: unreadable, or nobody in it.
    """
    return crop_around(*find_person(reference, options, detector), (options.height, options.width))


def find_person(reference: Any, options: AnimationConfig, detector: Detector | None = None) -> tuple[Image, Keypoints]:
    """The reference (a file, or as `arrays.to_image` takes it) as it is, and its person's keypoints.

    Raises:
        UserError: unreadable, or nobody in it.
    """
    is_file = isinstance(reference, str | os.PathLike)
    name = str(reference) if is_file else "the reference picture"
    image = read_image(reference) if is_file else to_image(reference, name)
    detected = (detector or _detector(drawn_parts(options)))(image[None])
    require_person(detected, name)
    return image, detected[0].without(*_switched_off(options))


def crop_around(image: Image, keypoints: Keypoints, size: tuple[int, int]) -> tuple[Image, Keypoints]:
    """A picture cropped around its person to the proportions of `size` (height, width), and resized to it."""
    height, width = image.shape[:2]
    left, top, right, bottom = crop_box(keypoints, (height, width), size[1] / size[0])
    margin = int(max(-left, -top, right - width, bottom - height, 0)) + 1
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    box = left + margin, top + margin, right + margin, bottom + margin
    cropped = resize_lanczos(padded, size, box)
    scale = width / (right - left), height / (bottom - top)
    return cropped, keypoints.affine(scale, (-left / (right - left), -top / (bottom - top)))


def drawn_parts(options: AnimationConfig) -> tuple[str, ...]:
    """Of "hands" and "face", those that the pose style draws and that are not switched off."""
    return tuple(part for part in STYLES[options.pose_style].parts if part not in _switched_off(options))


def _switched_off(options: AnimationConfig) -> list[str]:
    return [part for part in ("hands", "face") if getattr(options, part) == "off"]


def _detector(parts: Sequence[str]) -> Detector:
    """The built-in one, for these parts only."""
    return functools.partial(detect, **dict.fromkeys(parts, True))


def fit_motion(
    motion: DrivingMotion, reference: Keypoints, size: tuple[int, int], options: AnimationConfig, align: AlignMethod
) -> Keypoints:
    """The keypoints of a motion fitted to the reference's body, in a picture of that size (height, width).

    Raises:
        UserError: the motion is of drawn poses.
    """
    if motion.keypoints is None:
        raise UserError("--compose on: drawn poses do not say where joints are: drive with a video or keypoints")
    fitted = align_motion(motion.keypoints, motion.canvas, reference, size, align).without(*_switched_off(options))
    if options.keep_inside != "off" and align == "bones":
        fitted = keep_inside(fitted, reference)
    warn_of_fit(fitted, drawn_parts(options), reference)
    return fitted


def draw_motion(
    motion: DrivingMotion, reference: Keypoints, options: AnimationConfig, align: AlignMethod = "bones"
) -> Poses:
    """The pose images of the result: keypoints are fitted to the reference's body, and drawn when they are needed."""
    size = (options.height, options.width)
    if motion.keypoints is None:
        assert motion.images is not None  # one of the two is there
        return resize_lanczos(motion.images, size)
    return LazyPoseImages(fit_motion(motion, reference, size, options, align), *size, options.pose_style)


def warp_reference(image: Image, keypoints: Keypoints, poses: Poses) -> LazyWarpedImages:
    """The reference warped into every frame, for models with `appearance`.

    Args:
        image, keypoints: from `crop_reference`.
        poses: from `draw_motion`; for finished pose images, which have no keypoints, the result is the reference's
            background.
    """
    driven = poses.keypoints if isinstance(poses, LazyPoseImages) else Keypoints.empty(len(poses))
    return warp(image, segment(image, keypoints), keypoints, driven)


def check_request(fps: Number | None, seed: int, person: str, align: str = "bones") -> None:
    """
    Raises:
        UserError: no rate for a video, no seed, no choice of a person, or no way to align.
    """
    if align not in ALIGN_METHODS:
        raise UserError(f"--align {align}: choose one of {', '.join(ALIGN_METHODS)}")
    if fps is not None:
        check_rate(fps, "--fps")
    if not 0 <= operator.index(seed) < SEEDS:
        raise UserError(f"--seed {seed}: must be a whole number from 0 to {SEEDS - 1}")
    check_person(person)
