"""Results at the picture's own size: the model says where what is, the reference's own pixels say what it looks like.

The model animates a box around the person at the size it was trained for. Each pixel of its frame, enlarged, is then
explained: by the warped reference, by the background behind the person, or, where it looks like neither, by itself.
An extension of ours, not in the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from animate_jax.config import AnimationConfig
from animate_jax.errors import UserError
from animate_jax.images import Image, Images, resize_lanczos
from animate_jax.pose.detect import Detector, segment
from animate_jax.pose.draw import LazyPoseImages
from animate_jax.pose.inpaint import Mask, cutout, foreground
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints
from animate_jax.pose.shadow import Shadow, without_shadow
from animate_jax.pose.warp import LazyWarpedImages, capsules, warp_field
from animate_jax.sampling.inputs import crop_around, find_person

LARGEST = 768, 1366  # pixels, height and width of a result that is not asked for
SIDES = 32, 4096  # pixels, of a result that is
MARGIN = 0.15  # around the person, in heights of the box around all of its joints
BEYOND = 0.1  # sizes of the picture that the box may follow the person out of it

# How the model's frame is explained, at its own size. Differences are root mean squares over a neighborhood, in levels.
NOISE = 30.0  # between the model's frame and what it stands for
NEITHER = 50.0  # from which it stands for neither
NEIGHBORHOOD = 1.2  # pixels, standard deviation
SURE = 3.5  # NOISE**2 / 2 by which a sure warp is preferred
SURE_FROM, SURE_AT = 0.05, 0.4  # of the warp's own certainty
ASIDE = 8.0  # NOISE**2 by which it is unlikelier to stand for neither where one of them has it a pixel aside
DECISION = 2.0  # how sharply one explanation wins
REACH_OF_LIMBS = 0.004  # heights of the box around a limb of the reference beyond which it shows something else
ELSEWHERE = 1.5  # NOISE**2 by which what it shows there must be better
REACH = 2  # pixels around the driven person in which the model may show what neither layer does
SLIVER = 0.5  # NOISE**2 by which a detail of the warp is further from the model's enlarged frame than the background
FINE = 0.8  # pixels of the result, standard deviation, over which it is compared there
TINT = 6.0  # pixels over which the model's colors are brought to those around what is left of it

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; may reach outside the picture
Pixels = Float32[np.ndarray, "height width channels"]


@dataclasses.dataclass(frozen=True)
class Scene:
    """A person in front of a background, at the result's size.

    Attributes:
        picture, keypoints: the reference, and its person (one frame).
        mask: the person, 255 inside.
        background: the picture without the person and the shadow at its feet.
        shadow: that shadow, where there is one.
    """

    picture: Image
    keypoints: Keypoints
    mask: Mask
    background: Image
    shadow: Shadow | None = None

    @classmethod
    def of(cls, picture: Image, keypoints: Keypoints) -> Scene:
        """The person of a picture, found again in it."""
        found = segment(picture, keypoints)
        mask = capsules(keypoints, *picture.shape[:2]) if found is None else found
        return cls(picture, keypoints, cutout(mask), *without_shadow(picture, mask, keypoints))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.picture.shape[0], self.picture.shape[1]

    def before(self, background: Image) -> Scene:
        """The person before another background of the same size."""
        share = (self.mask / np.float32(255))[..., None]
        picture = background + share * (foreground(self.picture, self.mask).astype(np.float32) - background)
        return dataclasses.replace(self, picture=np.round(picture).astype(np.uint8), background=background, shadow=None)

    def placed(self, scale: float, shift: tuple[float, float], background: Image) -> Scene:
        """The person moved (pixel * scale + shift) into another picture."""
        (height, width), own = background.shape[:2], self.size
        small = [max(round(side * min(scale, 1)), 1) for side in own]
        rest = [scale * side / other for side, other in zip(own, small, strict=True)]
        matrix = np.array([[rest[1], 0, shift[0]], [0, rest[0], shift[1]]], np.float32)
        matrix[:, 2] += np.array([rest[1] - 1, rest[0] - 1], np.float32) / 2  # OpenCV's pixels have their centers at 0
        picture, mask = (
            cv2.warpAffine(
                cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA), matrix, (width, height), borderMode=border
            )
            for image, border in ((self.picture, cv2.BORDER_REPLICATE), (self.mask, cv2.BORDER_CONSTANT))
        )
        factor = scale * own[1] / width, scale * own[0] / height
        keypoints = self.keypoints.affine(factor, (shift[0] / width, shift[1] / height))
        return Scene(picture, keypoints, mask, background).before(background)


@dataclasses.dataclass(frozen=True)
class Composition:
    """A video to compose.

    Attributes:
        scene: the person, and what is behind it.
        poses: of all frames, at the scene's size.
        box: what the model animates.
        warped: the reference in the box, at the scene's resolution, in every pose.
    """

    scene: Scene
    poses: LazyPoseImages
    box: Box
    warped: LazyWarpedImages

    @classmethod
    def of(cls, scene: Scene, fitted: Keypoints, options: AnimationConfig) -> Composition:
        """
        Args:
            fitted: the driving motion [F] in the scene.
            options: size and pose style of the model's pictures.
        """
        box = person_box(scene.keypoints, fitted, scene.size, options.width / options.height)
        own, driven = (into_box(keypoints, scene.size, box) for keypoints in (scene.keypoints, fitted))
        mask = cut(scene.mask, box)
        person = foreground(scene.picture, scene.mask)
        warped = LazyWarpedImages(cut(person, box), mask, cut(scene.background, box), own, driven, reach=REACH_OF_LIMBS)
        return cls(scene, LazyPoseImages(fitted, *scene.size, options.pose_style), box, warped)

    def seen_by_model(self, options: AnimationConfig) -> LazyWarpedImages:
        """The reference in the box at the model's size."""
        size = options.height, options.width
        mask = resize(self.warped.mask.astype(np.float32), size).round().clip(0, 255).astype(np.uint8)
        whole = cut(self.scene.picture, self.box)
        picture, background = (resize_lanczos(image, size) for image in (whole, self.warped.background))
        return dataclasses.replace(self.warped, picture=picture, mask=mask, background=background)

    def frames(self, chunks: Iterator[Images]) -> Iterator[Images]:
        """The model's frames, a few at a time in their order -> the results."""
        start = 0
        height, width = self.scene.size
        left, top, right, bottom = self.box
        inside = np.s_[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
        shown = np.s_[max(-top, 0) : min(bottom, height) - top, max(-left, 0) : min(right, width) - left]
        for chunk in chunks:
            results = np.stack([self.behind(number) for number in range(start, start + len(chunk))])
            for result, frame, number in zip(results, chunk, range(start, start + len(chunk)), strict=True):
                layers = dataclasses.replace(self.warped, background=cut(result, self.box))
                [warped], [masks] = layers.complete(np.s_[number : number + 1])
                free = around(self.warped.driven[number], frame.shape[:2])
                result[inside] = compose(frame, warped, masks, layers.background, free)[shown]
            start += len(chunk)
            yield results

    def behind(self, number: int) -> Image:
        """What is behind the person of one frame, in its shadow."""
        scene = self.scene
        return scene.shadow.cast(scene.background, self.poses.keypoints[number]) if scene.shadow else scene.background


def read_scene(
    reference: Any,
    options: AnimationConfig,
    width: int | None = None,
    height: int | None = None,
    detector: Detector | None = None,
) -> Scene:
    """The reference as a scene.

    Args:
        options: of the model.
        width, height: of the result, in pixels; of both, the picture is cut around its person to their proportions.
            Default: the picture's own, at most `LARGEST`. Sides become even.

    Raises:
        UserError: unreadable, nobody in it, or an impossible size.
    """
    for name, side in (("width", width), ("height", height)):
        if side is not None and not SIDES[0] <= side <= SIDES[1]:
            raise UserError(f"--{name} {side}: must be between {SIDES[0]} and {SIDES[1]}")
    image, keypoints = find_person(reference, options, detector)
    if width and height:
        picture, keypoints = crop_around(image, keypoints, (even(height), even(width)))
    else:
        own = image.shape[:2]
        scale = height / own[0] if height else width / own[1] if width else min(1, *np.divide(LARGEST, own))
        size = min(even(own[0] * scale), SIDES[1]), min(even(own[1] * scale), SIDES[1])
        picture = resize_lanczos(image, size)
    return Scene.of(picture, keypoints)


def even(side: float | int) -> int:
    """The nearest even number, at least 2: videos have no other sides."""
    return max(round(side / 2), 1) * 2


def person_box(reference: Keypoints, fitted: Keypoints, size: tuple[int, int], aspect: float) -> Box:
    """The box around the person of the reference and of all frames [F], in the model's proportions.

    Args:
        size: height, width of the picture.
        aspect: width / height of the box.
    """
    limits = np.array([-BEYOND, 1 + BEYOND])
    joints = [keypoints.body[keypoints.body_confidence >= MIN_CONFIDENCE] for keypoints in (reference, fitted)]
    points = np.concatenate(joints).clip(*limits) * size[::-1]
    if len(points) < 2:
        points = np.array([[0, 0], size[::-1]])
    low, high = points.min(0), points.max(0)
    free = MARGIN * max(*(high - low), 1.0)
    low, high = low - free * np.array([1, 1.4]), high + free  # the crown of the head lies above every keypoint
    tall = max(high[1] - low[1], (high[0] - low[0]) / aspect)
    half = np.array([tall * aspect, tall]) / 2
    left, top, right, bottom = np.round([*((low + high) / 2 - half), *((low + high) / 2 + half)]).astype(int).tolist()
    return left, top, right, bottom


def into_box(keypoints: Keypoints, size: tuple[int, int], box: Box) -> Keypoints:
    """Keypoints of a picture of that size (height, width) in units of the box."""
    left, top, right, bottom = box
    scale = size[1] / (right - left), size[0] / (bottom - top)
    return keypoints.affine(scale, (-left / (right - left), -top / (bottom - top)))


def cut(image: UInt8[np.ndarray, "..."], box: Box) -> UInt8[np.ndarray, "..."]:
    """The box of an image, continued beyond its edges."""
    left, top, right, bottom = box
    height, width = image.shape[:2]
    before, after = (max(-top, 0), max(-left, 0)), (max(bottom - height, 0), max(right - width, 0))
    wider = cv2.copyMakeBorder(image, before[0], after[0], before[1], after[1], cv2.BORDER_REPLICATE)
    return wider[top + before[0] : bottom + before[0], left + before[1] : right + before[1]].copy()


def around(driven: Keypoints, size: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """1 around the driven person in a frame of that size. Elsewhere the model may not show what neither layer does: on
    photographs it leaves shreds of the person where the reference has it."""
    person = (warp_field(driven, driven[None], *size).part[0] >= 0).astype(np.float32)
    return cv2.dilate(person, np.ones((2 * REACH + 1, 2 * REACH + 1)))


def compose(
    frame: Image,
    warped: Image,
    masks: UInt8[np.ndarray, "height width 3"],
    background: Image,
    free: Float32[np.ndarray, "h w"] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The model's frame, of any size, with the pixels of what it stands for.

    Args:
        warped, masks: from `LazyWarpedImages.complete`, of the result's size.
        background: of that size.
        free: of the frame's size: 0 where only `warped` and `background` may be shown; default: nowhere.
    """
    full, size = warped.shape[:2], frame.shape[:2]
    layers = warped.astype(np.float32), background.astype(np.float32)
    model, low = frame.astype(np.float32), [resize(layer, size) for layer in layers]
    certain = resize(masks[..., 1].astype(np.float32) / 255, size)
    certain = ((certain - SURE_FROM) / (SURE_AT - SURE_FROM)).clip(0, 1)
    person, behind = (blur(((model - layer) ** 2).mean(-1), NEIGHBORHOOD) / NOISE**2 for layer in low)
    nearby = [blur(least_difference(model, layer), NEIGHBORHOOD) / NOISE**2 for layer in low]
    agrees = resize((2 - person).clip(0, 1), full).clip(0, 1)
    person = person + certain * (nearby[0] - person)
    neither = (NEITHER / NOISE) ** 2 + ASIDE * (1 - np.minimum(*nearby)).clip(0, 1)
    elsewhere = 1 - resize(masks[..., 2].astype(np.float32) / 255, size)
    cost = np.stack([person - 2 * SURE * certain + ELSEWHERE * elsewhere, behind, neither], -1)
    shares = np.exp(-DECISION / 2 * (cost - cost.min(-1, keepdims=True)))
    shares /= shares.sum(-1, keepdims=True)
    if free is not None:
        kept = shares[..., 2] * (1 - free)
        shares[..., 1:] += np.stack([kept, -kept], -1)
    # What the model alone knows gets the tint of what stands around it: its colors are not the reference's.
    copied = 1 - shares[..., 2:]
    off = shares[..., :1] * low[0] + shares[..., 1:2] * low[1] - copied * model
    model = model + blur(off, TINT) / (blur(copied[..., 0], TINT)[..., None] + 1e-3)
    shares = without_slivers(resize(shares, full).clip(0, 1), agrees, resize(frame.astype(np.float32), full), layers)
    if free is not None:
        shares[..., 2] *= cv2.resize(free, full[::-1]) > 0
    shares /= shares.sum(-1, keepdims=True)
    result = sum(shares[..., i : i + 1] * layer for i, layer in enumerate((*layers, resize(model, full))))
    return np.round(result).clip(0, 255).astype(np.uint8)


def least_difference(model: Pixels, layer: Pixels) -> Float32[np.ndarray, "height width"]:
    """The mean squared difference of a frame from a layer that is moved by up to a pixel, the least of all."""
    height, width = model.shape[:2]
    wider = cv2.copyMakeBorder(layer, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    moved = (wider[y : y + height, x : x + width] for y in range(3) for x in range(3))
    return np.minimum.reduce([((model - each) ** 2).mean(-1) for each in moved])


def without_slivers(
    shares: Float32[np.ndarray, "height width 3"],
    agrees: Float32[np.ndarray, "height width"],
    shown: Pixels,
    layers: tuple[Pixels, Pixels],
) -> Float32[np.ndarray, "height width 3"]:
    """Shares with the background where the model's enlarged frame shows it and the warped person has something else,
    too thin to be seen in a frame that otherwise agrees: edges in the shade of another limb."""
    shown = blur(shown, FINE)
    person, behind = (blur(((shown - layer) ** 2).mean(-1), FINE) / NOISE**2 / SLIVER for layer in layers)
    moved = shares[..., 0] * agrees * (1 - behind).clip(0, 1) * (person - behind - 1).clip(0, 1)
    return shares + np.stack([-moved, moved, np.zeros_like(moved)], -1)


def resize(image: Float32[np.ndarray, "..."], size: tuple[int, int]) -> Float32[np.ndarray, "..."]:
    """To height, width: averaged when smaller, smooth when larger."""
    smaller = size[0] < image.shape[0]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def blur(image: Float32[np.ndarray, "..."], deviation: float) -> Float32[np.ndarray, "..."]:
    return cv2.GaussianBlur(image, (0, 0), deviation)
