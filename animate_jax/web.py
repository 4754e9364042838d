"""A page in the browser that animates pictures:

    animate-jax web                                        # http://127.0.0.1:7860, the bundled model
    ANIMATE_JAX_PASSWORD=... animate-jax web --host 0.0.0.0 --checkpoint ckpt/

One video is made at a time; visitors wait in a queue. Whoever can reach the address may use the machine, so it is this
machine only unless `--host` says otherwise; with ANIMATE_JAX_PASSWORD set, the page asks for it (user name: animate).
Uploads and results lie in a temporary folder and are removed after an hour, and when the program ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import queue
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple, get_args

import jax
import numpy as np
import tyro
from jaxtyping import UInt8

from animate_jax.config import Speed
from animate_jax.errors import UserError, exit_status
from animate_jax.pipeline import EXAMPLE, Pipeline
from animate_jax.pose.draw import draw
from animate_jax.video.files import IMAGE_SUFFIXES, frame_count, write_video

MOTION_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".json", ".npz")
PREVIEW_EVERY = 2.0  # seconds
KEEP = 3600  # seconds that uploads and results stay on the disk
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
    """What the page does, without the page."""

    def __init__(self, pipeline: Pipeline, limits: Arguments, folder: pathlib.Path):
        self.pipeline, self.limits, self.folder = pipeline, limits, folder
        self.busy = threading.Lock()  # the device is somebody's
        self.stops: dict[str, threading.Event] = {}  # of the visitors whose videos are being made

    def checked(self, reference: str | None, driving: str | None) -> tuple[pathlib.Path, pathlib.Path]:
        """Raises UserError when a file is missing, of a kind nobody reads, too big or too long."""
        files = []
        for path, what, suffixes in ((reference, "picture", IMAGE_SUFFIXES), (driving, "motion", MOTION_SUFFIXES)):
            if not path:
                raise UserError(f"No {what} yet: drop one, or pick an example.")
            file = pathlib.Path(path)
            if file.suffix.lower() not in suffixes:
                raise UserError(f"{file.name}: this is no {what}: use one of {' '.join(suffixes)}.")
            if file.stat().st_size > self.limits.megabytes * 1_000_000:
                raise UserError(f"{file.name}: larger than {self.limits.megabytes} MB: cut or compress it.")
            files.append(file)
        if files[1].suffix.lower() not in (".json", ".npz"):
            with told(tuple(files)):
                length = frame_count(files[1], 1)
            if length > self.limits.seconds:
                raise UserError(f"{files[1].name}: {length} s long, more than {self.limits.seconds} s: cut it.")
        return files[0], files[1]

    def look(self, reference: str | None, driving: str | None, frames: int, person: str, align: str, width: int,
             height: int) -> tuple[UInt8[np.ndarray, "_ _ 3"], str]:  # fmt: skip
        """The cut reference beside its skeleton; a video of the detected beside the retargeted skeleton."""
        files = self.checked(reference, driving)
        with told(files), self.busy:
            options = self.pipeline.options(width=width, height=height)
            size = options.height, options.width
            cut, own = self.pipeline.frame_reference(files[0], options)
            motion = self.pipeline.read_motion(files[1], self.count(frames), progress=False, person=person, size=size)
            fitted = self.pipeline.draw_motion(motion, own, options, align)[:]
            if motion.keypoints is None:
                detected = fitted
            else:
                width = max(round(size[0] * motion.canvas[1] / motion.canvas[0] / 2) * 2, 2)
                detected = draw(motion.keypoints, size[0], width, options.pose_style)
            video = self.name("poses")
            write_video(video, [np.concatenate(pair, 1) for pair in zip(detected, fitted, strict=True)], motion.fps)
        return np.concatenate([cut, draw(own, *size, options.pose_style)], 1), video

    def animate(self, reference: str | None, driving: str | None, frames: int, person: str, align: str, width: int,
                height: int, steps: int, guidance: float, speed: Speed, seed: int, visitor: str = ""
                ) -> Iterator[Update]:  # fmt: skip
        """Makes the video, telling how far it is. `cancel`, or closing the iterator, stops and frees the device."""
        files = self.checked(reference, driving)
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
                    told_by.put(Update("Reading the pose of every frame"))
                    stream = self.pipeline.stream(
                        *files, frames=self.count(frames), seed=int(seed), progress=False, align=align, person=person,
                        watch=watch, width=width, height=height, steps=steps, guidance=guidance, speed=speed,
                    )  # fmt: skip
                    told_by.put(Update("Decoding the frames"))
                    video, beside = self.name("result"), self.name("side_by_side")
                    stream.save(video, beside)
                told_by.put(Update(f"{len(stream)} frames in {time.monotonic() - started:.0f} s", None, video, beside))
            except BaseException as error:
                told_by.put(error)

        started = shown = time.monotonic()
        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        try:
            with told(files):
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

    def cancel(self, visitor: str) -> str:
        """Stops the visitor's video after the evaluation that is under way."""
        if visitor in self.stops:
            self.stops[visitor].set()
        return "Cancelled"

    def count(self, frames: int) -> int:
        return max(1, min(int(frames), self.limits.frames))

    def name(self, stem: str) -> str:
        return str(pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / f"{stem}.mp4")


