"""A page in the browser that animates pictures:

    animate-jax web                                        # http://127.0.0.1:7860, the bundled model
    ANIMATE_JAX_PASSWORD=... animate-jax web --host 0.0.0.0 --checkpoint ckpt/

One video is made at a time; visitors wait in a queue. Whoever can reach the address may use the machine, so it is this
machine only unless `--host` says otherwise; with ANIMATE_JAX_PASSWORD set, the page asks for it (user name: animate).
Uploads and results lie in a temporary folder. They are removed when their visitor leaves, after an hour without use,
when there are too many, and when the program ends. `animate_jax.limits` says how much a visitor may ask for.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import math
import os
import pathlib
import queue
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple, NoReturn, get_args

import jax
import numpy as np
import tyro
from jaxtyping import UInt8
from PIL import Image

from animate_jax import limits
from animate_jax.config import Preset, Speed
from animate_jax.errors import UserError, exit_status
from animate_jax.pose.draw import Drawn, draw
from animate_jax.sampling.pipeline import EXAMPLE, Pipeline
from animate_jax.storage import keep_compiled_programs
from animate_jax.video.files import IMAGE_SUFFIXES, frame_count, frame_rate, read_image, write_image, write_video
from animate_jax.video.open import check_size, open_video
from animate_jax.web.uploads import Door, Shelf, temporary_folder

KEYPOINT_SUFFIXES = (".json", ".npz")
MOTION_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", *KEYPOINT_SUFFIXES)
PREVIEW_EVERY = 2.0  # seconds
KEEP = 3600.0  # seconds that uploads and results stay on the disk unused
TIDY_EVERY = 60  # seconds
CLOSING = 60  # seconds that the end waits for the evaluation under way
USER = "animate"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Arguments:
    checkpoint: str = "tiny"  # "tiny" (bundled), a checkpoint's directory, or a training run's
    host: str = "127.0.0.1"  # who may come: this machine only; 0.0.0.0: the network
    port: int = 7860  # 0 takes a free one
    frames: int = 240  # of a result, at most
    seconds: int = 60  # of a driving video, at most
    megabytes: int = 100  # of an uploaded file, at most
    waiting: int = 8  # visitors in the queue, at most


class Update(NamedTuple):
    """What the page shows while a video is made; `video` and `beside` are set in the last one."""

    text: str
    preview: UInt8[np.ndarray, "_ _ 3"] | None = None
    video: str | None = None
    beside: str | None = None


class Cancelled(Exception):
    """The visitor pressed Cancel."""


class Studio:
    """What the page does, without the page.

    Args:
        folder: where results go; in the page, uploads lie there, too.
    """

    def __init__(self, pipeline: Pipeline, args: Arguments, folder: pathlib.Path):
        self.pipeline, self.args, self.folder = pipeline, args, folder
        self.shelf = Shelf(folder, args.megabytes * 1_000_000, KEEP)
        self.sizes = sizes(pipeline.preset)
        self.busy = threading.Lock()  # the device is somebody's
        self.stops: dict[str, threading.Event] = {}  # of the visitors whose videos are being made
        self.files: dict[str, set[pathlib.Path]] = {}  # that visitors have used or made
        self.programs: set[tuple] = set()  # shapes that were compiled

    def checked(
        self, reference: str | None, driving: str | None, visitor: str = ""
    ) -> tuple[pathlib.Path, pathlib.Path]:
        """Raises UserError when a file is missing, of a kind nobody reads, too big or too long."""
        files = []
        for path, what, suffixes in ((reference, "picture", IMAGE_SUFFIXES), (driving, "motion", MOTION_SUFFIXES)):
            if not path:
                raise UserError(f"No {what} yet: drop one, or pick an example.")
            file = pathlib.Path(path)
            if file.suffix.lower() not in suffixes:
                raise UserError(f"{file.name}: this is no {what}: use one of {' '.join(suffixes)}.")
            if not file.is_file():
                raise UserError(f"{file.name}: is no longer here: drop it again.")
            most = self.args.megabytes * 1_000_000
            if file.suffix.lower() in KEYPOINT_SUFFIXES:
                most = min(most, limits.PAGE_KEYPOINTS_BYTES)
            if file.stat().st_size > most:
                raise UserError(f"{file.name}: larger than {most // 1_000_000} MB: cut or compress it.")
            if self.folder in file.parents:
                file.touch()
                self.files.setdefault(visitor, set()).add(file)
            files.append(file)
        if files[1].suffix.lower() not in KEYPOINT_SUFFIXES:
            with self.told(files):
                self.check_video(files[1])
        return files[0], files[1]

    def check_video(self, file: pathlib.Path) -> None:
        """Raises UserError when it is too long, or has too many pixels."""
        length, rate = frame_count(file, 1), frame_rate(file)
        if length > self.args.seconds:
            raise UserError(f"{file.name}: {length} s long, more than {self.args.seconds} s: cut it.")
        with open_video(file) as (_, stream):
            width, height = stream.codec_context.width, stream.codec_context.height
        check_size(file.name, width, height, limits.PAGE_VIDEO_PIXELS)
        if length * rate * width * height > limits.PAGE_VIDEO_DECODED:
            raise UserError(f"{file.name}: too many pixels at {rate:.0f} frames/s: scale it down.")

    def options(self, size: str, frames: int, **more) -> dict:
        """Arguments of the pipeline. Raises UserError when they would take too much memory or time."""
        if size not in self.sizes:
            raise UserError(f"Size {size}: choose one of {', '.join(self.sizes)}.")
        width, height = self.sizes[size]
        sampling, options = self.pipeline.preset.sampling, self.pipeline.options(width=width, height=height, **more)
        area = width * height / (sampling.width * sampling.height)
        work = self.count(frames) * options.steps * area * (2 if options.guidance > 1 else 1)
        if work > limits.PAGE_WORK:
            share = limits.PAGE_WORK / work
            raise UserError(f"This would keep the others waiting for too long: choose {share:.0%} of the frames or "
                            "steps, or a smaller size.")  # fmt: skip
        return {"width": width, "height": height, **more}

    def look(self, reference: str | None, driving: str | None, frames: int, person: str, align: str, size: str,
             visitor: str = "") -> tuple[UInt8[np.ndarray, "_ _ 3"], str]:  # fmt: skip
        """The cut reference beside its skeleton; a video of the detected beside the retargeted skeleton."""
        files = self.checked(reference, driving, visitor)
        options = self.pipeline.options(**self.options(size, frames))
        with self.told(files), self.busy:
            height, width = options.height, options.width
            cut, own = self.pipeline.frame_reference(shrunk(read_image(files[0])), options)
            motion = self.pipeline.read_motion(
                files[1], self.count(frames), progress=False, person=person, size=(height, width)
            )
            fitted = self.pipeline.draw_motion(motion, own, options, align)
            if motion.keypoints is None:
                detected = fitted
            else:
                ratio = min(motion.canvas[1] / motion.canvas[0], limits.CANVAS_RATIO)
                wide = max(round(height * ratio / 2) * 2, 2)
                detected = Drawn(motion.keypoints, height, wide, options.pose_style)
            video = self.name("poses.mp4", visitor)
            pairs = (np.concatenate([detected[frame], fitted[frame]], 1) for frame in range(len(motion)))
            write_video(video, pairs, motion.fps)
        return np.concatenate([cut, draw(own, height, width, options.pose_style)], 1), video

    def animate(self, reference: str | None, driving: str | None, frames: int, person: str, align: str, size: str,
                steps: int, guidance: float, speed: Speed, seed: int, visitor: str = ""
                ) -> Iterator[Update]:  # fmt: skip
        """Makes the video, telling how far it is. `cancel`, or closing the iterator, stops and frees the device."""
        files = self.checked(reference, driving, visitor)
        options = self.options(size, frames, steps=steps, guidance=guidance, speed=speed)
        told_by, stop = queue.SimpleQueue(), threading.Event()
        self.stops[visitor] = stop

        def watch(done: float, preview) -> None:
            nonlocal shown
            if stop.is_set():
                raise Cancelled
            now = time.monotonic()
            due = now - shown > PREVIEW_EVERY
            shown = now if due else shown
            told_by.put(Update(f"Denoising: {done:.0%}", preview() if due else None))

        def work() -> None:
            try:
                with self.busy:
                    if stop.is_set():
                        raise Cancelled
                    told_by.put(Update("Reading the pose of every frame"))
                    stream = self.pipeline.stream(
                        shrunk(read_image(files[0])), files[1], frames=self.count(frames), seed=int(seed),
                        progress=False, align=align, person=person, watch=watch, **options,
                    )  # fmt: skip
                    told_by.put(Update("Decoding the frames"))
                    video, beside = self.name("result.mp4", visitor), self.name("side_by_side.mp4", visitor)
                    stream.save(video, beside)
                    self.forget_programs(size, len(stream), guidance > 1, speed)
                told_by.put(Update(f"{len(stream)} frames in {time.monotonic() - started:.0f} s", None, video, beside))
            except BaseException as error:
                told_by.put(error)

        started = shown = time.monotonic()
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            with self.told(files):
                while True:
                    news = told_by.get()
                    if isinstance(news, BaseException):
                        raise news
                    yield news
                    if news.video:
                        return
        except Cancelled:
            yield Update("Cancelled")
        finally:
            stop.set()
            worker.join()
            if self.stops.get(visitor) is stop:
                del self.stops[visitor]

    def cancel(self, visitor: str) -> str:
        """Stops the visitor's video after the evaluation that is under way."""
        if stop := self.stops.get(visitor):
            stop.set()
        return "Cancelled"

    def close(self) -> None:
        """Stops all videos and waits: a process cannot end well while the device computes."""
        for stop in list(self.stops.values()):
            stop.set()
        self.busy.acquire(timeout=CLOSING)

    def leave(self, visitor: str) -> None:
        """Stops the visitor's video, and removes uploads and results that nobody else uses."""
        self.cancel(visitor)
        mine, others = self.files.pop(visitor, set()), set().union(*list(self.files.values()))
        for file in mine - others:
            self.shelf.remove(file)

    def tidy(self) -> None:
        """Removes files that are too old or too many, and forgets whose they were."""
        self.shelf.tidy()
        for visitor, files in list(self.files.items()):
            if not any(file.exists() for file in list(files)):
                self.files.pop(visitor, None)

    def forget_programs(self, size: str, frames: int, *kind) -> None:
        """Every shape is compiled anew, and JAX keeps the programs: beyond some, all of them are dropped."""
        self.programs.add((size, min(frames, self.pipeline.preset.sampling.window), *kind))
        if len(self.programs) > limits.PAGE_PROGRAMS:
            self.programs.clear()
            jax.clear_caches()
            gc.collect()
            with contextlib.suppress(OSError, AttributeError):  # the C library of Linux keeps what was freed
                ctypes.CDLL(None).malloc_trim(0)

    def count(self, frames: int) -> int:
        return max(1, min(int(frames), self.args.frames))

    def picture(self, shown: UInt8[np.ndarray, "_ _ 3"], visitor: str) -> str:
        """A file, which goes with its visitor; of arrays, Gradio keeps files of its own."""
        file = self.name("picture.png", visitor)
        write_image(file, shown)
        return file

    def name(self, name: str, visitor: str) -> str:
        file = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / name
        self.files.setdefault(visitor, set()).add(file)
        return str(file)

    @contextlib.contextmanager
    def told(self, files: Iterable[pathlib.Path]) -> Iterator[None]:
        """Errors name the visitor's files, not where they lie here."""
        try:
            yield
        except UserError as error:
            text = str(error)
            for file in files:
                text = text.replace(str(file), file.name)
            raise UserError(re.sub(f"{re.escape(str(self.folder))}/([^/]*/)?", "", text)) from None


