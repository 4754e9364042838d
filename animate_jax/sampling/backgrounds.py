"""What a composed person stands before: a color, a picture file, or the scene of the driving video."""

from __future__ import annotations

import os
import pathlib
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.ImageColor
from jaxtyping import Float

from animate_jax.errors import UserError
from animate_jax.images import Image, resize_lanczos
from animate_jax.pose.inpaint import without_person
from animate_jax.pose.inspect import warn
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints
from animate_jax.pose.warp import capsules
from animate_jax.sampling.compose import LARGEST, Scene, even
from animate_jax.sampling.inputs import DrivingMotion, is_keypoints
from animate_jax.video.images import read_image
from animate_jax.video.read import iter_frames

SAMPLED = 15  # frames of a driving video that tell what is behind its person
AROUND = 4 / 128  # picture heights around the bones' capsules, in which the driving person is, too
STILL = 6.0  # levels by which these differ on average where nobody stands, beyond which the camera moves
SCALES = 0.05, 20.0  # of a person who is placed in another picture


class Backdrop(NamedTuple):
    """The driving video's scene without its person."""

    picture: Image
    keypoints: Keypoints  # of the driving person [F]


def paint(background: str | os.PathLike, size: tuple[int, int]) -> Image:
    """A color's name or number ("white", "#00ff00"), or a picture file cut to the proportions of the size.

    Args:
        size: height, width in pixels.

    Raises:
        UserError: neither.
    """
    path = pathlib.Path(background)
    if not path.is_file():
        try:
            color = PIL.ImageColor.getrgb(str(background))[:3]
        except ValueError:
            found = "no such file: " if path.suffix else ""
            raise UserError(
                f"--background {background}: {found}give reference, driving, a color (white, #00ff00) or a picture file"
            ) from None
        return np.full((*size, 3), color, np.uint8)
    image = read_image(path)
    height, width = image.shape[:2]
    part = min(width, height * size[1] / size[0]), min(height, width * size[0] / size[1])
    left, top = (width - part[0]) / 2, (height - part[1]) / 2
    return resize_lanczos(image, size, (left, top, left + part[0], top + part[1]))


def backdrop(path: Any, motion: DrivingMotion, width: int | None = None, height: int | None = None) -> Backdrop:
    """The scene of a driving video: each pixel's median over frames in which the person is elsewhere; what is never
    seen is made up. Of a moving camera, for which a warning is given, the first frame.

    Args:
        path, motion: the driving video, and what was read of it.
        width, height: of the picture, in pixels; default: the video's own, at most `LARGEST`. Sides become even.

    Raises:
        UserError: what drives is no video of a person, or unreadable.
    """
    is_file = isinstance(path, str | os.PathLike) and not is_keypoints(path) and not pathlib.Path(path).is_dir()
    if not is_file or motion.keypoints is None:
        raise UserError("--background driving: only a video of a person has a scene: choose another background")
    own = motion.canvas
    scale = min((height or LARGEST[0]) / own[0], (width or LARGEST[1]) / own[1], 1 if not (width or height) else np.inf)
    size = even(own[0] * scale), even(own[1] * scale)
    step = -(-len(motion) // SAMPLED)
    frames = iter_frames(path, frames=-(-len(motion) // step), fps=motion.fps / step)
    pictures = np.stack([resize_lanczos(frame, size) for frame in frames])
    keypoints = motion.keypoints[::step][: len(pictures)]
    pictures = pictures[: len(keypoints)]
    reach = 2 * round(AROUND * size[0]) + 1

    def grow(person):
        return cv2.dilate(capsules(person, *size), np.ones((reach, reach), np.uint8)) > 0

    person = np.stack([grow(keypoints[i]) for i in range(len(keypoints))])
    picture, times = median(pictures, ~person)
    change = np.abs(pictures.astype(np.int16) - picture).mean(-1)[~person]
    if change.size and change.mean() > STILL:
        warn(f"{path}: the camera moves, so its first frame is taken: choose another --background if it looks odd")
        return Backdrop(without_person(pictures[0], 255 * person[0].astype(np.uint8)), motion.keypoints)
    return Backdrop(without_person(picture, 255 * (times == 0).astype(np.uint8)), motion.keypoints)


def median(pictures, seen):
    """The median of each pixel over the pictures [F, H, W, 3] in which it is seen [F, H, W], and how often that is."""
    times = seen.sum(0)
    result = np.empty(pictures.shape[1:], np.uint8)
    for row in range(len(result)):  # in little memory
        values = np.where(seen[:, row, :, None], pictures[:, row], 255)  # what is not seen comes last
        values = np.sort(values, axis=0)
        middle = np.maximum(times[row] - 1, 0) // 2
        result[row] = np.take_along_axis(values, middle[None, :, None], 0)[0]
    return result, times


def place(scene: Scene, fitted: Keypoints, behind: Backdrop) -> tuple[Scene, Keypoints]:
    """Puts the person of a scene, and the motion fitted to it [F], where the driving person is."""
    scale, shift = similarity(fitted, scene.size, behind.keypoints, behind.picture.shape[:2])
    own, size = scene.size, behind.picture.shape[:2]
    factor = scale * own[1] / size[1], scale * own[0] / size[0]
    moved = fitted.affine(factor, (shift[0] / size[1], shift[1] / size[0]))
    return scene.placed(scale, shift, behind.picture), moved


def similarity(
    fitted: Keypoints, size: tuple[int, int], driving: Keypoints, driving_size: tuple[int, int]
) -> tuple[float, tuple[float, float]]:
    """Scale and shift, in pixels, that bring a fitted motion nearest to the one it was made from; its feet stand on
    the same floor. Least squares over all joints of all frames [F]."""
    seen = (fitted.body_confidence >= MIN_CONFIDENCE) & (driving.body_confidence >= MIN_CONFIDENCE)
    points, target = fitted.body * np.array(size[::-1], float), driving.body * np.array(driving_size[::-1], float)
    if not seen.any():
        return 1.0, (0.0, 0.0)
    mean, target_mean = points[seen].mean(0), target[seen].mean(0)
    spread = ((points[seen] - mean) ** 2).sum()
    scale = float((((points - mean) * (target - target_mean))[seen]).sum() / max(spread, 1e-9))
    scale = float(np.clip(scale, *SCALES))
    x, y = target_mean - scale * mean
    ankles = seen[:, [10, 13]].all(1)
    if ankles.any():
        floor: Float[np.ndarray, " f"] = target[ankles][:, [10, 13], 1].max(1) - scale * points[ankles][
            :, [10, 13], 1
        ].max(1)
        y = np.median(floor)
    return scale, (float(x), float(y))
