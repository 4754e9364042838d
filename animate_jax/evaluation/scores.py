"""Measurements of one video: scores of its frames, and features for figures of sets of clips."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt8

from animate_jax.errors import UserError
from animate_jax.evaluation import disco_metrics, i3d
from animate_jax.evaluation.features import (
    BATCH_SIZE,
    Features,
    load_frame_network,
    load_video_network,
    person_features,
    windows,
)
from animate_jax.evaluation.image_quality import crop_resize, l1, person_box, psnr, ssim
from animate_jax.evaluation.pose_accuracy import pck
from animate_jax.images import to_unit
from animate_jax.perceptual import lpips
from animate_jax.pose.detect import detect
from animate_jax.pose.keypoints import Keypoints

Frames = UInt8[np.ndarray, "frames height width 3"]
Masks = Shaped[np.ndarray, "frames height width"]

MAX_STATIC_CHANGE = 2  # levels of 255 by which a static pixel may change between frames (compression noise)


@dataclasses.dataclass(frozen=True)
class Networks:
    """The feature networks; the figures of those that are None are left out."""

    vgg: lpips.Params | None = None
    alex: lpips.Params | None = None
    video_features: Callable[..., Features] | None = None
    frame_features: Callable[..., Features] | None = None

    @classmethod
    def load(
        cls,
        lpips_weights: str | None = None,
        video_weights: str | None = None,
        frame_weights: str | None = None,
        warn: Callable[[str], object] = warnings.warn,
    ) -> Networks:
        """Reads the weights; None: those of installed packages. If a package is missing, its network is left out and
        `warn` is called.

        Raises:
            UserError: the given weights cannot be used.
        """

        def optional(name: str, load: Callable[[str | None], Any], weights: str | None) -> Any:
            try:
                return load(weights)
            except UserError as error:
                if weights:
                    raise
                warn(f"without {name}: {error}")
                return None

        vgg = optional("LPIPS", lambda weights: lpips.load(weights, "vgg"), lpips_weights)
        alex = None
        if vgg is not None and not (lpips_weights or "").endswith(".ckpt"):  # a .ckpt contains one network
            alex = lpips.load(lpips_weights, "alex")
        video_features = optional("FVD", load_video_network, video_weights)
        frame_features = None
        if vgg is not None or frame_weights:
            frame_features = load_frame_network(vgg, frame_weights)
        return cls(vgg, alex, video_features, frame_features)


@dataclasses.dataclass(frozen=True)
class ClipScores:
    """Measurements of one video.

    `scores` are means over its frames. `features`: "fvd", "box_fvd" per window of 16 frames, "frames", "box_frames"
    per frame, "person" one vector.
    """

    scores: dict[str, float]
    features: dict[str, np.ndarray]  # [samples, dimensions] each


def measure(
    video: Frames,
    truth: Frames,
    masks: Masks,
    driven: Keypoints,
    networks: Networks,
) -> ClipScores:
    """Measures a video against the true one. The true video itself gets features but no scores.

    Args:
        masks: non-zero where the person is in the true frames.
        driven: the driving joints.
    """
    boxes = person_box(masks)
    scores = {} if video is truth else frame_scores(video, truth, boxes, networks)
    detected = detect(video)
    scores["found"] = float(detected.body_confidence.any(-1).mean())
    for percent in (10, 20):
        scores[f"pck_{percent}"] = _mean(pck(detected, driven, video.shape[1:3], percent / 100))
    scores["flicker"] = flicker(video, truth)
    scores["background_drift"], scores["person_drift"] = color_drift(video, masks)

    features = {}
    if networks.video_features and len(video) >= i3d.MIN_FRAMES:
        features["fvd"] = networks.video_features(windows(video))
        x0, y0, x1, y1 = _union(boxes)
        features["box_fvd"] = networks.video_features(windows(video[:, y0:y1, x0:x1]))
    if networks.frame_features:
        features["frames"] = networks.frame_features(video)
        features["box_frames"] = networks.frame_features(_enlarged_uint8(video, boxes))
    if networks.vgg is not None:
        features["person"] = person_features(networks.vgg, video, masks, boxes).mean(0, keepdims=True)
    return ClipScores(scores, features)


def frame_scores(
    video: Frames, truth: Frames, boxes: Int[np.ndarray, "frames 4"], networks: Networks
) -> dict[str, float]:
    """Means over the frames of psnr, ssim, l1, lpips (VGG), lpips_alex, of the same in the person's box (box_...),
    and of DisCo's variants (disco_...)."""
    count, batches = len(video), []
    for start in range(0, count, BATCH_SIZE):  # batches of one shape, to compile once
        index = np.minimum(np.arange(start, start + BATCH_SIZE), count - 1)
        batch = _frame_scores(video[index], truth[index], boxes[index], networks.vgg, networks.alex)
        batches.append({name: np.asarray(values)[: count - start] for name, values in batch.items()})
    return {name: _mean(np.concatenate([batch[name] for batch in batches])) for name in batches[0]}


