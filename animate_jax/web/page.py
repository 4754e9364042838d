"""The web page, built with Gradio, and its server."""

from __future__ import annotations

import contextlib
import html
import os
import pathlib
import re
import shutil
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, get_args

from animate_jax.config import Speed, Switch
from animate_jax.errors import UserError
from animate_jax.pose.align import AlignMethod
from animate_jax.pose.detect import Detector
from animate_jax.pose.draw import STYLES
from animate_jax.presets import composes
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.open import VIDEO_SUFFIXES
from animate_jax.web.studio import BACKGROUNDS, PICTURE_SIZE, Request, Studio, Update, VisitorLimits
from animate_jax.web.uploads import UploadGuard, temporary_folder

EVICT_EVERY = 60  # seconds
USER = "animate"
LOOPBACK = ("127.0.0.1", "localhost", "::1")

SMALL_MODEL = (
    "The bundled model is small and was trained on renderings of people. A photo's face and clothes come from the "
    "photo itself; what it does not show, such as the back, looks rendered. For full size, run "
    "`animate-jax weights fetch moore`, then `animate-jax web --checkpoint moore`."
)
INFO = {
    "steps": "Denoising steps: more take longer.",
    "guidance": "How much the picture counts; 1: off, and fast.",
    "speed": "exact computes all; fast and fastest skip work and lose some detail.",
    "seed": "Another number, another video.",
    "size": f"In pixels; {PICTURE_SIZE}: with its own pixels.",
    "background": f"With the size: {PICTURE_SIZE}.",
    "align": "bones: each limb gets the length that the picture shows; musepose: limb by limb, as MusePose does; "
    "global: one scale for all; none: as filmed.",
    "person": "If there are several; numbers count from the left.",
    "audio": "off: a silent result.",
}
LABELS = {  # what messages call them -> what the page calls them
    "--compose on": f"Size: {PICTURE_SIZE}",
    "--align": '"Fit the motion by"',
    "--person": '"Person in the video"',
    "--background": "Background",
    "--frames": "Frames",
    "--steps": "Steps",
    "--guidance": "Guidance",
    "--seed": "Seed",
    "--hands": "Hands",
    "--face": "Face",
}
DETECTOR_ADVICE = ", or another detector with --dwpose FOLDER"  # which is the server's choice
CSS = """
label[data-testid="block-label"] { position: static; }
/* A white thumb does not show on white. */
input[type="range"]::-webkit-slider-thumb { border: 2px solid var(--slider-color); }
input[type="range"]::-moz-range-thumb { border: 2px solid var(--slider-color); }
.prose video { display: block; margin: auto; max-width: 100%; max-height: 320px; }
"""
# On a phone, the progress and the result come into sight.
SHOW_STATUS = """() => {
  const narrow = matchMedia("(max-width: 700px)").matches;
  document.getElementById("run").scrollIntoView({ behavior: "smooth", block: narrow ? "start" : "nearest" });
  return "Waiting for its turn";
}"""


def build_page(studio: Studio, queue_size: int) -> Any:
    """The Gradio application; its events run one at a time.

    Args:
        queue_size: maximum number of waiting visitors.
    """
    import gradio as gr

    default, most = studio.pipeline.preset.sampling, studio.limits
    parts = STYLES[studio.pipeline.preset.frames.pose_style].parts
    rate = studio.pipeline.preset.frames.fps
    hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # Gradio shows files of this folder and of the working directory, and none of the package's.
    own = [shutil.copy(EXAMPLE / name, studio.folder) for name in ("reference.png", "driving.mp4")]
    device: dict[str, Any] = {"concurrency_id": "device", "concurrency_limit": 1, **hidden}
    with gr.Blocks(title="animate_jax", analytics_enabled=False) as blocks:
        blocks.unload(_end_session(studio))
        gr.Markdown(
            "# animate_jax\nA picture of one person and a motion become a video of that person doing the motion. "
            f"At most {most.frames} frames, {most.seconds} s of motion and {most.megabytes} MB a file."
            + (f"\n\n{SMALL_MODEL}" if composes(studio.pipeline.preset) else "")
        )
        with gr.Row():
            with gr.Column():
                reference = gr.Image(
                    label="Picture", type="filepath", sources=["upload", "clipboard"], height=300, image_mode=None
                )
                driving = gr.File(label="Motion: a video or keypoints", type="filepath")
                player = gr.HTML(visible=False, padding=False)
                example = gr.Dataset(
                    components=[gr.Image(render=False), gr.Video(render=False)],
                    headers=["Picture", "Motion"],
                    samples=[list(map(str, own))],
                    label="Bundled example",
                )
                with gr.Row(equal_height=True):
                    steps = gr.Slider(1, 50, default.steps, step=1, label="Steps", info=INFO["steps"], min_width=220)
                    guidance = gr.Slider(
                        1, 8, default.guidance, step=0.1, label="Guidance", info=INFO["guidance"], min_width=220
                    )
                    frames = gr.Slider(
                        1,
                        most.frames,
                        min(48, most.frames),
                        step=1,
                        label="Frames",
                        info=f"At most that many{f', {rate:g} a second' if rate else ''}.",
                        min_width=220,
                    )
                    speed = gr.Dropdown(list(get_args(Speed)), label="Speed", info=INFO["speed"], min_width=220)
                with gr.Accordion("Advanced", open=False), gr.Row(equal_height=True):
                    seed = gr.Number(
                        0, label="Seed", info=INFO["seed"], precision=0, minimum=0, maximum=2**31 - 1, min_width=220
                    )
                    size = gr.Dropdown(
                        list(studio.sizes), value=studio.usual_size, label="Size", info=INFO["size"], min_width=220
                    )
                    background = gr.Dropdown(
                        list(BACKGROUNDS), label="Background", info=INFO["background"], min_width=220
                    )
                    align = gr.Dropdown(
                        list(get_args(AlignMethod)),
                        value="bones",
                        label="Fit the motion by",
                        info=INFO["align"],
                        min_width=220,
                    )
                    person = gr.Dropdown(
                        ["largest", "center", "1", "2", "3"],
                        label="Person in the video",
                        info=INFO["person"],
                        min_width=220,
                    )
                    hands = gr.Dropdown(list(get_args(Switch)), label="Hands", visible="hands" in parts)
                    face = gr.Dropdown(list(get_args(Switch)), label="Face", visible="face" in parts)
                    audio = gr.Dropdown(
                        list(get_args(Switch)), label="The video's sound", info=INFO["audio"], min_width=220
                    )
            with gr.Column():
                with gr.Row(elem_id="run"):
                    preview_button = gr.Button("Look at the poses", min_width=200)
                    start_button = gr.Button("Animate", variant="primary", min_width=110)
                    cancel_button = gr.Button("Cancel", variant="stop", min_width=110)
                status = gr.Textbox("Ready", label="Progress", interactive=False, max_lines=8, elem_id="status")
                box: dict[str, Any] = {"visible": False, "buttons": []}
                preview = gr.Image(label="Preview", interactive=False, height=320, **box)
                video: dict[str, Any] = {"visible": False, "autoplay": True, "loop": True}
                result = gr.Video(label="Result", height=320, elem_id="result", **video)
                side_by_side = gr.Video(label="Picture | pose | result", height=260, **video)
                reference_pose = gr.Image(label="Cropped picture and its pose", interactive=False, height=260, **box)
                poses = gr.Video(label="Pose: detected | fitted", height=260, buttons=[], elem_id="poses", **video)
        driving.change(play, driving, player, queue=False, **hidden)
        example.click(lambda sample: sample, example, [reference, driving], **hidden)
        for button in (preview_button, start_button):
            button.click(None, None, status, js=SHOW_STATUS, api_visibility="private")
        inputs = [reference, driving, frames, person, align, size, hands, face]  # in the order of `Request`'s fields
        outputs = [status, preview, result, side_by_side, reference_pose, poses]
        previewing = preview_button.click(_run(studio, studio.preview_poses), inputs, outputs, **device)
        animating = start_button.click(
            _run(studio, studio.animate),
            [*inputs, steps, guidance, speed, seed, audio, background],
            outputs,
            **device,
        )
        # Gradio removes waiting events from its queue, but does not stop a running one.
        cancel_button.click(_cancel(studio), None, status, cancels=[previewing, animating], queue=False, **hidden)
    return blocks.queue(max_size=queue_size, api_open=False)


