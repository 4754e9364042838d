"""The web page, built with Gradio, and its server."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, get_args

from animate_jax.config import Speed, Switch
from animate_jax.errors import UserError
from animate_jax.pose.align import AlignMethod
from animate_jax.pose.detect import Detector
from animate_jax.pose.draw import STYLES
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.web.studio import BACKGROUNDS, Request, Studio, VisitorLimits
from animate_jax.web.uploads import UploadGuard, temporary_folder

EVICT_EVERY = 60  # seconds
USER = "animate"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build_page(studio: Studio, queue_size: int) -> Any:
    """The Gradio application; its events run one at a time.

    Args:
        queue_size: maximum number of waiting visitors.
    """
    import gradio as gr

    default, most = studio.pipeline.preset.sampling, studio.limits
    parts = STYLES[studio.pipeline.preset.frames.pose_style].parts
    device = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"}
    with gr.Blocks(title="animate_jax", analytics_enabled=False) as blocks:
        blocks.unload(_end_session(studio))
        gr.Markdown(
            "# animate_jax\nA picture of one person and a motion become a video of that person doing the motion. "
            f"At most {most.frames} frames, {most.seconds} s of motion and {most.megabytes} MB a file."
        )
        with gr.Row():
            with gr.Column():
                reference = gr.Image(
                    label="Picture", type="filepath", sources=["upload", "clipboard"], height=300, image_mode=None
                )
                driving = gr.File(label="Motion: a video of a person, or keypoints", type="filepath")
                example = [str(EXAMPLE / "reference.png"), str(EXAMPLE / "driving.mp4")]
                gr.Examples([example], [reference, driving], label="Bundled example")
                with gr.Row():
                    steps = gr.Slider(1, 50, default.steps, step=1, label="Steps")
                    guidance = gr.Slider(1, 8, default.guidance, step=0.1, label="Guidance")
                    frames = gr.Slider(1, most.frames, min(48, most.frames), step=1, label="Frames")
                    speed = gr.Dropdown(list(get_args(Speed)), label="Speed")
                with gr.Accordion("More", open=False), gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
                    size = gr.Dropdown(list(studio.sizes), value=studio.usual_size, label="Size")
                    background = gr.Dropdown(list(BACKGROUNDS), label="Background, at the picture's own size")
                    align = gr.Dropdown(list(get_args(AlignMethod)), value="bones", label="Fit the motion by")
                    person = gr.Dropdown(["largest", "center", "1", "2", "3"], label="Person in the video")
                    hands = gr.Dropdown(list(get_args(Switch)), label="Hands", visible="hands" in parts)
                    face = gr.Dropdown(list(get_args(Switch)), label="Face", visible="face" in parts)
                    audio = gr.Dropdown(list(get_args(Switch)), label="The video's sound")
            with gr.Column():
                with gr.Row():
                    preview_button = gr.Button("Look at the poses", min_width=180)
                    start_button = gr.Button("Animate", variant="primary")
                    cancel_button = gr.Button("Cancel", variant="stop")
                with gr.Row():
                    reference_pose = gr.Image(
                        label="Picture, cut, and its pose", interactive=False, height=220, buttons=[]
                    )
                    poses = gr.Video(
                        label="Pose: detected | fitted",
                        height=220,
                        autoplay=True,
                        loop=True,
                        buttons=[],
                        elem_id="poses",
                    )
                status = gr.Textbox(label="Progress", interactive=False, elem_id="status")
                with gr.Row():
                    preview = gr.Image(label="A frame so far", interactive=False, height=260, buttons=[])
                    result = gr.Video(label="Result", height=260, autoplay=True, loop=True, elem_id="result")
                side_by_side = gr.Video(label="Picture | pose | result", height=260, autoplay=True, loop=True)
                download = gr.File(label="Download", interactive=False)
        inputs = [reference, driving, frames, person, align, size, hands, face]  # in the order of `Request`'s fields
        previewing = preview_button.click(_preview_poses(studio), inputs, [reference_pose, poses], **device)
        animating = start_button.click(
            _animate(studio),
            [*inputs, steps, guidance, speed, seed, audio, background],
            [status, preview, result, side_by_side, download],
            show_progress_on=status,
            **device,
        )
        # Gradio removes waiting events from its queue, but does not stop a running one.
        cancel_button.click(
            _cancel(studio), None, status, cancels=[previewing, animating], queue=False, api_visibility="private"
        )
    return blocks.queue(max_size=queue_size, api_open=False)


def _preview_poses(studio: Studio) -> Callable:
    def preview_poses(*fields, session):
        image, video = studio.preview_poses(Request(*fields), session)
        yield studio.save_image(image, session), video

    return _with_user_errors(preview_poses)


def _animate(studio: Studio) -> Callable:
    import gradio as gr

    def animate(*fields, session):
        for update in studio.animate(Request(*fields), session):
            preview = gr.skip() if update.preview is None else studio.save_image(update.preview, session)
            yield update.text, preview, update.video, update.side_by_side, update.video

    return _with_user_errors(animate)


def _cancel(studio: Studio) -> Callable:
    def cancel(session):
        yield studio.cancel(session)

    return _with_user_errors(cancel)


def _end_session(studio: Studio) -> Callable:
    import gradio as gr

    def end_session(request):
        studio.end_session(request.session_hash)

    end_session.__annotations__["request"] = gr.Request
    return end_session


def _with_user_errors(event: Callable[..., Iterator]) -> Callable:
    """Shows a UserError to the visitor; other errors are not shown."""
    import gradio as gr

    def wrapped(request, *fields):
        try:
            yield from event(*fields, session=request.session_hash or "")
        except UserError as error:
            raise gr.Error(str(error), title="That did not work", print_exception=False) from None

    wrapped.__annotations__["request"] = gr.Request  # Gradio then passes it
    return wrapped


@contextlib.contextmanager
def serving(
    pipeline: Pipeline | Callable[[], Pipeline] = Pipeline.from_pretrained,
    host: str = "127.0.0.1",
    port: int = 7860,
    visitor_limits: VisitorLimits | None = None,
    queue_size: int = 8,
    detector: Detector | None = None,
) -> Iterator[str]:
    """Serves the page during the `with` block, and yields its address.

    Args:
        pipeline: or what loads it.
        host: 127.0.0.1 for this machine only, 0.0.0.0 for the network.
        port: 0: a free one.
        queue_size: maximum number of waiting visitors.
        detector: finds people, as in `Pipeline.stream`.

    Raises:
        UserError: no Gradio, no such checkpoint, or the address is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with temporary_folder() as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            import gradio  # noqa: F401 after the folder is set
        except ImportError as error:
            raise UserError("gradio is not installed: pip install 'animate-jax[web]'") from error
        password = os.environ.get("ANIMATE_JAX_PASSWORD")
        if not password and host not in LOOPBACK:
            print(
                f"--host {host}: whoever reaches this machine may use the page; "
                "ANIMATE_JAX_PASSWORD=... asks for a password",
                file=sys.stderr,
            )
        pipeline = pipeline if isinstance(pipeline, Pipeline) else pipeline()
        studio = Studio(pipeline, visitor_limits or VisitorLimits(), folder, detector)
        blocks = build_page(studio, queue_size)
        studio.store.keep_existing()  # the examples
        address = _launch(blocks, studio, host, port, password)
        ended = threading.Event()

        def evict() -> None:
            while not ended.wait(EVICT_EVERY):
                studio.evict()

        threading.Thread(target=evict, daemon=True).start()
        studio.compile_first()
        try:
            yield address
        finally:
            ended.set()
            studio.close()
            blocks.close()


def _launch(blocks: Any, studio: Studio, host: str, port: int, password: str | None) -> str:
    """Starts the server; returns its address."""
    from gradio.themes import Soft
    from starlette.middleware import Middleware

    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port or None,
            auth=(USER, password) if password else None,
            max_file_size=studio.store.max_bytes,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            allowed_paths=[],
            footer_links=[],
            ssr_mode=False,
            theme=Soft(font="system-ui"),
            app_kwargs={"middleware": [Middleware(UploadGuard, store=studio.store)]},
        )
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot be served: choose another port") from error
    return address