@contextlib.contextmanager
def told(files: tuple[pathlib.Path, ...]) -> Iterator[None]:
    """Errors name the visitor's files, not where they lie here."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for file in files:
            text = text.replace(str(file), file.name)
        raise UserError(text) from None


def page(studio: Studio):
    """The Gradio application."""
    import gradio as gr

    defaults, limits = studio.pipeline.preset.sampling, studio.limits

    def worded(work):
        """Bad input is told to the visitor; of anything else they learn nothing."""

        def wrapped(*arguments):
            try:
                yield from work(*arguments)
            except UserError as error:
                raise gr.Error(str(error), title="That did not work", print_exception=False) from None

        return wrapped

    def look(*arguments):
        yield studio.look(*arguments)

    def animate(*arguments):
        for update in studio.animate(*arguments):
            preview = gr.skip() if update.preview is None else update.preview
            yield update.text, preview, update.video, update.beside, update.video

    with gr.Blocks(title="animate_jax", analytics_enabled=False, delete_cache=(KEEP, KEEP)) as blocks:
        visitor = gr.State(secrets.token_hex)
        gr.Markdown(
            "# animate_jax\nA picture of one person and a motion become a video of that person doing the motion. "
            f"At most {limits.frames} frames, {limits.seconds} s of motion and {limits.megabytes} MB a file."
        )
        with gr.Row():
            with gr.Column():
                reference = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=300)
                driving = gr.File(label="Motion: a video of a person, or keypoints", type="filepath")
                gr.Examples(
                    [[str(EXAMPLE / "reference.png"), str(EXAMPLE / "driving.mp4")]], [reference, driving],
                    label="Bundled example",
                )  # fmt: skip
                with gr.Row():
                    steps = gr.Slider(1, 50, defaults.steps, step=1, label="Steps")
                    guidance = gr.Slider(1, 8, defaults.guidance, step=0.1, label="Guidance")
                    frames = gr.Slider(1, limits.frames, min(48, limits.frames), step=1, label="Frames")
                    speed = gr.Dropdown(list(get_args(Speed)), label="Speed")
                with gr.Accordion("More", open=False), gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
                    width = gr.Number(defaults.width, label="Width", precision=0, minimum=32, maximum=1024)
                    height = gr.Number(defaults.height, label="Height", precision=0, minimum=32, maximum=1024)
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
        shared = [reference, driving, frames, person, align, width, height]
        alone = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
        seen = looking.click(worded(look), shared, [own, poses], **alone)
        made = start.click(
            worded(animate), [*shared, steps, guidance, speed, seed, visitor],
            [status, preview, result, beside, download], show_progress_on=status, **alone,
        )  # fmt: skip
        # Gradio takes waiting events out of its queue, but lets what has begun run on.
        cancel.click(studio.cancel, visitor, status, cancels=[seen, made], queue=False, api_visibility="private")
    return blocks.queue(max_size=limits.waiting, api_open=False)


@contextlib.contextmanager
def served(args: Arguments, pipeline: Pipeline | None = None) -> Iterator[str]:
    """Serves the page during the body, and says its address.

    Raises:
        UserError: no Gradio, no such checkpoint, or the address is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with tempfile.TemporaryDirectory(prefix="animate_jax_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio as gr
        except ImportError as error:
            raise UserError("gradio is not installed: pip install 'animate-jax[web]'") from error
        password = os.environ.get("ANIMATE_JAX_PASSWORD")
        if not password and args.host not in LOOPBACK:
            print(f"--host {args.host}: whoever reaches this machine may use the page; "
                  "ANIMATE_JAX_PASSWORD=... asks for a password", file=sys.stderr)  # fmt: skip
        blocks = page(Studio(pipeline or Pipeline.load(args.checkpoint), args, pathlib.Path(folder)))
        try:
            _, address, _ = blocks.launch(
                server_name=args.host, server_port=args.port or None, auth=(USER, password) if password else None,
                max_file_size=args.megabytes * 1_000_000, prevent_thread_lock=True, quiet=True, share=False,
                allowed_paths=[], footer_links=[], ssr_mode=False, theme=gr.themes.Soft(font="system-ui"),
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"--host {args.host} --port {args.port}: cannot be served: choose another port") from error
        try:
            yield address
        finally:
            blocks.close()


def main(arguments: list[str], program: str) -> int:
    args = tyro.cli(Arguments, description=__doc__, args=arguments, prog=program)
    return exit_status(program, lambda: serve(args), "stopped")


def serve(args: Arguments) -> None:
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/animate_jax/jax"))
    with served(args) as address:
        print(f"{address}   (Ctrl-C stops)", flush=True)
        threading.Event().wait()
