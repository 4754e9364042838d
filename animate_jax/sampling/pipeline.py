"""The notebook API: one picture and a driving motion in, an animation out. Every stage can be called by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import operator
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from tqdm import tqdm

from animate_jax.checkpoints import checkpoint, hub
from animate_jax.config import AnimationConfig, DType, Preset, Speed, problem
from animate_jax.diffusion.noise import initial_noise
from animate_jax.diffusion.schedule import make_schedule
from animate_jax.diffusion.windowed import Latents, evaluations, sample
from animate_jax.errors import UserError
from animate_jax.images import Image, Images, resize_lanczos, to_signed, to_uint8, to_unit
from animate_jax.models.guidance_pairs import is_paired, pair, unpair
from animate_jax.models.kernels.int8 import in_int8
from animate_jax.models.params import Params, abstract_model, merge_model
from animate_jax.models.sharding import ROWS
from animate_jax.models.unet import Conditioning
from animate_jax.parallel.mesh import AXES
from animate_jax.parallel.rules import shardings
from animate_jax.pose.align import portrait
from animate_jax.pose.detect import Detector, detect, require_person, segment
from animate_jax.pose.draw import Drawn, draw
from animate_jax.pose.files import read_poses
from animate_jax.pose.inspect import shows_drawn_poses, warn, warn_of_fit, warn_of_gaps
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.retarget import Alignment, bring
from animate_jax.pose.smooth import smooth
from animate_jax.pose.track import check_person
from animate_jax.pose.warp import Warped, warp
from animate_jax.presets import speeds
from animate_jax.sampling.results import Animation, Motion, Stream
from animate_jax.video.clip_image import clip_pixels
from animate_jax.video.files import check_rate, frame_count, frame_rate, iter_frames, read_image

BUNDLED = pathlib.Path(__file__).parents[1] / "assets" / "tiny"
EXAMPLE = pathlib.Path(__file__).parents[1] / "assets" / "example"  # reference.png and driving.mp4
KEYPOINT_FILES = (".json", ".npz", ".npy")
DECODE_CHUNK = 8  # frames decoded at once
# Pose and deep features of so many windows stay on the device. Of longer videos the former are made when needed, the
# latter wait in host memory.
KEPT_WINDOWS = 4
SEEDS = 2**32  # JAX takes a seed modulo this
ADDED = 1  # tells a video's key of the noise added on the way from that of the noise it starts from

One, Many = TypeVar("One"), list | tuple
Poses = Images | Drawn
DrivingKind = Literal["video", "poses"]  # of a video: of a person, or of drawn poses
# watch(done, preview), after every evaluation: the share of the work done, and a function that decodes what the model
# makes of a frame so far. What it raises ends the work.
Watch = Callable[[float, Callable[[], Image]], None]

log = logging.getLogger(__name__)


class Pipeline:
    """A loaded model.

    Attributes:
        preset: every numerical choice; `preset.animation` holds the defaults of `__call__`.
        params: the model's parameters, see `animate_jax.models.params`; in bfloat16 everything is computed in it.
        mesh: devices that share the work (`parallel.mesh`): windows over `data` and `fsdp`, the frames of each over
            `frames`, weights over `fsdp`.
    """

    def __init__(self, params: Params, preset: Preset, mesh: Mesh | None = None):
        self.params, self.preset, self.mesh = params, preset, mesh
        self.dtype = next(iter(params.values())).dtype
        self.rows = mesh.shape["data"] * mesh.shape["fsdp"] if mesh else 1  # windows, one for each group of devices
        self.schedule = make_schedule(preset.schedule)
        self.copies = preset.model.unet.appearance != "none"  # sees the warped reference
        graphdef, _ = abstract_model(preset.model)

        def compiled(function: Callable) -> Callable:
            # Parameters are arguments: constants would be compiled in, and other weights compile nothing anew.
            def run(params, *inputs, int8=False):
                model = merge_model(graphdef, params)
                if int8:
                    model.denoising_unet = in_int8(model.denoising_unet)
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else contextlib.nullcontext():
                    return function(model, *inputs)

            return jax.jit(run, static_argnames="int8")

        self._encode = compiled(lambda model, pictures: model.vae.to_latents(pictures))
        self._decode = compiled(lambda model, latents: to_uint8(model.vae.to_images(latents)))
        self._condition = compiled(lambda model, *inputs: model.condition(*inputs))
        self._blend = compiled(
            lambda model, latents, *warped: to_uint8(model.appearance_blend(model.vae.to_images(latents), *warped))
        )
        self._guide_pose = compiled(lambda model, *inputs: model.guide(*inputs))
        self._denoise = compiled(lambda model, *inputs: model.denoise(*inputs))
        self._denoise_keeping = compiled(lambda model, *inputs: model.denoise_keeping(*inputs))

    @classmethod
    def load(cls, path: str | pathlib.Path = "tiny", preset: Preset | None = None, mesh: Mesh | None = None,
             dtype: DType = "float32") -> Pipeline:  # fmt: skip
        """Reads a checkpoint: "tiny" (ships with the package), a checkpoint's directory or a training run's; onto the
        devices of `mesh`, with weights of `dtype`.

        Raises:
            UserError: there is none, it is damaged, or it does not fit the preset.
        """
        path = checkpoint.find(BUNDLED if path == "tiny" else path)
        preset = preset or checkpoint.read_preset(path)
        places = mesh and shardings(abstract_model(preset.model)[1], mesh)
        return cls(*checkpoint.load(path, preset, dtype, places), mesh)

    @classmethod
    def from_pretrained(cls, name: str | pathlib.Path = "tiny", preset: Preset | None = None) -> Pipeline:
        """As `load`; "owner/repository" that is no folder here is fetched from the Hugging Face hub.

        Raises:
            UserError: there is none, it is damaged, or it does not fit the preset.
        """
        remote = not pathlib.Path(name).exists() and hub.NAME.fullmatch(str(name))
        return cls.load(hub.fetch(str(name)) if remote else name, preset)

    def push_to_hub(self, name: str, private: bool = True) -> str:
        """Uploads the checkpoint to the Hugging Face hub as "owner/repository"; returns its address.

        Raises:
            UserError: the hub does not take it.
        """
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(pathlib.Path(folder) / "checkpoint", self.params, self.preset)
            return hub.push(pathlib.Path(folder) / "checkpoint", name, private)

    def __call__(self, reference, driving, **options: Any) -> Animation | list[Animation]:
        """Animates the person of `reference` with the motion of `driving`; arguments and errors as `stream`."""
        found = self.stream(reference, driving, **options)
        return [one.animation() for one in found] if isinstance(found, list) else found.animation()

    def stream(
        self,
        reference: str | pathlib.Path | Image | Many,
        driving: str | pathlib.Path | Motion | Many,
        *,
        frames: int | None = None,
        fps: Real | None = None,
        seed: int = 0,
        progress: bool = True,
        align: Alignment = "bones",
        person: str = "largest",
        detector: Detector | None = None,
        canvas: tuple[int, int] | None = None,
        driving_kind: DrivingKind | None = None,
        watch: Watch | None = None,
        **overrides: Any,
    ) -> Stream | list[Stream]:
        """Animates the person of `reference` with the motion of `driving`; the frames are decoded as they are taken.

        Lists of references, of motions, or of both give a list with every pair, reference by reference. Motions of
        equal length are denoised as one batch, which takes that many times the memory.

        Args:
            reference: a picture file or uint8 RGB [H, W, 3], showing one person; cut to the result's proportions.
            driving: a video of a person, a keypoints file, a video of drawn poses, or a `Motion`.
            frames: at most that many frames.
            fps: of the result; default: the rate the weights were trained for, else the driving video's.
            seed: 0 to 2**32 - 1; the same seed gives the same video, alone or in a list.
            align: how the driving keypoints are fitted to the reference's body, see `pose.retarget.bring`.
            person: of several in the driving video: "largest", "center", or a number from the left, from 1.
            detector: finds keypoints: `pose.dwpose.DWPose(folder)`, or by default `pose.detect.detect`.
            canvas: height, width of the pictures behind a keypoints file that does not tell them.
            driving_kind: what videos show: a person ("video") or drawn poses; None looks.
            watch: sees the denoising, see `Watch`.
            overrides: `speed` ("exact", "fast", "fastest"), and fields of `AnimationConfig`: width, height, steps,
                guidance, window, overlap, ...

        Raises:
            UserError: anything wrong with the input, in one line.
        """
        check_request(fps, seed, person)
        options = self.options(**overrides)
        cuts = [self.frame_reference(one, options, detector) for one in several(reference)]
        size = options.height, options.width
        motions = [
            one[:frames] if isinstance(one, Motion)
            else self.read_motion(one, frames, fps, progress, person, detector, canvas, size, driving_kind)
            for one in several(driving)
        ]  # fmt: skip
        conditions = [self.condition(cut, draw(own, *size, options.pose_style), options) for cut, own in cuts]
        pairs = list(itertools.product(zip(cuts, conditions, strict=True), motions))
        poses = [self.draw_motion(motion, own, options, align) for ((_, own), _), motion in pairs]
        warped = [self.warp(cut, own, motion) for (((cut, own), _), _), motion in zip(pairs, poses, strict=True)]
        latents: dict[int, Latents] = {}
        for length in sorted({len(one) for one in poses}):
            rows = [row for row, one in enumerate(poses) if len(one) == length]
            conditioning = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(pairs[row][0][1] for row in rows))
            batch = self.sample(conditioning, [poses[row] for row in rows], options, seed, progress, watch,
                                [warped[row] for row in rows])  # fmt: skip
            latents |= dict(zip(rows, batch, strict=True))
        streams = [
            Stream(self.decode_chunks(latents[row], warped[row]), motion.fps, cut, own, motion, poses[row])
            for row, (((cut, own), _), motion) in enumerate(pairs)
        ]
        return streams if isinstance(reference, Many) or isinstance(driving, Many) else streams[0]

    def options(self, speed: Speed = "exact", **overrides: Any) -> AnimationConfig:
        """The preset's defaults with some replaced (None keeps a default), after those that `speed` replaces.

        Raises:
            UserError: an impossible size, window, guidance or number of steps.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        options = dataclasses.replace(self.preset.animation, **speeds(self.preset.sampling)[speed] | given)
        model, multiple = self.preset.model, self.preset.model.vae.downscale
        for name, size in (("width", options.width), ("height", options.height)):
            if size % multiple or not 32 <= size <= 4096:
                raise UserError(f"--{name} {size}: must be a multiple of {multiple} between 32 and 4096")
        if not 1 <= options.window <= model.unet.motion_max_length:
            raise UserError(f"--window {options.window}: this model takes 1 to {model.unet.motion_max_length} frames")
        if not 1 <= options.steps <= self.preset.schedule.train_steps:
            raise UserError(f"--steps {options.steps}: must be 1 to {self.preset.schedule.train_steps}")
        if found := problem(options):
            raise UserError(f"--{found[0].replace('_', '-')} {found[1]}: must be {found[2]}")
        return options

    def read_motion(self, path: str | pathlib.Path, frames: int | None = None, fps: Real | None = None,
                    progress: bool = True, person: str = "largest", detector: Detector | None = None,
                    canvas: tuple[int, int] | None = None, size: tuple[int, int] | None = None,
                    driving_kind: DrivingKind | None = None) -> Motion:  # fmt: skip
        """Reads a keypoints file (.json, .npz, .npy, a folder of them), a video of a person or of drawn poses.

        Of a video, its beginning is looked at, then it is read once, frame by frame. `size` (height, width) is what
        drawn poses are resized to; None keeps theirs. Warns (`InputWarning`) of what will look odd.

        Raises:
            UserError: missing or damaged, or nobody is in it.
        """
        check_request(fps, 0, person)
        path = pathlib.Path(path)
        fps = fps or self.preset.frames.fps
        if path.is_dir() or path.suffix.lower() in KEYPOINT_FILES:
            keypoints, canvas = read_poses(path, canvas)
            keypoints = keypoints[:frames]
            require_person(keypoints, path)
            if person != "largest":
                warn(f"{path}: keypoints of one person: --person {person} has no effect")
            warn_of_gaps(path, keypoints)
            return Motion(float(fps or 30.0), keypoints, canvas)
        rate = min(fps or math.inf, frame_rate(path))
        if driving_kind is None:
            with contextlib.closing(iter_frames(path, frames=frames, fps=rate)) as pictures:
                driving_kind = "poses" if shows_drawn_poses(pictures) else "video"
        pictures = iter_frames(path, frames=frames, fps=rate)
        if driving_kind == "poses":
            motion = Motion(rate, pictures=np.stack([resize_lanczos(p, size or p.shape[:2]) for p in pictures]))
        else:
            first = next(pictures)
            total = min(frames or math.inf, frame_count(path, rate))
            with tqdm(total=total, desc="poses", unit="frame", dynamic_ncols=True, disable=not progress) as bar:
                pictures = itertools.chain([first], pictures)
                keypoints = (detector or detect)(pictures, lambda done: bar.update(), person)
            require_person(keypoints, path)
            warn_of_gaps(path, keypoints)
            motion = Motion(rate, smooth(keypoints, first.shape[:2], rate), first.shape[:2])
        log.info("%s: %s", path, "drawn poses" if driving_kind == "poses" else "a video of a person")
        return motion

    def frame_reference(self, reference: str | pathlib.Path | Image, options: AnimationConfig,
                        detector: Detector | None = None) -> tuple[Image, Keypoints]:  # fmt: skip
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
        cut = resize_lanczos(padded, (options.height, options.width), tuple(side + margin for side in box))
        scale = width / (right - left), height / (bottom - top)
        keypoints = found[0].moved(scale, (-left / (right - left), -top / (bottom - top)))
        return cut, keypoints

    def draw_motion(self, motion: Motion, reference: Keypoints, options: AnimationConfig, align: Alignment = "bones"
                    ) -> Images | Drawn:  # fmt: skip
        """The pose pictures that drive the result: keypoints are fitted to the reference's body, and drawn when they
        are needed."""
        size = (options.height, options.width)
        if motion.keypoints is None:
            return resize_lanczos(motion.pictures, size)
        fitted = bring(motion.keypoints, motion.canvas, reference, size, align)
        warn_of_fit(fitted, options.pose_style)
        return Drawn(fitted, *size, options.pose_style)

    def warp(self, picture: Image, own: Keypoints, poses: Poses) -> Warped | None:
        """The reference warped into every frame, for models with `appearance`; None for others.

        Args:
            picture, own: as `frame_reference` cuts it.
            poses: from `draw_motion`; ready-made pose pictures do not tell where joints are: their frames show the
                reference's background alone.
        """
        if not self.copies:
            return None
        driven = poses.keypoints if isinstance(poses, Drawn) else Keypoints.missing(len(poses))
        return warp(picture, segment(picture, own), own, driven)

    def condition(self, picture: Image, own_pose: Image, options: AnimationConfig) -> Conditioning:
        """What the model keeps of the character, once per video: keys, values and CLIP's share per block.

        Args:
            picture: uint8 RGB [height, width, 3] of the result's size, as `frame_reference` cuts it.
            own_pose: the drawn skeleton of the picture's person, of the same size; read by models that show it to
                ReferenceNet, as the bundled one.
        """
        clip = clip_pixels(picture, self.preset.model.image_encoder.image_size, options.clip_resize)
        inputs = self.encode(picture[None])[:, 0], jnp.asarray(clip)[None], to_unit(own_pose[None])
        return self._condition(self.params, *narrowed(inputs, self.dtype))

    def sample(self, conditioning: Conditioning, poses: Poses | list[Poses], options: AnimationConfig, seed: int = 0,
               progress: bool = True, watch: Watch | None = None, warped: Warped | list[Warped | None] | None = None
               ) -> Latents:  # fmt: skip
        """Denoises the latents of whole videos, window by window; they lie in host memory.

        Args:
            conditioning: from `condition`; of several characters, joined along the first axis.
            poses: uint8 pictures [frames, height, width, 3] or `Drawn` keypoints; of several characters a list, one
                for each row of `conditioning`, all of one length.
            seed: noise depends on it and on a frame's number alone.
            warped: from `warp`, one for each of `poses`; only models with `appearance` use it.

        Returns:
            float32 [rows, frames, height / d, width / d, channels] in the scale that `decode` takes; d is
            `VAEConfig.downscale`.
        """
        videos = poses if isinstance(poses, list) else [poses]
        references = warped if isinstance(warped, list) else [warped] * len(videos)
        if not self.copies:
            references = [None] * len(videos)
        behind = [reference and self.encode(reference.background[None])[0] for reference in references]
        scale, frames = self.preset.model.vae.downscale, len(videos[0])
        shape = options.height // scale, options.width // scale, self.preset.model.unet.in_channels
        key = jax.random.key(seed)
        keys = jnp.repeat(key[None], len(videos))  # a video is the same in every company
        noise = initial_noise(keys, (len(videos), frames, *shape), options.shared_noise)
        together = self.rows // math.gcd(self.rows, len(videos))
        if self.mesh:
            conditioning = self.over_rows(jax.tree.map(lambda each: jnp.repeat(each, together, 0), conditioning))

        @functools.lru_cache(KEPT_WINDOWS)
        def features(window: tuple[int, ...]) -> Array:
            which, rows = np.array(window), []
            for video, reference, background in zip(videos, references, behind, strict=True):
                row = [to_unit(video[which])[:, None]]
                if reference:
                    pictures, masks = reference[which]
                    latents = [self.encode(picture[None])[0] for picture in pictures]
                    row += [latents, [background] * len(which), to_unit(masks)[:, None]]
                rows.append(zip(*row, strict=True))
            guided = [
                self._guide_pose(
                    self.params, *(narrowed(jnp.stack(part), self.dtype) for part in zip(*frame, strict=True))
                )
                for frame in zip(*rows, strict=True)
            ]
            return jnp.concatenate(guided, 1)

        def denoise(x: Latents, t: np.ndarray, window: np.ndarray) -> Array:
            pose, *more = [features(tuple(frames)) for frames in window.tolist()]
            if more:
                pose = jnp.stack([pose, *more], 1).reshape(-1, *pose.shape[1:])  # [videos * windows, frames, h, w, c]
            if is_paired(x, pose) and len(pose) > 1:  # a single row serves both halves of guidance as it is
                pose = pair(pose, pose)
            prediction = evaluate(*self.over_rows((x, t)), window, self.over_rows(pose))
            if watch:
                shown = prediction[-1:, :1], x[-1:, :1], t[-1:].astype(int)
                reference = references[-1] and references[-1].of(window[-1, :1])
                watch(next(done) / total, lambda: self.decode(self.schedule.to_x0_epsilon(*shown)[0], reference)[0])
            return prediction

        evaluate = self.evaluator(conditioning, options)
        total, done = evaluations(frames, self.schedule, options, together), itertools.count(1)
        with tqdm(total=total, desc="denoising", unit="step", dynamic_ncols=True, disable=not progress) as bar:
            added = jax.vmap(jax.random.fold_in, (0, None))(keys, ADDED)
            return sample(denoise, noise, self.schedule, options, bar.update, added, together)

    def evaluator(self, conditioning: Conditioning, options: AnimationConfig) -> Callable[..., Array]:
        """The denoising UNet as `evaluate(x, t, window, pose)`, with the approximations that `options` asks for."""
        params = self.params
        int8 = {"int8": True} if options.dtype == "int8" else {}
        dtype = self.dtype if int8 or self.dtype != jnp.float32 else jnp.dtype(options.dtype)
        if dtype != self.dtype:
            params = {
                path: leaf.astype(dtype) if path.startswith("denoising_unet") else leaf for path, leaf in params.items()
            }
        conditioning = narrowed(conditioning, dtype)
        # By window: deep features, and how often they were used; and the windows whose features stay on the device.
        deep: dict[tuple[int, ...], tuple[Array | np.ndarray | None, int]] = {}
        near: set[tuple[int, ...]] = set()

        def evaluate(x: Latents | Array, t: np.ndarray | Array, window: np.ndarray, pose: Array) -> Array:
            x, pose = narrowed((x, pose), dtype)
            if options.reuse == 1:
                return self._denoise(params, x, t, conditioning, pose, **int8).astype(jnp.float32)
            key = tuple(window.ravel().tolist())
            kept, used = deep.pop(key, (None, options.reuse))
            if used < options.reuse:  # of both halves, the conditional one comes last, where guidance has ended
                shared = self.over_rows(jnp.asarray(unpair(kept)[1] if is_paired(kept, x) else kept))
                prediction, _ = self._denoise_keeping(params, x, t, conditioning, pose, shared, **int8)
            else:
                used = 0
                prediction, kept = self._denoise_keeping(params, x, t, conditioning, pose, **int8)
                if key in near or len(near) < KEPT_WINDOWS:
                    near.add(key)
                else:
                    kept = np.array(kept)  # a copy, also where host and device are one
            if used + 1 < options.reuse:
                deep[key] = kept, used + 1
            return prediction.astype(jnp.float32)

        return evaluate

    def encode(self, pictures: Images) -> Float[Array, "1 f h w c"]:
        """uint8 frames [f, height, width, 3] -> the autoencoder's scaled latents, `vae.downscale` pixels a position."""
        return self._encode(self.params, narrowed(to_signed(pictures), self.dtype))[None]

    def decode(self, latents: Float[Array | np.ndarray, "1 f h w c"], warped: Warped | None = None) -> Images:
        """Latents of one video -> uint8 frames [f, height, width, 3]; `warped` as in `decode_chunks`."""
        return np.concatenate(list(self.decode_chunks(np.asarray(latents[0]), warped)))

    def decode_chunks(self, latents: Float[np.ndarray, "f h w c"], warped: Warped | None = None) -> Iterator[Images]:
        """Latents -> uint8 frames, a few at a time; of models with `appearance`, blended with the warped reference of
        as many frames."""
        together = math.lcm(DECODE_CHUNK, self.mesh.size if self.mesh else 1)
        for start in range(0, len(latents), together):
            chunk = latents[start : start + together]
            inputs = [chunk]
            if warped and self.copies:
                pictures, masks = warped[start : start + together]
                background = np.broadcast_to(warped.background, pictures.shape)
                inputs += [to_signed(pictures), to_signed(background), to_unit(masks)]
            padded = [np.concatenate([part, np.repeat(part[-1:], together - len(part), 0)]) for part in inputs]
            padded = self.over_rows(narrowed(padded, self.dtype), AXES)
            yield np.asarray((self._decode if len(inputs) == 1 else self._blend)(self.params, *padded))[: len(chunk)]

    def over_rows(self, tree: Any, axes: tuple[str, ...] = ROWS) -> Any:
        """Divides the first axis of arrays over the devices."""
        if self.mesh is None:
            return tree
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec(axes)))


def several(inputs: One | list[One] | tuple[One, ...]) -> list[One]:
    return list(inputs) if isinstance(inputs, Many) else [inputs]


def narrowed(tree: Any, dtype: DTypeLike) -> Any:
    """Floating arrays as `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def check_request(fps: Real | None, seed: int, person: str) -> None:
    """
    Raises:
        UserError: no rate for a video, no seed, or no choice of a person.
    """
    if fps is not None:
        check_rate(fps, "--fps")
    if not 0 <= operator.index(seed) < SEEDS:
        raise UserError(f"--seed {seed}: must be a whole number from 0 to {SEEDS - 1}")
    check_person(person)
