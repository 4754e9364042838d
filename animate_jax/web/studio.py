"""The work behind the web page, without its user interface: checks inputs, makes videos, and keeps the files.

One video is made at a time. A session is one visitor's open page. The limits of a request are in `animate_jax.limits`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import gc
import math
import pathlib
import queue
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from animate_jax import limits
from animate_jax.config import AnimationConfig, Compose, Preset, Speed, Switch
from animate_jax.errors import InputWarning, UserError
from animate_jax.pose.detect import Detector, detect
from animate_jax.pose.draw import LazyPoseImages, draw
from animate_jax.pose.files import KEYPOINT_SUFFIXES
from animate_jax.pose.keypoints import Keypoints
from animate_jax.presets import composes
from animate_jax.sampling.backgrounds import backdrop
from animate_jax.sampling.compose import read_scene
from animate_jax.sampling.inputs import DrivingMotion, crop_reference, draw_motion, drawn_parts, fit_motion
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.images import read_image, write_image
from animate_jax.video.open import IMAGE_SUFFIXES, VIDEO_SUFFIXES, check_size, open_video
from animate_jax.video.read import frame_count, frame_rate
from animate_jax.video.write import write_video
from animate_jax.web.uploads import FileStore

PICTURE_SIZE = "the picture's own"  # of results: composed
BACKGROUNDS = ("reference", "driving", "white", "black", "green")  # of composed results; visitors name no files
MOTION_SUFFIXES = (*VIDEO_SUFFIXES, *KEYPOINT_SUFFIXES)
PREVIEW_EVERY = 2.0  # seconds
KEEP_FILES = 3600.0  # seconds after the last use until uploads and results are removed
CLOSING_TIMEOUT = 60  # seconds that shutdown waits for the running denoising step

RGB = UInt8[np.ndarray, "_ _ 3"]


@dataclasses.dataclass(frozen=True)
class VisitorLimits:
    frames: int = 240  # of a result, at most
    seconds: int = 60  # of a driving video, at most
    megabytes: int = 100  # of an uploaded file, at most


@dataclasses.dataclass(frozen=True)
class Request:
    """A visitor's inputs, in the order of the page's fields; the last six do not change the poses."""

    reference: str | None  # paths of uploaded files
    driving: str | None
    frames: int
    person: str
    align: Any  # a `pose.align.AlignMethod`, which the pipeline checks
    size: str  # one of `Studio.sizes`
    hands: Switch = "auto"
    face: Switch = "auto"
    steps: int | None = None
    guidance: float | int | None = None
    speed: Speed = "exact"
    seed: int = 0
    audio: Switch = "auto"
    background: str = "reference"  # one of `BACKGROUNDS`

    @property
    def compose(self) -> Compose:
        return "on" if self.size == PICTURE_SIZE else "off"


class Update(NamedTuple):
    """The page's outputs while something is made; None leaves one as it is. The last update has the result."""

    text: str
    preview: RGB | None = None  # a frame as it is so far
    video: str | None = None
    side_by_side: str | None = None
    reference: RGB | None = None  # the cropped reference beside its skeleton
    poses: str | None = None  # a video of the detected beside the retargeted skeleton


class Cancelled(Exception):
    """The visitor pressed Cancel or closed the page."""


class Progress:
    """The pipeline's callback: puts updates into a queue, and raises `Cancelled` after a cancellation."""

    def __init__(self):
        self.updates: queue.SimpleQueue[Update | BaseException] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.started = self.last_preview = time.monotonic()

    def __call__(self, done: float, preview: Callable[[], RGB]) -> None:
        self.check()
        due = time.monotonic() - self.last_preview > PREVIEW_EVERY
        if due:
            self.last_preview = time.monotonic()
        self.tell(f"Denoising: {done:.0%}", preview() if due else None)

    def tell(self, text: str, preview: RGB | None = None) -> None:
        self.check()
        self.updates.put(Update(text, preview))

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled


