"""The Python API: an image and a driving motion in, an animation out. Every stage can be called by itself."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple, cast, get_args, get_type_hints, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from animate_jax.checkpoints import checkpoint, hub
from animate_jax.config import AnimationConfig, Compose, Preset, Speed
from animate_jax.diffusion.sampling_loop import Latents
from animate_jax.errors import UserError, as_arguments
from animate_jax.images import Image, Images
from animate_jax.models.conditioning import Conditioning
from animate_jax.models.lora import product
from animate_jax.models.shapes import parameter_shapes
from animate_jax.parallel.rules import shardings
from animate_jax.pose.align import AlignMethod
from animate_jax.pose.detect import Detector
from animate_jax.pose.draw import LazyPoseImages, draw
from animate_jax.pose.inspect import warn_of_missing_legs
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.warp import LazyWarpedImages
from animate_jax.presets import composes, find_preset, speeds
from animate_jax.progress import Progress
from animate_jax.sampling.arguments import as_list, dtype_name, find_device, motions_of, plain, unexpected
from animate_jax.sampling.backgrounds import Backdrop, backdrop, paint, place
from animate_jax.sampling.compose import Composition, Scene, read_scene
from animate_jax.sampling.deflicker import deflicker
from animate_jax.sampling.denoiser import DECODE_BATCH, Denoiser, StepCallback, device_memory, held_on_host
from animate_jax.sampling.inputs import (
    DrivingKind,
    DrivingMotion,
    Number,
    Poses,
    check_request,
    crop_reference,
    draw_motion,
    drawn_parts,
    fit_motion,
    kind_of,
    read_motion,
    warp_reference,
)
from animate_jax.sampling.results import Animation, AnimationStream
from animate_jax.storage import is_remote, size_text
from animate_jax.torch_weights.fetching import find_checkpoint
from animate_jax.torch_weights.lora import read_lora
from animate_jax.validation import field_problem, problem

log = logging.getLogger(__name__)


class Character(NamedTuple):
    """The cropped reference, its keypoints, and the conditioning on it."""

    image: Image
    keypoints: Keypoints
    conditioning: Conditioning


class Job(NamedTuple):
    """A video to make."""

    character: Character
    motion: DrivingMotion
    poses: Poses  # the motion fitted to the character
    warped: LazyWarpedImages | None  # the reference in these poses, for models with `appearance`
    composition: Composition | None = None  # of a result at the picture's own size


class Pipeline(Denoiser):
    """A loaded model, from files to videos; `Denoiser` has the computation on the device."""

    @classmethod
    @as_arguments()
    def from_pretrained(
        cls,
        name: str | pathlib.Path = "tiny",
        preset: Preset | str | None = None,
        mesh: Mesh | None = None,
        dtype: Any = "float32",
        revision: str | None = None,
        cache_dir: str | pathlib.Path | None = None,
        **unknown: Any,
    ) -> Pipeline:
        """Reads a checkpoint onto the devices of `mesh`, with weights of `dtype`.

        On a single device of which the weights would take more than a quarter, ReferenceNet, CLIP and the encoder stay
        in host memory and are on the device only while they work, once per video.

        Args:
            name: "tiny" (ships with the package), a checkpoint's directory or a training run's, here or in a bucket,
                or, if it is no folder here, "owner/repository" on the Hugging Face hub or one of the published
                checkpoints of `animate-jax weights fetch`, "moore" for example, which is fetched.
            preset: numerical choices, or their name; default: those the checkpoint carries.
            dtype: float32 or bfloat16, of computation, too.
            revision: a branch, tag or commit of a repository on the hub.
            cache_dir: where downloads from the hub are stored.

        Raises:
            UserError: there is none, it is damaged, or it does not fit the preset.
        """
        if unknown:
            raise unexpected(next(iter(unknown)), ["name", "preset", "mesh", "dtype", "revision", "cache_dir"])
        dtype, preset = dtype_name(dtype), find_preset(preset) if isinstance(preset, str) else preset
        path = find_checkpoint(name, revision, cache_dir)
        size = 0 if is_remote(path) else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        log.info("loading %s%s", name, f" ({size_text(size)})" if size else "")
        preset = preset or checkpoint.read_preset(path)
        shapes = parameter_shapes(preset.model)
        if mesh:
            places = shardings(shapes, mesh)
        else:
            on_host = held_on_host(shapes, dtype, device_memory())
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            places = {path: None if path in on_host else here for path in shapes}
        return cls(*checkpoint.load(path, preset, dtype, places), mesh)

    def load_lora(self, path: str | pathlib.Path, scale: float = 1.0) -> None:
        """Adds a LoRA to the weights; several add up. Weights in bfloat16 are rounded again.

        Args:
            path: diffusers' or kohya's file, the directory of a LoRA's training run, or either on the hub.
            scale: how strongly, on top of the file's own alpha / rank.

        Raises:
            UserError: no LoRA, a damaged one, or one for another model.
        """
        if not math.isfinite(scale):
            raise UserError(f"{path}: scale {scale}: must be a finite number")
        changed = {}
        for layer, lora in read_lora(path, self.preset.model).items():
            kernel = self.params[f"{layer}.kernel"]
            added = product(lora.down, lora.up, scale * lora.scale).reshape(kernel.shape)
            new = (kernel + added).astype(kernel.dtype)
            on_host = isinstance(kernel, np.ndarray)
            changed[f"{layer}.kernel"] = np.asarray(new) if on_host else jax.device_put(new, kernel.sharding)
        self.params = {**self.params, **changed}

    def save_pretrained(self, path: str | pathlib.Path) -> None:
        """Writes a checkpoint folder that `from_pretrained` reads, in place of an older one.

        Raises:
            UserError: something else is there, or it cannot be written.
        """
        checkpoint.save(path, self.params, self.preset)

    @as_arguments()
    def to(self, device: Any) -> Pipeline:
        """This pipeline with its weights moved to another device; JAX begins with an accelerator if it finds one.

        Args:
            device: "cpu", "gpu" or "cuda", "tpu", with a number, as in "cuda:1", or a `jax.Device`.

        Raises:
            UserError: JAX finds no such device, or the pipeline is divided over a mesh.
        """
        if self.mesh is not None:
            raise UserError("to: this pipeline is divided over a mesh of devices: load it again without one")
        there = find_device(device) if isinstance(device, str) else device
        params = {
            path: array if isinstance(array, np.ndarray) else jax.device_put(array, there)
            for path, array in self.params.items()
        }
        Denoiser.__init__(self, params, self.preset)  # programs of that device
        return self

    def push_to_hub(self, name: str, private: bool = True) -> str:
        """Uploads the checkpoint to the Hugging Face hub as "owner/repository"; returns its address.

        Raises:
            UserError: the hub does not take it.
        """
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(pathlib.Path(folder) / "checkpoint", self.params, self.preset)
            return hub.push(pathlib.Path(folder) / "checkpoint", name, private)

    def __call__(self, reference: Any, driving: Any, **options: Any) -> Animation | list[Animation]:
        """Animates the person of `reference` with the motion of `driving`.

        Args:
            reference: as for `stream`.
            driving: as for `stream`.
            options: as for `stream`, such as `frames`, `steps`, `guidance`, `seed`, `width`, `height`.

        Returns:
            all frames in memory, which a notebook shows as a video; a list if one of the inputs is a list.

        Raises:
            UserError: anything wrong with the input, in one line.
        """
        streams = self.stream(reference, driving, **options)
        return [stream.animation() for stream in streams] if isinstance(streams, list) else streams.animation()

    @overload
    def stream(self, reference: list | tuple, driving: Any, **options: Any) -> list[AnimationStream]: ...
    @overload
    def stream(self, reference: Any, driving: list | tuple, **options: Any) -> list[AnimationStream]: ...
    @overload
    def stream(self, reference: Any, driving: Any, **options: Any) -> AnimationStream: ...
    @as_arguments()
    def stream(
        self,
        reference: Any,
        driving: Any,
        *,
        frames: int | None = None,
        fps: Number | None = None,
        seed: int = 0,
        progress: bool = True,
        align: AlignMethod | str = "bones",
        person: str | int = "largest",
        detector: Detector | None = None,
        canvas: tuple[int, int] | None = None,
        driving_kind: DrivingKind | None = None,
        callback: StepCallback | None = None,
        compose: Compose | bool = "auto",
        background: Backdrop | str | pathlib.Path = "reference",
        **overrides: Any,
    ) -> AnimationStream | list[AnimationStream]:
        """Animates the person in `reference` with the motion of `driving`; frames are decoded as they are iterated.

        Lists of references or motions give a list of every pair, reference by reference. Motions of equal length are
        denoised as one batch, with that many times the memory.

        Args:
            reference: a picture of one person: a file, a PIL image, or an array [H, W, 3], RGB as uint8 or floats in
                [0, 1]; it is cropped to the result's proportions, except by `compose`.
            driving: a video of a person or of drawn poses: a file, a folder of pictures, an array [F, H, W, 3] or a
                list of pictures; or a keypoints file, or a `DrivingMotion`.
            frames: at most that many frames.
            fps: of the result; default: the rate the weights were trained for, else the driving video's. Pictures,
                arrays and keypoints are taken to have it.
            seed: 0 to 2**32 - 1; the same seed gives the same video, alone or in a list.
            align: how the driving keypoints are fitted to the reference's body, see `pose.align.align_motion`.
            person: of several in the driving video: "largest", "center", or a number from the left, from 1.
            detector: finds keypoints: `pose.dwpose.DWPose(folder)`, or by default `pose.detect.detect`.
            canvas: height, width of the video of a keypoints file that does not contain them.
            driving_kind: what videos show: a person ("video") or drawn poses; None detects it.
            callback: called after every evaluation, see `StepCallback`.
            compose: "off" gives what the model decodes. "on" puts the reference's own pixels where the model
                shows them, at the reference's own size: at most 768 pixels high, or `width` and `height`. "auto" is
                "on" for the small bundled model, unless drawn poses drive, and "off" for others.
            background: of composed results: "reference", "driving" (the driving video's scene, in which the character
                takes the person's place, or what `backdrop` made of it), a color or a picture file.
            overrides: `speed` ("exact", "fast", "fastest"), and fields of `AnimationConfig`: width, height, steps,
                guidance, window, overlap, hands, face, audio, ...

        Raises:
            UserError: anything wrong with the input, in one line.
        """
        person = str(person)
        check_request(fps, seed, person, align)
        align = cast(AlignMethod, align)
        if frames is not None and frames < 1:
            raise UserError(f"--frames {frames}: must be greater than 0")
        if isinstance(compose, bool):
            compose = "on" if compose else "off"
        if compose not in get_args(Compose):
            raise UserError(f"--compose {compose}: choose auto, on or off")
        driving, several = motions_of(driving)
        several = several or isinstance(reference, list | tuple)
        kinds = [driving_kind] * len(driving)
        if compose == "auto":
            compose = "off"
            if composes(self.preset):
                rate = fps or self.preset.frames.fps
                kinds = [kind_of(motion, frames, rate, driving_kind) for motion in driving]
                compose = "off" if "poses" in kinds else "on"
        size = {name: overrides.pop(name, None) for name in ("width", "height")} if compose == "on" else {}
        options = self.animation_config(**overrides)
        reading = {
            "person": person,
            "detector": detector,
            "canvas": canvas,
            "size": (options.height, options.width),
            "parts": drawn_parts(options),
        }
        if compose == "on":
            scenes = [read_scene(image, options, **size, detector=detector) for image in as_list(reference)]
        elif str(background) != "reference":
            raise UserError(f"--background {background}: is for composed results: add --compose on")
        else:
            references = [crop_reference(image, options, detector) for image in as_list(reference)]
        motions = [
            motion[:frames]
            if isinstance(motion, DrivingMotion)
            else self.read_motion(motion, frames=frames, fps=fps, progress=progress, driving_kind=kind, **reading)
            for motion, kind in zip(driving, kinds, strict=True)
        ]
        if options.audio == "off":
            motions = [dataclasses.replace(motion, audio=None) for motion in motions]
        if compose == "on":
            if background == "driving":
                drives = zip(driving, motions, strict=True)
                behind = [backdrop(path, motion, **size) for path, motion in drives]
            else:
                behind = [background] * len(motions)
            jobs = [
                self.composed_job(scene, motion, options, align, picture)
                for scene in scenes
                for motion, picture in zip(motions, behind, strict=True)
            ]
        else:
            characters = [self.character(*reference, options) for reference in references]
            jobs = [self.job(character, motion, options, align) for character in characters for motion in motions]
        latents: dict[int, Latents] = {}
        for length in sorted({len(job.poses) for job in jobs}):
            group = {index: job for index, job in enumerate(jobs) if len(job.poses) == length}
            batch = self.sample_jobs(list(group.values()), options, seed, progress, callback)
            latents |= dict(zip(group, batch, strict=True))
        decoded = [
            deflicker(
                with_progress(self.decode_chunks(latents[index], job.warped), len(job.poses), progress),
                options.deflicker,
            )
            for index, job in enumerate(jobs)
        ]
        streams = [result_stream(job, chunks) for job, chunks in zip(jobs, decoded, strict=True)]
        return streams if several else streams[0]

    def character(self, image: Image, keypoints: Keypoints, options: AnimationConfig) -> Character:
        """A reference from `crop_reference`, with its conditioning."""
        pose = draw(keypoints, options.height, options.width, options.pose_style)
        return Character(image, keypoints, self.precompute_conditioning(image, pose, options))

    def job(
        self, character: Character, motion: DrivingMotion, options: AnimationConfig, align: AlignMethod = "bones"
    ) -> Job:
        """The motion fitted to the character."""
        poses = draw_motion(motion, character.keypoints, options, align)
        return Job(character, motion, poses, self.warp(character.image, character.keypoints, poses))

    def composed_job(
        self,
        scene: Scene,
        motion: DrivingMotion,
        options: AnimationConfig,
        align: AlignMethod = "bones",
        background: Backdrop | str | pathlib.Path = "reference",
    ) -> Job:
        """A video to compose: the model sees the box around the person.

        Raises:
            UserError: no such background, or a motion of drawn poses.
        """
        reference = scene.keypoints
        fitted = fit_motion(motion, reference, scene.size, options, align)
        if isinstance(background, Backdrop):
            scene, fitted = place(scene, fitted, background)
        elif str(background) != "reference":
            scene = scene.before(paint(background, scene.size))
        warn_of_missing_legs(fitted, reference)
        composition = Composition.of(scene, fitted, options)
        seen = composition.seen_by_model(options)
        character = self.character(seen.picture, seen.reference, options)
        poses = LazyPoseImages(seen.driven, options.height, options.width, options.pose_style)
        return Job(character, motion, poses, seen if self.copies_reference else None, composition)

    def sample_jobs(
        self,
        jobs: list[Job],
        options: AnimationConfig,
        seed: int,
        progress: bool,
        callback: StepCallback | None,
    ) -> Latents:
        """Samples jobs of equal length as one batch, see `sample`."""
        conditioning = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(job.character.conditioning for job in jobs))
        poses, warped = [job.poses for job in jobs], [job.warped for job in jobs]
        return self.sample(conditioning, poses, options, seed, progress, callback, warped)

    @as_arguments()
    def read_motion(self, driving: Any, fps: Number | None = None, **options: Any) -> DrivingMotion:
        """`inputs.read_motion`, by default at the rate the weights were trained for, with the parts that their pose
        style draws."""
        (driving,), _ = motions_of(driving)
        return read_motion(
            driving, fps=fps or self.preset.frames.fps, **{"parts": drawn_parts(self.animation_config()), **options}
        )

    def warp(self, image: Image, keypoints: Keypoints, poses: Poses) -> LazyWarpedImages | None:
        """`inputs.warp_reference` for models with `appearance`; None for others."""
        return warp_reference(image, keypoints, poses) if self.copies_reference else None

    @as_arguments()
    def animation_config(self, speed: Speed | str = "exact", **overrides: Any) -> AnimationConfig:
        """The preset's defaults with some replaced (None keeps a default), after those that `speed` replaces.

        Raises:
            UserError: an unknown option, or an impossible value.
        """
        kinds = get_type_hints(AnimationConfig)
        if unknown := [name for name in overrides if name not in kinds]:
            raise unexpected(unknown[0], [*inspect.signature(Pipeline.stream).parameters, "speed", *kinds])
        given = {name: plain(value, kinds[name]) for name, value in overrides.items() if value is not None}
        if speed not in get_args(Speed):
            raise UserError(f"--speed {speed}: choose one of {', '.join(get_args(Speed))}")
        for name, value in given.items():
            is_number = isinstance(value, int) or (isinstance(value, float) and kinds[name] is not int)
            if not is_number and (rule := field_problem(name, value, kinds[name])):
                raise UserError(f"--{name.replace('_', '-')} {value!r}: must be {rule}")
        options = dataclasses.replace(self.preset.animation, **speeds(self.preset.sampling)[cast(Speed, speed)] | given)
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


def result_stream(job: Job, chunks: Iterator[Images]) -> AnimationStream:
    """What the caller gets of a job whose frames the model decodes to `chunks`."""
    if job.composition is None:
        character = job.character
        return AnimationStream(chunks, job.motion.fps, character.image, character.keypoints, job.motion, job.poses)
    scene = job.composition.scene
    frames = job.composition.frames(chunks)
    return AnimationStream(frames, job.motion.fps, scene.picture, scene.keypoints, job.motion, job.composition.poses)


def with_progress(chunks: Iterator[Images], frames: int, bar: bool) -> Iterator[Images]:
    with Progress("decoding", math.ceil(frames / DECODE_BATCH), bar) as progress:
        yield from progress.each(chunks)