@jax.jit
def _frame_scores(
    video: UInt8[Array, "frames height width 3"],
    truth: UInt8[Array, "frames height width 3"],
    boxes: Int[Array, "frames 4"],
    vgg: lpips.Params | None,
    alex: lpips.Params | None,
) -> dict[str, Array]:
    def frame(inputs: tuple[Array, Array, Array]) -> dict[str, Array]:
        raw_a, raw_b, box = inputs
        a, b = (to_unit(x) for x in (raw_a, raw_b))
        out = {"disco_psnr": disco_metrics.psnr(raw_a, raw_b), "disco_ssim": disco_metrics.ssim(raw_a, raw_b)}
        for name, metric in {"psnr": psnr, "ssim": ssim, "l1": l1}.items():
            out[name], out[f"box_{name}"] = metric(a, b), metric(a, b, box)
        pairs = {"": (a, b), "box_": (_enlarged(a, box), _enlarged(b, box))}
        for prefix, (a, b) in pairs.items():
            if vgg is not None:
                out[f"{prefix}lpips"] = lpips.lpips(vgg, a[None] * 2 - 1, b[None] * 2 - 1, "vgg")[0]
            if alex is not None:
                out[f"{prefix}lpips_alex"] = lpips.lpips(alex, a[None] * 2 - 1, b[None] * 2 - 1, "alex")[0]
        if vgg is not None:
            out["disco_lpips"] = disco_metrics.lpips_vgg(vgg, raw_a[None], raw_b[None])[0]
        return out

    return jax.lax.map(frame, (video, truth, boxes))  # one frame at a time: VGG's features are large


def flicker(video: Frames, truth: Frames) -> float:
    """Mean absolute difference between successive frames where the true video is static, in levels of 255. NaN if
    nothing is static (a moving camera) or there is only one frame."""
    true_change, change = (np.abs(np.diff(x.astype(np.int16), axis=0)) for x in (truth, video))
    still = true_change.max(-1) <= MAX_STATIC_CHANGE
    return float(change[still].mean()) if still.any() else np.nan


def color_drift(video: Frames, masks: Masks, step: int = 1) -> tuple[float, float]:
    """How far the mean color of the background and that of the person move from the reference's in 100 frames: slopes
    of straight lines through all frames, mean over the channels, in levels of 255. NaN where there is nothing to see.

    Args:
        masks: non-zero where the person is; what is never masked is background.
        step: frames of the original video from one of these frames to the next.
    """
    behind, person = ~(masks != 0).any(0), masks != 0
    seen = person.any((1, 2))
    background = video[:, behind].mean(1) if behind.any() else np.empty((0, 3))
    colors = [frame[mask].mean(0) for frame, mask in zip(video[seen], person[seen], strict=True)]
    return _slope(np.arange(len(background)) * step, background), _slope(np.flatnonzero(seen) * step, colors)


def _slope(frames: Int[np.ndarray, " frames"], colors: Sequence[np.ndarray] | np.ndarray) -> float:
    if len(frames) < 2:
        return np.nan
    return float(100 * np.abs(np.polyfit(frames, np.stack(list(colors)), 1)[0]).mean())


def _enlarged(image: Array, box: Array) -> Array:
    """The person's box, resized to 7/8 of the image's height and 2/3 of its width."""
    return crop_resize(image, box, image.shape[0] * 7 // 8, image.shape[1] * 2 // 3)


@jax.jit
def _round_enlarged(images: Array, boxes: Array) -> Array:
    enlarged = jax.vmap(_enlarged)(images.astype(jnp.float32), boxes)
    return jnp.clip(jnp.round(enlarged), 0, 255).astype(jnp.uint8)


def _enlarged_uint8(video: Frames, boxes: Int[np.ndarray, "frames 4"]) -> UInt8[np.ndarray, "frames _ _ 3"]:
    return np.asarray(_round_enlarged(video, boxes))


def _union(boxes: Int[np.ndarray, "frames 4"]) -> Int[np.ndarray, " 4"]:
    """One box for the whole video, as one that moves with the person would hide the motion."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _mean(values: np.ndarray) -> float:
    """The mean over frames with a value; NaN if none has one."""
    values = np.asarray(values, np.float64)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else np.nan