def play(path: str | None) -> Any:
    """A player for an uploaded video; by Gradio's own, the server would decode the file."""
    import gradio as gr

    if not path or pathlib.Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        return gr.update(value="", visible=False)
    address = html.escape(f"gradio_api/file={urllib.parse.quote(path)}")
    return gr.update(value=f'<video src="{address}" controls autoplay loop muted playsinline></video>', visible=True)


def _run(studio: Studio, work: Callable[[Request, str], Iterator[Update]]) -> Callable:
    import gradio as gr

    def shown(value: str | None) -> Any:
        return gr.update(value=value, visible=True) if value else gr.skip()

    def run(*fields, session):
        for update in work(Request(*fields), session):
            preview, picture = (
                None if image is None else studio.save_image(image, session)
                for image in (update.preview, update.reference)
            )
            # The preview and the result take turns.
            yield (
                in_words(update.text),
                gr.update(visible=False) if update.video else shown(preview),
                gr.update(visible=False) if preview else shown(update.video),
                *map(shown, (update.side_by_side, picture, update.poses)),
            )

    return _with_user_errors(run, outputs=6)


def _cancel(studio: Studio) -> Callable:
    def cancel(session):
        yield studio.cancel(session)

    return _with_user_errors(cancel, outputs=1)


def _end_session(studio: Studio) -> Callable:
    import gradio as gr

    def end_session(request):
        studio.end_session(request.session_hash)

    end_session.__annotations__["request"] = gr.Request
    return end_session


def _with_user_errors(event: Callable[..., Iterator], outputs: int) -> Callable:
    """Shows a UserError to the visitor, in the first output and as an alert; other errors are not shown."""
    import gradio as gr

    def wrapped(request, *fields):
        try:
            yield from event(*fields, session=request.session_hash or "")
        except UserError as error:
            text = in_words(str(error))
            yield (text, *[gr.skip()] * (outputs - 1)) if outputs > 1 else text
            raise gr.Error(text, title="That did not work", print_exception=False) from None

    wrapped.__annotations__["request"] = gr.Request  # Gradio then passes it
    return wrapped


def in_words(text: str) -> str:
    """A message in which the page's labels replace the flags of the command."""
    text = text.replace(DETECTOR_ADVICE, "")
    for flag, label in LABELS.items():
        text = re.sub(rf"(?<![\w=-]){re.escape(flag)}(?![\w-])", label, text)
    return text


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

    theme = Soft(font="system-ui")
    theme.block_info_text_color = "*neutral_600"  # its own is too pale to read; theme.set would reset its others
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port or None,
            auth=(USER, password) if password else None,
            auth_message=f"The user name is {USER}.",
            max_file_size=studio.store.max_bytes,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            allowed_paths=[],
            footer_links=[],
            ssr_mode=False,
            theme=theme,
            css=CSS,
            app_kwargs={"middleware": [Middleware(UploadGuard, store=studio.store)]},
        )
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be served (another program may use it): choose another port"
        ) from error
    return address
