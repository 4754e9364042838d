"""How well hands and faces are found offline: against exact joints, and beside MediaPipe's own holistic solution.

    python benchmarks/hands_face.py --clips 12
    python benchmarks/hands_face.py --clips 0 --media cam01.mp4 cam02.mp4 person.jpg --mediapipe env/bin/python

The first renders people at 1024x768, whose 21 joints of a hand are known. The second needs an environment of its own
(`pip install mediapipe==0.10.21`, which wants numpy < 2) and runs both on the same frames; MediaPipe's body points
decide nothing here: each program finds the body itself. Prints Markdown; lengths are in torsos.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import tempfile
import time

import numpy as np
import tyro

from animate_jax.data.mocap_people.scene import MocapPeople
from animate_jax.pose.detect import detect
from animate_jax.pose.hands_face import FACE_68
from animate_jax.pose.keypoints import Keypoints
from animate_jax.video.images import read_image
from animate_jax.video.open import IMAGE_SUFFIXES
from animate_jax.video.read import iter_frames

HEIGHT, WIDTH = 1024, 768
SIDES = "left", "right"

# Runs in the other environment: keypoints in units of the picture, NaN where nothing was found.
MEDIAPIPE = """
import sys, time, numpy as np, mediapipe as mp
frames = np.load(sys.argv[1])
points = {"left_hand": 21, "right_hand": 21, "face": 468}
found = {name: np.full((len(frames), count, 2), np.nan) for name, count in points.items()}
with mp.solutions.holistic.Holistic(static_image_mode=len(frames) == 1, model_complexity=1) as holistic:
    holistic.process(frames[0])
    began = time.monotonic()
    for index, frame in enumerate(frames):
        result = holistic.process(frame)
        for name in points:
            landmarks = getattr(result, name + "_landmarks")
            if landmarks:
                found[name][index] = [[point.x, point.y] for point in landmarks.landmark]
np.savez(sys.argv[2], seconds=(time.monotonic() - began) / len(frames), **found)
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    clips: int = 12  # rendered ones
    frames: int = 12  # of each
    media: tuple[pathlib.Path, ...] = ()  # videos and pictures for the comparison
    media_frames: int = 60  # of each
    mediapipe: pathlib.Path | None = None  # Python of an environment with mediapipe


def torsos(keypoints: Keypoints, size: np.ndarray) -> np.ndarray:
    """In pixels; of a person without hips, the width of the shoulders, which is about as long."""
    hips = (keypoints.body[:, 8] + keypoints.body[:, 11]) / 2
    ends = np.where(
        keypoints.body_confidence[:, [8, 11]].all(-1)[:, None, None],
        np.stack([keypoints.body[:, 1], hips], 1),
        keypoints.body[:, [2, 5]],
    )
    return np.linalg.norm((ends[:, 0] - ends[:, 1]) * size, axis=-1)


def rendered(args: Arguments) -> None:
    people, size = MocapPeople("test_both", seed=8, height=HEIGHT, width=WIDTH), np.float32((WIDTH, HEIGHT))
    visible, found, errors, crossed, seconds, faces = [], [], [], [], [], []
    for index in range(args.clips):
        clip = people.clip(index, args.frames)
        detect(clip.frames[:1], hands=True, face=True)
        began = time.monotonic()
        ours = detect(clip.frames, hands=True, face=True)
        seconds.append((time.monotonic() - began) / len(clip.frames))
        shown = clip.keypoints.hands_confidence.mean(-1) > 0.9
        hit = ours.hands_confidence.any(-1)
        visible.append(shown), found.append(hit), faces.append(ours.face_confidence.any(-1))
        apart = lambda true: np.linalg.norm((ours.hands - true) * size, axis=-1)  # noqa: B023, E731
        own, other = (apart(hands).mean(-1) for hands in (clip.keypoints.hands, clip.keypoints.hands[:, ::-1]))
        torso = torsos(clip.keypoints, size)[:, None]
        errors.append((apart(clip.keypoints.hands) / torso[..., None])[shown & hit])
        crossed.append((other < own)[shown & hit])
    visible, found, errors, crossed = map(np.concatenate, (visible, found, errors, crossed))
    print("| rendered hands | seen | found of seen | median error | PCK@0.1 | PCK@0.2 | on the other side | ms/frame |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print(f"| {args.clips} clips | {visible.sum()} | {found[visible].mean():.2f} | {np.median(errors):.3f} | "
          f"{(errors < 0.1).mean():.2f} | {(errors < 0.2).mean():.2f} | {crossed.mean():.3f} | "
          f"{1000 * np.median(seconds):.0f} |")  # fmt: skip
    print(f"\nFaces are found in {np.concatenate(faces).mean():.2f} of these frames (their joints are not rendered).\n")


def beside_mediapipe(path: pathlib.Path, args: Arguments) -> None:
    still = path.suffix.lower() in IMAGE_SUFFIXES
    frames = read_image(path)[None] if still else np.stack(list(iter_frames(path, frames=args.media_frames)))
    with tempfile.TemporaryDirectory() as folder:
        given, result = f"{folder}/frames.npy", f"{folder}/found.npz"
        np.save(given, frames)
        subprocess.run([args.mediapipe, "-c", MEDIAPIPE, given, result], check=True, stderr=subprocess.DEVNULL)
        theirs = dict(np.load(result))
    detect(frames[:1], hands=True, face=True)
    seconds = []
    for parts in ({}, {"hands": True, "face": True}):
        began = time.monotonic()
        ours = detect(frames, **parts)
        seconds.append((time.monotonic() - began) / len(frames))
    size = np.float32(frames.shape[2:0:-1])
    torso = np.median(torsos(ours, size))
    parts = [(f"{side} hand", ours.hands[:, i], ours.hands_confidence[:, i], theirs[f"{side}_hand"])
             for i, side in enumerate(SIDES)]  # fmt: skip
    parts.append(("face", ours.face, ours.face_confidence, theirs["face"][:, list(FACE_68)]))
    for name, points, confidence, other in parts:
        mine, their = confidence.any(-1), np.isfinite(other).all((-1, -2))
        both = mine & their
        error = np.linalg.norm((points - other)[both] * size, axis=-1).mean(-1) / torso
        shares = [f"{share.mean():.2f}" for share in (mine, their, mine == their)]
        distance = f"{np.median(error):.3f}" if both.any() else "–"
        times = [f"{1000 * each:.0f}" for each in (*seconds, theirs["seconds"])]
        print("|", " | ".join([path.name, name, *shares, distance, *times]), "|")


def main(args: Arguments) -> None:
    if args.clips:
        rendered(args)
    if args.media:
        columns = ["", "", "found by us", "by MediaPipe", "agree", "distance", "ms/frame, body", "all", "MediaPipe"]
        print("|", " | ".join(columns), "|\n|", " | ".join(["---"] * len(columns)), "|")
    for path in args.media:
        beside_mediapipe(path, args)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
