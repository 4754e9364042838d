"""Memory and time of long videos: a driving video of so many frames, each length in a process of its own.

    python benchmarks/long_video.py [--checkpoint tiny] [--frames 48 1000] [--steps 2]

The driving video is the bundled one, played forwards and backwards and enlarged to 720 lines; detection, retargeting,
drawing, denoising, decoding and writing are all in. "Device" is the most that lives in JAX arrays while a window is
denoised or frames are decoded, parameters included; "process" is the largest resident set, the compiler's included.
Prints Markdown.
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
import tyro

from animate_jax.sampling.inputs import EXAMPLE
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.video.read import read_video
from animate_jax.video.write import write_video


@dataclasses.dataclass(frozen=True)
class Arguments:
    checkpoint: str = "tiny"
    frames: tuple[int, ...] = (48, 1000)
    steps: int = 2
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
    stream = pipeline.stream(EXAMPLE / "reference.png", args.driving, steps=args.steps, progress=sys.stderr.isatty())
    stream.save(pathlib.Path(args.driving).with_name("result.mp4"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"frames": len(stream), "device": most, "process": peak, "seconds": time.monotonic() - started}


def main(args: Arguments) -> None:
    if args.driving:
        print(json.dumps(measure(args)))
        return
    print(f"{args.steps} steps.\n\n| frames | device | process | time |\n|---|---|---|---|")
    for frames in args.frames:
        with tempfile.TemporaryDirectory() as folder:
            driving = pathlib.Path(folder) / "driving.mp4"
            write_driving(driving, frames)
            command = [sys.executable, __file__, "--checkpoint", args.checkpoint, "--steps", str(args.steps)]
            done = subprocess.run([*command, "--driving", str(driving)], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {found['frames']} | {found['device'] / 2**20:.1f} MiB | {found['process'] / 2**20:.0f} MiB "
            f"| {found['seconds']:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
