"""The notebook API: one picture and a driving motion in, an animation out. Every stage can be called by itself."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from tqdm import tqdm

from animate_jax.config import Preset, SamplingConfig
from animate_jax.diffusion.sampling import evaluations, initial_noise, sample
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.errors import UserError
from animate_jax.models import params as P
from animate_jax.models.unet import Conditioning
from animate_jax.pose.align import portrait
from animate_jax.pose.detect import Detector, detect, require_person
from animate_jax.pose.draw import draw
from animate_jax.pose.files import read_poses
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.retarget import Alignment, bring
from animate_jax.pose.smooth import smooth
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.files import frame_rate, read_image, read_video, write_image, write_video
from animate_jax.video.preprocess import clip_pixels
from animate_jax.weights import checkpoint

BUNDLED = pathlib.Path(__file__).parent / "assets" / "tiny"
EXAMPLE = pathlib.Path(__file__).parent / "assets" / "example"  # reference.png and driving.mp4
KEYPOINT_FILES = (".json", ".npz", ".npy")
DECODE_CHUNK = 8  # frames decoded at once

Picture = UInt8[np.ndarray, "_ _ 3"]  # a reference and its cut differ in size
Pictures = UInt8[np.ndarray, "frames height width 3"]


@dataclasses.dataclass(frozen=True)
class Motion:
    """A driving motion: keypoints of somebody else's picture, or ready-made pose pictures."""

    fps: float
    keypoints: Keypoints | None = None
    canvas: tuple[int, int] = (1, 1)  # height, width of the pictures the keypoints come from
    pictures: Pictures | None = None

    def __len__(self) -> int:
        return len(self.pictures if self.keypoints is None else self.keypoints)


