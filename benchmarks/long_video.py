"""Memory and time of long videos: a driving video of so many frames, each length in a process of its own.

    python benchmarks/long_video.py [--checkpoint tiny] [--frames 48 1000] [--steps 2] [--compose off]

The driving video is the bundled one, played forwards and backwards and enlarged to 720 lines; detection, retargeting,
drawing, denoising, decoding and writing are all in. "Device" is the most that lives in JAX arrays while a window is
denoised or frames are decoded, parameters included; "process" is the largest resident set, the compiler's included.
"Drift" is how far the mean color of the background and of the person move in 100 frames, in levels of 255
(`evaluation.scores.color_drift`, the person being capsules around its bones). Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import cv2
import jax
import numpy as np
import tyro

from animate_jax.config import Compose
from animate_jax.evaluation.scores import color_drift
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.warp import capsules
from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.read import iter_frames, read_video
from animate_jax.video.write import write_video

DRIFT_FRAMES = 250  # that are looked at, at most


@dataclasses.dataclass(frozen=True)
class Arguments:
    checkpoint: str = "tiny"
    frames: tuple[int, ...] = (48, 1000)
    steps: int = 2
    compose: Compose = "auto"
    driving: str = ""  # set in the processes that this one starts


def write_driving(path: pathlib.Path, frames: int) -> None:
    video, rate = read_video(EXAMPLE / "driving.mp4")
    there_and_back = itertools.cycle([*range(len(video)), *range(len(video) - 2, 0, -1)])
    size = round(720 * video.shape[2] / video.shape[1]), 720
    write_video(path, (cv2.resize(video[i], size) for i in itertools.islice(there_and_back, frames)), rate)


def measure(args: Arguments) -> dict[str, float]:
    """One video, in this process."""
    pipeline, most = Pipeline.from_pretrained(args.checkpoint), 0

    def watched(function):
        def call(*inputs):
            nonlocal most
            most = max(most, sum(array.nbytes for array in jax.live_arrays()))
            return function(*inputs)

        return call

    pipeline._run_unet, pipeline._decode = watched(pipeline._run_unet), watched(pipeline._decode)
    started = time.monotonic()
    stream = pipeline.stream(
        EXAMPLE / "reference.png",
        args.driving,
        steps=args.steps,
        compose=args.compose,
        progress=sys.stderr.isatty(),
    )
    result = pathlib.Path(args.driving).with_name("result.mp4")
    stream.save(result)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.monotonic() - started
    background, person = drift(result, stream.poses.keypoints)
    return {
        "frames": len(stream),
        "device": most,
        "process": peak,
        "seconds": seconds,
        "background": background,
        "person": person,
    }


def drift(video: pathlib.Path, keypoints: Keypoints) -> tuple[float, float]:
    step = -(-len(keypoints) // DRIFT_FRAMES)
    frames = np.stack(list(itertools.islice(iter_frames(video), 0, None, step)))
    people = keypoints[::step]
    masks = np.stack([capsules(people[i], *frames.shape[1:3]) for i in range(len(frames))])
    return color_drift(frames, masks, step)


def main(args: Arguments) -> None:
    if args.driving:
        print(json.dumps(measure(args)))
        return
    print(f"{args.steps} steps.\n\n| frames | device | process | time | background drift | person drift |")
    print("|---|---|---|---|---|---|")
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            driving = pathlib.Path(folder) / "driving.mp4"
            write_driving(driving, frames)
            command = [sys.executable, __file__, "--checkpoint", args.checkpoint, "--steps", str(args.steps)]
            command += ["--compose", args.compose]
            done = subprocess.run([*command, "--driving", str(driving)], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {found['frames']} | {found['device'] / 2**20:.1f} MiB | {found['process'] / 2**20:.0f} MiB "
            f"| {found['seconds']:.0f} s | {found['background']:.2f} | {found['person']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