def sizes(preset: Preset) -> dict[str, tuple[int, int]]:
    """Width and height in pixels of the results on offer, the preset's first: upright, square and lying, of a few
    areas. A list, so that visitors cannot have any number of sizes compiled."""
    width, height = preset.sampling.width, preset.sampling.height
    multiple, found = 2 * preset.model.vae.downscale, [(width, height)]
    for area in limits.PAGE_AREAS:
        side, stretch = math.sqrt(area * width * height), math.sqrt(height / width)
        for ratio in (stretch, 1, 1 / stretch):
            rounded = [max(round(length / multiple), 1) * multiple for length in (side / ratio, side * ratio)]
            found.append(tuple(rounded))
    return {f"{width} x {height}": (width, height) for width, height in found if width >= 32 <= height}


def shrunk(picture: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Results are much smaller; around a large picture, much memory would be spent."""
    image = Image.fromarray(picture)
    image.thumbnail((limits.PAGE_PICTURE_SIDE, limits.PAGE_PICTURE_SIDE), Image.Resampling.LANCZOS)
    return np.array(image)


def page(studio: Studio):
    """The Gradio application."""
    import gradio as gr

    defaults, args = studio.pipeline.preset.sampling, studio.args

    def worded(work):
        """Bad input is told to the visitor; of anything else they learn nothing."""

        def wrapped(request, *arguments):
            try:
                yield from work(*arguments, visitor=request.session_hash or "")
            except UserError as error:
                raise gr.Error(str(error), title="That did not work", print_exception=False) from None

        wrapped.__annotations__["request"] = gr.Request  # Gradio then tells who asks
        return wrapped

    def look(*arguments, visitor):
        shown, video = studio.look(*arguments, visitor=visitor)
        yield studio.picture(shown, visitor), video

    def animate(*arguments, visitor):
        for update in studio.animate(*arguments, visitor=visitor):
            preview = gr.skip() if update.preview is None else studio.picture(update.preview, visitor)
            yield update.text, preview, update.video, update.beside, update.video

    def cancelled(*_, visitor):
        yield studio.cancel(visitor)

    def left(request):
        studio.leave(request.session_hash)

    left.__annotations__["request"] = gr.Request
    with gr.Blocks(title="animate_jax", analytics_enabled=False) as blocks:
        blocks.unload(left)
        gr.Markdown(
            "# animate_jax\nA picture of one person and a motion become a video of that person doing the motion. "
            f"At most {args.frames} frames, {args.seconds} s of motion and {args.megabytes} MB a file."
        )
        with gr.Row():
            with gr.Column():
                reference = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=300,
                                     image_mode=None)  # fmt: skip
                driving = gr.File(label="Motion: a video of a person, or keypoints", type="filepath")
                gr.Examples(
                    [[str(EXAMPLE / "reference.png"), str(EXAMPLE / "driving.mp4")]], [reference, driving],
                    label="Bundled example",
                )  # fmt: skip
                with gr.Row():
                    steps = gr.Slider(1, 50, defaults.steps, step=1, label="Steps")
                    guidance = gr.Slider(1, 8, defaults.guidance, step=0.1, label="Guidance")
                    frames = gr.Slider(1, args.frames, min(48, args.frames), step=1, label="Frames")
                    speed = gr.Dropdown(list(get_args(Speed)), label="Speed")
                with gr.Accordion("More", open=False), gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
                    size = gr.Dropdown(list(studio.sizes), label="Size")
                    align = gr.Dropdown(["bones", "global", "musepose", "none"], label="Fit the motion by")
                    person = gr.Dropdown(["largest", "center", "1", "2", "3"], label="Person in the video")
            with gr.Column():
                with gr.Row():
                    looking = gr.Button("Look at the poses", min_width=180)
                    start = gr.Button("Animate", variant="primary")
                    cancel = gr.Button("Cancel", variant="stop")
                with gr.Row():
                    own = gr.Image(label="Picture, cut, and its pose", interactive=False, height=220, buttons=[])
                    poses = gr.Video(label="Pose: detected | fitted", height=220, autoplay=True, loop=True, buttons=[],
                                     elem_id="poses")  # fmt: skip
                status = gr.Textbox(label="Progress", interactive=False, elem_id="status")
                with gr.Row():
                    preview = gr.Image(label="A frame so far", interactive=False, height=260, buttons=[])
                    result = gr.Video(label="Result", height=260, autoplay=True, loop=True, elem_id="result")
                beside = gr.Video(label="Picture | pose | result", height=260, autoplay=True, loop=True)
                download = gr.File(label="Download", interactive=False)
        shared = [reference, driving, frames, person, align, size]
        alone = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
        seen = looking.click(worded(look), shared, [own, poses], **alone)
        made = start.click(
            worded(animate), [*shared, steps, guidance, speed, seed],
            [status, preview, result, beside, download], show_progress_on=status, **alone,
        )  # fmt: skip
        # Gradio takes waiting events out of its queue, but lets what has begun run on.
        cancel.click(worded(cancelled), None, status, cancels=[seen, made], queue=False, api_visibility="private")
    return blocks.queue(max_size=args.waiting, api_open=False)


@contextlib.contextmanager
def served(args: Arguments, pipeline: Pipeline | None = None) -> Iterator[str]:
    """Serves the page during the body, and says its address.

    Raises:
        UserError: no Gradio, no such checkpoint, or the address is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with temporary_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            import gradio as gr
            from starlette.middleware import Middleware
        except ImportError as error:
            raise UserError("gradio is not installed: pip install 'animate-jax[web]'") from error
        password = os.environ.get("ANIMATE_JAX_PASSWORD")
        if not password and args.host not in LOOPBACK:
            print(f"--host {args.host}: whoever reaches this machine may use the page; "
                  "ANIMATE_JAX_PASSWORD=... asks for a password", file=sys.stderr)  # fmt: skip
        studio = Studio(pipeline or Pipeline.load(args.checkpoint), args, folder)
        blocks = page(studio)
        studio.shelf.own_what_is_there()  # the examples
        try:
            _, address, _ = blocks.launch(
                server_name=args.host, server_port=args.port or None, auth=(USER, password) if password else None,
                max_file_size=studio.shelf.largest, prevent_thread_lock=True, quiet=True, share=False,
                allowed_paths=[], footer_links=[], ssr_mode=False, theme=gr.themes.Soft(font="system-ui"),
                app_kwargs={"middleware": [Middleware(Door, shelf=studio.shelf)]},
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"--host {args.host} --port {args.port}: cannot be served: choose another port") from error
        ended = threading.Event()

        def tidy() -> None:
            while not ended.wait(TIDY_EVERY):
                studio.tidy()

        threading.Thread(target=tidy, daemon=True).start()
        try:
            yield address
        finally:
            ended.set()
            studio.close()
            blocks.close()


def main(arguments: list[str], program: str) -> int:
    args = tyro.cli(Arguments, description=__doc__, args=arguments, prog=program)
    return exit_status(program, lambda: serve(args), "stopped")


def serve(args: Arguments) -> None:
    def terminate(*_) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)  # not at once: what visitors have left is removed first

    signal.signal(signal.SIGTERM, terminate)
    keep_compiled_programs()
    with served(args) as address:
        print(f"{address}   (Ctrl-C stops)", flush=True)
        threading.Event().wait()