@dataclasses.dataclass(frozen=True)
class Animation:
    """The result, with what it was made from at the same size."""

    frames: Pictures
    fps: float
    reference: Picture
    poses: Pictures

    def save(self, path: str | pathlib.Path) -> None:
        """Writes an .mp4 or a .gif."""
        write_video(path, self.frames, self.fps)

    def contact_sheet(self, columns: int = 8, zoom: int = 1) -> Picture:
        """Reference, driving poses and results of evenly spaced frames, enlarged `zoom` times."""
        enlarge = lambda picture: picture.repeat(zoom, 0).repeat(zoom, 1)  # noqa: E731
        chosen = np.unique(np.linspace(0, len(self.frames) - 1, columns).round().astype(int))
        empty = np.full_like(self.reference, 255)
        top = [self.reference, *(self.poses[i] for i in chosen)]
        bottom = [empty, *(self.frames[i] for i in chosen)]
        labels = ["reference", *(f"{i / self.fps:.1f} s" for i in chosen)]
        return contact_sheet([[enlarge(p) for p in row] for row in (top, bottom)], labels)

    def save_contact_sheet(self, path: str | pathlib.Path, columns: int = 8) -> None:
        zoom = max(1, 192 // self.reference.shape[0])
        write_image(path, self.contact_sheet(columns, zoom))


class Pipeline:
    """A loaded model.

    Attributes:
        preset: every numerical choice; `preset.sampling` holds the defaults of `__call__`.
        params: the model's parameters, see `animate_jax.models.params`.
    """

    def __init__(self, params: P.Params, preset: Preset):
        self.params, self.preset = params, preset
        self.schedule = make_schedule(preset.schedule)
        graphdef, _ = P.abstract(preset.model)

        def compiled(function: Callable) -> Callable:
            # Parameters are arguments: constants would be compiled in, and other weights compile nothing anew.
            return jax.jit(lambda params, *inputs: function(P.merge(graphdef, params), *inputs))

        self._encode = compiled(lambda model, pictures: model.vae.to_latents(pictures))
        self._decode = compiled(lambda model, latents: jnp.clip(model.vae.to_images(latents) / 2 + 0.5, 0, 1))
        self._condition = compiled(lambda model, *inputs: model.condition(*inputs))
        self._guide_pose = compiled(lambda model, poses: model.pose_guider(poses))
        self._denoise = compiled(lambda model, *inputs: model.denoise(*inputs))

    @classmethod
    def load(cls, path: str | pathlib.Path = "tiny", preset: Preset | None = None) -> Pipeline:
        """Reads a checkpoint: "tiny" (ships with the package), a checkpoint's directory or a training run's.

        Raises:
            UserError: there is none, it is damaged, or it does not fit the preset.
        """
        return cls(*checkpoint.load(BUNDLED if path == "tiny" else path, preset))

    def __call__(
        self,
        reference: str | pathlib.Path | Picture,
        driving: str | pathlib.Path | Motion,
        *,
        frames: int | None = None,
        fps: Real | None = None,
        seed: int = 0,
        progress: bool = True,
        align: Alignment = "bones",
        person: str = "largest",
        detector: Detector | None = None,
        canvas: tuple[int, int] | None = None,
        **overrides: Any,
    ) -> Animation:
        """Animates the person of `reference` with the motion of `driving`.

        Args:
            reference: a picture file or uint8 RGB [H, W, 3], showing one person; cut to the result's proportions.
            driving: a video of a person, a keypoints file, a video of drawn poses, or a `Motion`.
            frames: at most that many frames.
            fps: of the result; default: the rate the weights were trained for, else the driving video's.
            seed: the same seed gives the same video.
            align: how the driving keypoints are fitted to the reference's body, see `pose.retarget.bring`.
            person: of several in the driving video: "largest", "center", or a number from the left, from 1.
            detector: finds keypoints: `pose.dwpose.DWPose(folder)`, or by default `pose.detect.detect`.
            canvas: height, width of the pictures behind a keypoints file that does not tell them.
            overrides: fields of `SamplingConfig`: width, height, steps, guidance, window, overlap, ...

        Raises:
            UserError: anything wrong with the input, in one line.
        """
        options = self.options(**overrides)
        picture, keypoints = self.frame_reference(reference, options, detector)
        motion = driving
        if not isinstance(driving, Motion):
            motion = self.read_motion(driving, frames, fps, progress, person, detector, canvas)
        poses = self.draw_motion(motion, keypoints, options, align)[:frames]
        own_pose = draw(keypoints, options.height, options.width, options.pose_style)
        latents = self.sample(self.condition(picture, own_pose, options), poses, options, seed, progress)
        return Animation(self.decode(latents), motion.fps, picture, poses)

    def options(self, **overrides: Any) -> SamplingConfig:
        """The preset's sampling defaults with some replaced (None keeps a default).

        Raises:
            UserError: an impossible size, window or number of steps.
        """
        options = dataclasses.replace(
            self.preset.sampling, **{name: value for name, value in overrides.items() if value is not None}
        )
        model, multiple = self.preset.model, self.preset.model.vae.downscale
        for name, size in (("width", options.width), ("height", options.height)):
            if size % multiple or not 32 <= size <= 4096:
                raise UserError(f"--{name} {size}: must be a multiple of {multiple} between 32 and 4096")
        if not 1 <= options.window <= model.unet.motion_max_length:
            raise UserError(f"--window {options.window}: this model takes 1 to {model.unet.motion_max_length} frames")
        if not 1 <= options.steps <= self.preset.schedule.train_steps:
            raise UserError(f"--steps {options.steps}: must be 1 to {self.preset.schedule.train_steps}")
        return options

    def read_motion(self, path: str | pathlib.Path, frames: int | None = None, fps: Real | None = None,
                    progress: bool = True, person: str = "largest", detector: Detector | None = None,
                    canvas: tuple[int, int] | None = None) -> Motion:  # fmt: skip
        """Reads a keypoints file (.json, .npz, .npy, a folder of them), a video of a person or of drawn poses.

        Raises:
            UserError: missing or damaged, or nobody is in the video.
        """
        path = pathlib.Path(path)
        fps = fps or self.preset.sampling.fps
        if path.is_dir() or path.suffix.lower() in KEYPOINT_FILES:
            keypoints, canvas = read_poses(path, canvas)
            return Motion(float(fps or 30.0), keypoints[:frames], canvas)
        pictures, rate = read_video(path, frames=frames, fps=None if fps is None else min(fps, frame_rate(path)))
        if is_drawn(pictures):
            return Motion(rate, pictures=pictures)
        with tqdm(total=len(pictures), desc="poses", unit="frame", dynamic_ncols=True, disable=not progress) as bar:
            keypoints = (detector or detect)(pictures, lambda done: bar.update(), person)
        require_person(keypoints, path)
        return Motion(rate, smooth(keypoints, pictures.shape[1:3], rate), pictures.shape[1:3])

    def frame_reference(self, reference: str | pathlib.Path | Picture, options: SamplingConfig,
                        detector: Detector | None = None) -> tuple[Picture, Keypoints]:  # fmt: skip
        """Cuts the reference around its person to the result's size; returns the cut and the person's keypoints.

        Raises:
            UserError: unreadable, or nobody in it.
        """
        name = "the reference picture" if isinstance(reference, np.ndarray) else str(reference)
        picture = reference if isinstance(reference, np.ndarray) else read_image(reference)
        found = (detector or detect)(picture[None])
        require_person(found, name)
        height, width = picture.shape[:2]
        box = portrait(found[0], (height, width), options.width / options.height)
        left, top, right, bottom = box
        margin = int(max(-left, -top, right - width, bottom - height, 0)) + 1
        padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        cut = Image.fromarray(padded).resize(
            (options.width, options.height), Image.Resampling.LANCZOS, tuple(side + margin for side in box)
        )
        scale = width / (right - left), height / (bottom - top)
        keypoints = found[0].moved(scale, (-left / (right - left), -top / (bottom - top)))
        return np.asarray(cut), keypoints

    def draw_motion(self, motion: Motion, reference: Keypoints, options: SamplingConfig, align: Alignment = "bones"
                    ) -> Pictures:  # fmt: skip
        """The pose pictures that drive the result: keypoints are fitted to the reference's body and drawn."""
        size = (options.height, options.width)
        if motion.keypoints is None:
            pictures = [Image.fromarray(p).resize(size[::-1], Image.Resampling.LANCZOS) for p in motion.pictures]
            return np.stack([np.asarray(p) for p in pictures])
        keypoints = bring(motion.keypoints, motion.canvas, reference, size, align)
        return draw(keypoints, *size, options.pose_style)

    def condition(self, picture: Picture, own_pose: Picture, options: SamplingConfig) -> Conditioning:
        """What the model keeps of the character, once per video."""
        clip = clip_pixels(picture, self.preset.model.image_encoder.image_size, options.clip_resize)
        latents = self.encode(picture[None])[:, 0]
        return self._condition(self.params, latents, jnp.asarray(clip)[None], unit(own_pose[None]))

    def sample(self, conditioning: Conditioning, poses: Pictures, options: SamplingConfig, seed: int = 0,
               progress: bool = True) -> Float[Array, "1 f h w c"]:  # fmt: skip
        """Denoises the latents of the whole video, window by window."""
        scale = self.preset.model.vae.downscale
        shape = (
            1,
            len(poses),
            options.height // scale,
            options.width // scale,
            self.preset.model.unet.in_channels,
        )
        key = jax.random.key(seed)
        noise = initial_noise(key, shape, options.shared_noise)
        features = jnp.concatenate([self._guide_pose(self.params, unit(pose[None, None])) for pose in poses], 1)
        total = evaluations(len(poses), self.schedule, options)
        with tqdm(total=total, desc="denoising", unit="step", dynamic_ncols=True, disable=not progress) as bar:

            def denoise(x: Array, t: Array, frames: Array) -> Array:
                result = self._denoise(self.params, x, t, conditioning, features[:, frames])
                if progress:
                    result.block_until_ready()
                return result

            return sample(denoise, noise, self.schedule, options, bar.update, jax.random.fold_in(key, 1))

    def encode(self, pictures: Pictures) -> Float[Array, "1 f h w c"]:
        """uint8 frames -> the autoencoder's scaled latents."""
        return self._encode(self.params, signed(pictures))[None]

    def decode(self, latents: Float[Array, "1 f h w c"]) -> Pictures:
        """Latents -> uint8 frames, a few at a time."""
        frames = latents.shape[1]
        padding = -frames % DECODE_CHUNK
        padded = jnp.concatenate([latents[0], jnp.repeat(latents[0, -1:], padding, 0)])
        chunks = padded.reshape(-1, DECODE_CHUNK, *latents.shape[2:])
        images = np.concatenate([np.asarray(self._decode(self.params, chunk)) for chunk in chunks])
        return (images[:frames] * 255 + 0.5).astype(np.uint8)


def signed(pictures: Pictures) -> Float[Array, "frames height width 3"]:
    """uint8 -> [-1, 1]."""
    return jnp.asarray(pictures, jnp.float32) / 127.5 - 1


def unit(pictures: UInt8[np.ndarray, "*frames height width 3"]) -> Float[Array, "*frames height width 3"]:
    """uint8 -> [0, 1]."""
    return jnp.asarray(pictures, jnp.float32) / 255


def is_drawn(pictures: Pictures) -> bool:
    """Whether a video shows drawn poses: thin saturated lines on black. Filmed black is never this even."""
    shown = pictures[:: max(len(pictures) // 8, 1)]
    brightest = shown.max(-1)
    black = brightest < 24
    colours = shown[brightest > 64].astype(int)
    return bool(black.mean() > 0.75 and len(colours) and np.median(colours.max(-1) - colours.min(-1)) > 60)
