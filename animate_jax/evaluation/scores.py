"""All that is measured of one video: scores of its frames, and features for what compares whole sets of clips."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped, UInt8

from animate_jax.errors import UserError
from animate_jax.evaluation import disco, i3d
from animate_jax.evaluation.features import FRAMES, Features, frame_features, person_features, video_features, windows
from animate_jax.evaluation.image_quality import enlarge, l1, person_box, psnr, ssim
from animate_jax.evaluation.pose_accuracy import pck
from animate_jax.perceptual import lpips
from animate_jax.pose.detect import detect
from animate_jax.pose.keypoints import Keypoints

Frames = UInt8[np.ndarray, "frames height width 3"]
Masks = Shaped[np.ndarray, "frames height width"]

STILL = 2  # levels of 255 by which a still pixel may change from frame to frame (noise of encoders)


@dataclasses.dataclass(frozen=True)
class Networks:
    """What measures in features; None leaves its figures out."""

    vgg: lpips.Params | None = None
    alex: lpips.Params | None = None
    videos: Callable[..., Features] | None = None
    frames: Callable[..., Features] | None = None

    @classmethod
    def load(cls, lpips_weights: str | None, video_weights: str | None, frame_weights: str | None,
             warn: Callable[[str], None]) -> Networks:  # fmt: skip
        """Reads the weights. What no flag names and no package brings is left out, and `warn` is told.

        Raises:
            UserError: a flag names weights that cannot be used.
        """

        def optional(name: str, load: Callable, named: str | None):
            try:
                return load()
            except UserError as error:
                if named:
                    raise
                warn(f"without {name}: {error}")
                return None

        vgg = optional("LPIPS", lambda: lpips.load(lpips_weights, "vgg"), lpips_weights)
        alex = None
        if vgg is not None and not (lpips_weights or "").endswith(".ckpt"):  # a .ckpt holds one network
            alex = lpips.load(lpips_weights, "alex")
        videos = optional("FVD", lambda: video_features(video_weights), video_weights)
        frames = None
        if vgg is not None or frame_weights:
            frames = frame_features(vgg, frame_weights)
        return cls(vgg, alex, videos, frames)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One video.

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
) -> Measured:
    """Measures a video against the true one; the true one itself has no scores of its frames.

    Args:
        masks: non-zero where the person is in the true frames.
        driven: the joints that the video should show.
    """
    boxes = person_box(masks)
    scores = {} if video is truth else frame_scores(video, truth, boxes, networks)
    found = detect(video)
    scores["found"] = float(found.body_confidence.any(-1).mean())
    for percent in (10, 20):
        scores[f"pck_{percent}"] = _mean(pck(found, driven, video.shape[1:3], percent / 100))
    scores["flicker"] = flicker(video, truth)

    features = {}
    around = _around(boxes)
    if networks.videos and len(video) >= i3d.SHORTEST:
        features["fvd"] = networks.videos(windows(video))
        x0, y0, x1, y1 = around
        features["box_fvd"] = networks.videos(windows(video[:, y0:y1, x0:x1]))
    if networks.frames:
        features["frames"] = networks.frames(video)
        features["box_frames"] = networks.frames(_boxed(video, boxes))
    if networks.vgg is not None:
        features["person"] = person_features(networks.vgg, video, masks, boxes).mean(0, keepdims=True)
    return Measured(scores, features)


def frame_scores(video: Frames, truth: Frames, boxes: Int[np.ndarray, "frames 4"], networks: Networks
                 ) -> dict[str, float]:  # fmt: skip
    """Means over the frames of psnr, ssim, l1, lpips (VGG), lpips_alex, of the same in the person's box (box_...),
    and of the field's variants (disco_...)."""
    count, parts = len(video), []
    for start in range(0, count, FRAMES):  # always the same shape, so that nothing is compiled twice
        index = np.minimum(np.arange(start, start + FRAMES), count - 1)
        part = _frame_scores(video[index], truth[index], boxes[index], networks.vgg, networks.alex)
        parts.append({name: np.asarray(values)[: count - start] for name, values in part.items()})
    return {name: _mean(np.concatenate([part[name] for part in parts])) for name in parts[0]}


@jax.jit
def _frame_scores(
    video: UInt8[Array, "frames height width 3"],
    truth: UInt8[Array, "frames height width 3"],
    boxes: Int[Array, "frames 4"],
    vgg: lpips.Params | None,
    alex: lpips.Params | None,
) -> dict[str, Array]:
    def frame(inputs: tuple[Array, Array, Array]) -> dict[str, Array]:
        raw, box = inputs[:2], inputs[2]
        pair = [x.astype(jnp.float32) / 255 for x in raw]
        out = {"disco_psnr": disco.psnr(*raw), "disco_ssim": disco.ssim(*raw)}
        for name, metric in {"psnr": psnr, "ssim": ssim, "l1": l1}.items():
            out[name], out[f"box_{name}"] = metric(*pair), metric(*pair, box)
        boxed = [_enlarged(x, box) for x in pair]
        for name, params, net in (("lpips", vgg, "vgg"), ("lpips_alex", alex, "alex")):
            if params is not None:
                for prefix, (a, b) in (("", pair), ("box_", boxed)):
                    out[prefix + name] = lpips.lpips(params, a[None] * 2 - 1, b[None] * 2 - 1, net)[0]
        if vgg is not None:
            out["disco_lpips"] = disco.lpips_vgg(vgg, *(x[None] for x in raw))[0]
        return out

    return jax.lax.map(frame, (video, truth, boxes))  # one frame at a time: VGG's features are large


def flicker(video: Frames, truth: Frames) -> float:
    """How much a video changes from frame to frame where the true one stands still: mean of absolute differences, in
    levels of 255. NaN where nothing stands still (a moving camera) or there is one frame only."""
    change = lambda x: np.abs(np.diff(x.astype(np.int16), axis=0))  # noqa: E731
    still = change(truth).max(-1) <= STILL
    return float(change(video)[still].mean()) if still.any() else np.nan


def _enlarged(picture: Array, box: Array) -> Array:
    """The person's box at 7/8 of the picture's height and 2/3 of its width."""
    return enlarge(picture, box, picture.shape[0] * 7 // 8, picture.shape[1] * 2 // 3)


@jax.jit
def _boxed_pictures(pictures: Array, boxes: Array) -> Array:
    boxed = jax.vmap(_enlarged)(pictures.astype(jnp.float32), boxes)
    return jnp.clip(jnp.round(boxed), 0, 255).astype(jnp.uint8)


def _boxed(video: Frames, boxes: Int[np.ndarray, "frames 4"]) -> UInt8[np.ndarray, "frames _ _ 3"]:
    return np.asarray(_boxed_pictures(video, boxes))


def _around(boxes: Int[np.ndarray, "frames 4"]) -> Int[np.ndarray, " 4"]:
    """One box for a whole video: a box that moves with the person would hide the motion."""
    return np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])


def _mean(values: np.ndarray) -> float:
    """Without the frames that have no value; NaN if none has."""
    values = np.asarray(values, np.float64)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else np.nan