class Job(NamedTuple):
    """What a worker thread makes."""

    request: Request
    reference: pathlib.Path
    driving: pathlib.Path
    config: AnimationConfig
    session: str
    progress: Progress


class Studio:
    """The state and the operations of the page.

    Args:
        folder: for results and uploads.
        detector: finds people, as in `Pipeline.stream`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        visitor_limits: VisitorLimits,
        folder: pathlib.Path,
        detector: Detector | None = None,
    ):
        self.pipeline, self.limits, self.folder, self.detector = pipeline, visitor_limits, folder, detector
        self.store = FileStore(folder, visitor_limits.megabytes * 1_000_000, KEEP_FILES)
        model = pipeline.preset.frames
        self.sizes = size_choices(pipeline.preset) | {PICTURE_SIZE: (model.width, model.height)}
        self.usual_size = PICTURE_SIZE if composes(pipeline.preset) else next(iter(self.sizes))
        self.device_lock = threading.Lock()
        self.compiling: threading.Thread | None = None
        self.running: dict[str, Progress] = {}  # session -> its video
        self.session_files: dict[str, set[pathlib.Path]] = {}  # used or made by the session
        self.compiled_shapes: set[tuple] = set()
        self.motions: dict[tuple, tuple[DrivingMotion, list[str]]] = {}  # read from uploads, and what to say of them

    def compile_first(self) -> None:
        """Compiles what a video of the page's own choices needs, in a thread; the first video waits for it."""

        def work() -> None:
            with contextlib.suppress(Exception):  # which the first video raises again
                self.pipeline.compile(self.pipeline.animation_config(), self.limits.frames)

        self.compiling = threading.Thread(target=work, daemon=True)
        self.compiling.start()

    def preview_poses(self, request: Request, session: str = "") -> Iterator[Update]:
        """Reads the poses and yields the progress; the last update shows them. To be stopped as `animate`.

        Raises:
            UserError: anything wrong with the input.
        """
        return self._run(self._preview_poses, request, session)

    def animate(self, request: Request, session: str = "") -> Iterator[Update]:
        """Makes the video and yields its progress. `cancel`, or closing the iterator, stops it and frees the device.

        Raises:
            UserError: anything wrong with the input.
        """
        return self._run(self._animate, request, session)

    def _run(self, work: Callable[[Job], Update], request: Request, session: str) -> Iterator[Update]:
        """Yields the updates of a thread that does the work."""
        files = self.check_files(request, session)
        config = self.sampling_config(request)
        self.running[session] = progress = Progress()
        job = Job(request, *files, config, session, progress)
        worker = threading.Thread(target=self._work, args=(work, job), daemon=True)
        worker.start()
        try:
            with self.with_client_paths(files):
                while True:
                    update = progress.updates.get()
                    if isinstance(update, BaseException):
                        raise update
                    yield update
                    if update.video or update.poses:
                        return
        except Cancelled:
            yield Update("Cancelled")
        finally:
            progress.cancelled.set()
            worker.join()
            if self.running.get(session) is progress:
                del self.running[session]

    def _work(self, work: Callable[[Job], Update], job: Job) -> None:
        """The body of the thread; the last update is the result, with what to know about it, or an exception."""
        try:
            with self.device_lock, noted() as notes:
                update = work(job)
            job.progress.updates.put(update._replace(text="\n".join([update.text, *dict.fromkeys(notes)])))
        except BaseException as error:
            job.progress.updates.put(error)

    def _preview_poses(self, job: Job) -> Update:
        request, config = job.request, job.config
        height, width = config.height, config.width
        job.progress.tell("Looking for the person in the picture")
        image = shrink(read_image(job.reference))
        if request.compose == "on":
            scene = read_scene(image, config, detector=self.detector)
            image, keypoints, (height, width) = scene.picture, scene.keypoints, scene.size
        else:
            image, keypoints = crop_reference(image, config, self.detector)
        motion = self._read_motion(job)
        if request.compose == "on":
            fitted_keypoints = fit_motion(motion, keypoints, (height, width), config, request.align)
            fitted = LazyPoseImages(fitted_keypoints, height, width, config.pose_style)
        else:
            fitted = draw_motion(motion, keypoints, config, request.align)
        if motion.keypoints is None:
            detected = fitted
        else:
            aspect = min(motion.canvas[1] / motion.canvas[0], limits.CANVAS_RATIO)
            detected_width = max(round(height * aspect / 2) * 2, 2)
            detected = LazyPoseImages(motion.keypoints, height, detected_width, config.pose_style)
        video = self.new_file("poses.mp4", job.session)
        divider = np.full((height, 2, 3), 128, np.uint8)
        pairs = (np.concatenate([detected[frame], divider, fitted[frame]], 1) for frame in range(len(motion)))
        write_video(video, pairs, motion.fps)
        picture = np.concatenate([image, draw(keypoints, height, width, config.pose_style)], 1)
        return Update(f"Poses of {len(motion)} frames", reference=picture, poses=video)

    def _animate(self, job: Job) -> Update:
        request, progress = job.request, job.progress
        motion = self._read_motion(job)
        background: Any = request.background
        if background == "driving":
            background = backdrop(job.driving, motion)
        if self.compiling is not None and self.compiling.is_alive():
            progress.tell("Compiling, once after the start of the page")
            self.compiling.join()
        progress.tell("Denoising: 0%")
        stream = self.pipeline.stream(
            shrink(read_image(job.reference)),
            motion,
            seed=int(request.seed),
            progress=False,
            align=request.align,
            detector=self.detector,
            callback=progress,
            **({} if request.compose == "on" else {"width": job.config.width, "height": job.config.height}),
            compose=request.compose,
            background=background,
            steps=request.steps,
            guidance=request.guidance,
            speed=request.speed,
            hands=request.hands,
            face=request.face,
            audio=request.audio,
        )
        progress.tell("Decoding the frames")
        video, side_by_side = (self.new_file(name, job.session) for name in ("result.mp4", "side_by_side.mp4"))
        stream.save(video, side_by_side)
        self._limit_programs(request.size, len(stream), job.config.guidance > 1, request.speed)
        seconds = time.monotonic() - progress.started
        return Update(f"{len(stream)} frames in {seconds:.0f} s", video=video, side_by_side=side_by_side)

    def _read_motion(self, job: Job) -> DrivingMotion:
        """The driving motion; poses of an unchanged request are not detected again."""
        request, config, driving, progress = job.request, job.config, job.driving, job.progress
        frames, parts, canvas = self.clamp_frames(request), drawn_parts(config), assumed_canvas(driving, config)
        detector = self.detector or functools.partial(detect, **dict.fromkeys(parts, True))

        def with_progress(images: Iterable[RGB], *options: Any) -> Keypoints:
            count = frame_count(driving, min(self.pipeline.preset.frames.fps or math.inf, frame_rate(driving)))

            def counted() -> Iterator[RGB]:
                for number, image in enumerate(images):
                    progress.tell(f"Reading poses: {min(number / min(frames, count), 1):.0%}")
                    yield image

            return detector(counted(), *options)

        key = driving, frames, request.person, parts, canvas  # an upload's path has a checksum of its content
        read = self.motions.get(key)
        if read is None:
            progress.tell("Reading poses: 0%")
            with noted() as notes:
                motion = self.pipeline.read_motion(
                    driving,
                    frames=frames,
                    progress=False,
                    person=request.person,
                    detector=with_progress,
                    canvas=canvas,
                    size=(config.height, config.width),
                    parts=parts,
                )
            if motion.keypoints is None:  # drawn poses: large, and quickly read
                return motion
            read = self.motions[key] = motion, notes
            while len(self.motions) > limits.PAGE_MOTIONS:
                del self.motions[next(iter(self.motions))]
        for note in read[1]:
            warnings.warn(note, InputWarning, stacklevel=2)
        return read[0]

    def cancel(self, session: str) -> str:
        """Stops the session's video after the current denoising step."""
        if progress := self.running.get(session):
            progress.cancelled.set()
        return "Cancelled"

    def close(self) -> None:
        """Stops all videos and waits, as a process cannot exit cleanly while the device computes."""
        for session in list(self.running):
            self.cancel(session)
        if self.compiling is not None:
            self.compiling.join(CLOSING_TIMEOUT)
        self.device_lock.acquire(timeout=CLOSING_TIMEOUT)

    def end_session(self, session: str) -> None:
        """Stops the session's video, and removes uploads and results that no other session uses."""
        self.cancel(session)
        own, others = self.session_files.pop(session, set()), set().union(*list(self.session_files.values()))
        for file in own - others:
            self.store.remove(file)
        self.forget_motions()

    def forget_motions(self) -> None:
        """Forgets the motions of files that were removed."""
        self.motions = {key: motion for key, motion in list(self.motions.items()) if key[0].exists()}

    def evict(self) -> None:
        """Removes files beyond the limits of age and size, and sessions without files."""
        self.store.evict()
        self.forget_motions()
        for session, files in list(self.session_files.items()):
            if not any(file.exists() for file in list(files)):
                self.session_files.pop(session, None)

    def check_files(self, request: Request, session: str = "") -> tuple[pathlib.Path, pathlib.Path]:
        """The reference and the driving file.

        Raises:
            UserError: a file is missing, of an unknown kind, too big or too long.
        """
        reference = self._check_file(request.reference, "picture", IMAGE_SUFFIXES, session)
        driving = self._check_file(request.driving, "motion", MOTION_SUFFIXES, session)
        if driving.suffix.lower() not in KEYPOINT_SUFFIXES:
            with self.with_client_paths((reference, driving)):
                self._check_video(driving)
        return reference, driving

    def _check_file(self, path: str | None, kind: str, suffixes: tuple[str, ...], session: str) -> pathlib.Path:
        if not path:
            raise UserError(f"No {kind} yet: drop one, or pick an example.")
        file = pathlib.Path(path)
        if file.suffix.lower() not in suffixes:
            raise UserError(f"{file.name}: this is no {kind}: use one of {' '.join(suffixes)}.")
        if not file.is_file():
            raise UserError(f"{file.name}: is no longer here: drop it again.")
        max_bytes = self.limits.megabytes * 1_000_000
        if file.suffix.lower() in KEYPOINT_SUFFIXES:
            max_bytes = min(max_bytes, limits.PAGE_KEYPOINTS_BYTES)
        if file.stat().st_size > max_bytes:
            raise UserError(f"{file.name}: larger than {max_bytes // 1_000_000} MB: cut or compress it.")
        if self.folder in file.parents:
            file.touch()
            self.session_files.setdefault(session, set()).add(file)
        return file

    def _check_video(self, file: pathlib.Path) -> None:
        """Raises a UserError if the video is too long or has too many pixels."""
        seconds, rate = frame_count(file, 1), frame_rate(file)
        if seconds > self.limits.seconds:
            raise UserError(f"{file.name}: {seconds} s long, more than {self.limits.seconds} s: cut it.")
        with open_video(file) as (_, stream):
            width, height = stream.codec_context.width, stream.codec_context.height
        check_size(file.name, width, height, limits.PAGE_VIDEO_PIXELS)
        if seconds * rate * width * height > limits.PAGE_VIDEO_DECODED:
            raise UserError(f"{file.name}: too many pixels at {rate:.0f} frames/s: scale it down.")

    def sampling_config(self, request: Request) -> AnimationConfig:
        """The sampling options of a request.

        Raises:
            UserError: it would take too much memory or time.
        """
        if request.size not in self.sizes:
            raise UserError(f"Size {request.size}: choose one of {', '.join(self.sizes)}.")
        if request.background not in BACKGROUNDS:
            raise UserError(f"Background {request.background}: choose one of {', '.join(BACKGROUNDS)}.")
        if request.background != "reference" and request.compose == "off":
            raise UserError(f"Background {request.background}: goes with the size: {PICTURE_SIZE}.")
        width, height = self.sizes[request.size]
        config = self.pipeline.animation_config(
            request.speed,
            width=width,
            height=height,
            steps=request.steps,
            guidance=request.guidance,
            hands=request.hands,
            face=request.face,
        )
        default = self.pipeline.preset.frames
        area = width * height / (default.width * default.height)
        work = self.clamp_frames(request) * config.steps * area * (2 if config.guidance > 1 else 1)
        if work > limits.PAGE_WORK:
            raise UserError(
                f"This would keep the others waiting for too long: choose {limits.PAGE_WORK / work:.0%} of the frames "
                "or steps, or a smaller size."
            )
        return config

    def clamp_frames(self, request: Request) -> int:
        return max(1, min(int(request.frames), self.limits.frames))

    def save_image(self, image: RGB, session: str) -> str:
        """Writes an image to a file of the session; for arrays, Gradio would create files that are never removed."""
        file = self.new_file("picture.png", session)
        write_image(file, image)
        return file

    def new_file(self, name: str, session: str) -> str:
        """A path in a new folder."""
        file = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / name
        self.session_files.setdefault(session, set()).add(file)
        return str(file)

    @contextlib.contextmanager
    def with_client_paths(self, files: Iterable[pathlib.Path]) -> Iterator[None]:
        """Replaces this machine's paths in errors by the names of the visitor's files."""
        try:
            yield
        except UserError as error:
            text = str(error)
            for file in files:
                text = text.replace(str(file), file.name)
            raise UserError(re.sub(f"{re.escape(str(self.folder))}/([^/]*/)?", "", text)) from None

    def _limit_programs(self, size: str, frames: int, *choices: object) -> None:
        """JAX compiles a program for every shape and keeps it: beyond a maximum number, all are dropped."""
        self.compiled_shapes.add((size, min(frames, self.pipeline.preset.sampling.window), *choices))
        if len(self.compiled_shapes) > limits.PAGE_PROGRAMS:
            self.compiled_shapes.clear()
            jax.clear_caches()
            gc.collect()
            with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed memory
                ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the `InputWarning`s of a block; in one thread at a time, as Python's warnings are the process's."""
    notes: list[str] = []

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, InputWarning):
            notes.append(str(message))
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        warnings.simplefilter("always", InputWarning)
        yield notes


def size_choices(preset: Preset) -> dict[str, tuple[int, int]]:
    """Widths and heights in pixels that the page offers, the preset's first: portrait, square and landscape, of a few
    areas. A fixed list limits the number of compiled programs."""
    width, height = preset.frames.width, preset.frames.height
    multiple, sizes = 2 * preset.model.vae.downscale, [(width, height)]
    for area in limits.PAGE_AREAS:
        side, stretch = math.sqrt(area * width * height), math.sqrt(height / width)
        for ratio in (stretch, 1, 1 / stretch):
            rounded = [max(round(length / multiple), 1) * multiple for length in (side / ratio, side * ratio)]
            sizes.append((rounded[0], rounded[1]))
    return {f"{width} x {height}": (width, height) for width, height in sizes if width >= 32 <= height}


def shrink(image: RGB) -> RGB:
    """Reduces a large reference, as results are much smaller and memory is limited."""
    smaller = Image.fromarray(image)
    smaller.thumbnail((limits.PAGE_PICTURE_SIDE, limits.PAGE_PICTURE_SIDE), Image.Resampling.LANCZOS)
    return np.array(smaller)


def assumed_canvas(driving: pathlib.Path, config: AnimationConfig) -> tuple[int, int] | None:
    """Height and width assumed for the canvas of a .npy of poses, which does not contain them: the result's."""
    return (config.height, config.width) if driving.suffix.lower() == ".npy" else None
