"""How well hands and faces are found offline: against exact joints, and beside MediaPipe's own holistic solution.

    python benchmarks/hands_face.py --clips 12
    python benchmarks/hands_face.py --media cam01.mp4 cam02.mp4 person.jpg --mediapipe env/bin/python

Renders people at 1024x768, whose 21 joints of a hand are known; their faces have no joints. `--mediapipe` names the
Python of an environment of its own (`pip install mediapipe==0.10.21`, which wants numpy < 2): it gets the same frames,
and those of `--media`; each program finds the body itself. Prints Markdown; lengths are in torsos, times those of the
processor, over all threads, which other work on the machine hardly changes.
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
    began = time.process_time()
    for index, frame in enumerate(frames):
        result = holistic.process(frame)
        for name in points:
            landmarks = getattr(result, name + "_landmarks")
            if landmarks:
                found[name][index] = [[point.x, point.y] for point in landmarks.landmark]
np.savez(sys.argv[2], seconds=(time.process_time() - began) / len(frames), **found)
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


def mediapipe_result(frames: np.ndarray, python: pathlib.Path) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        given, result = f"{folder}/frames.npy", f"{folder}/found.npz"
        np.save(given, frames)
        subprocess.run([python, "-c", MEDIAPIPE, given, result], check=True, stderr=subprocess.DEVNULL)
        return dict(np.load(result))


def rendered(args: Arguments) -> None:
    people = MocapPeople("test_both", seed=8, height=HEIGHT, width=WIDTH)
    programs = {"here": [], "MediaPipe": []} if args.mediapipe else {"here": []}  # rows of `hand_scores`
    detect(people.clip(0, 1).frames, hands=True, face=True)  # loads the models
    for index in range(args.clips):
        clip = people.clip(index, args.frames)
        began = time.process_time()
        ours = detect(clip.frames, hands=True, face=True)
        seconds = (time.process_time() - began) / len(clip.frames)
        found, face = ours.hands_confidence.any(-1), ours.face_confidence.any(-1)
        programs["here"].append((*hand_scores(clip.keypoints, ours.hands, found), face, seconds))
        if args.mediapipe:
            theirs = mediapipe_result(clip.frames, args.mediapipe)
            hands = np.stack([theirs[f"{side}_hand"] for side in SIDES], 1)
            found, face = (np.isfinite(points[..., 0, 0]) for points in (hands, theirs["face"]))
            programs["MediaPipe"].append((*hand_scores(clip.keypoints, hands, found), face, theirs["seconds"]))
    columns = ["rendered hands", "seen", "found of seen", "median error", "PCK@0.1", "PCK@0.2", "PCK@0.1 of seen",
               "on the other side", "faces found", "CPU ms/frame"]  # fmt: skip
    print("|", " | ".join(columns), "|\n|", " | ".join(["---"] * len(columns)), "|")
    for name, rows in programs.items():
        hit, errors, crossed, faces = (np.concatenate(part) for part in list(zip(*rows, strict=True))[:4])
        near, far = (errors < 0.1).mean(), (errors < 0.2).mean()
        print(
            f"| {name} | {len(hit)} | {hit.mean():.2f} | {np.median(errors):.3f} | {near:.2f} | {far:.2f} | "
            f"{near * hit.mean():.2f} | {crossed.mean():.3f} | {faces.mean():.2f} | "
            f"{1000 * np.median([row[4] for row in rows]):.0f} |"
        )
    print()


def hand_scores(truth: Keypoints, hands: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the hands [n] that can be seen: which are found; of those [m]: errors of the points, and which lie on the
    other hand."""
    size = np.float32((WIDTH, HEIGHT))
    shown = truth.hands_confidence.mean(-1) > 0.9
    own, other = (np.linalg.norm((hands - true) * size, axis=-1) for true in (truth.hands, truth.hands[:, ::-1]))
    error = own / torsos(truth, size)[:, None, None]
    return found[shown], error[shown & found], (other.mean(-1) < own.mean(-1))[shown & found]


def beside_mediapipe(path: pathlib.Path, args: Arguments) -> None:
    still = path.suffix.lower() in IMAGE_SUFFIXES
    frames = read_image(path)[None] if still else np.stack(list(iter_frames(path, frames=args.media_frames)))
    theirs = mediapipe_result(frames, args.mediapipe)
    detect(frames[:1], hands=True, face=True)
    seconds = []
    for parts in ({}, {"hands": True, "face": True}):
        began = time.process_time()
        ours = detect(frames, **parts)
        seconds.append((time.process_time() - began) / len(frames))
    size = np.float32(frames.shape[2:0:-1])
    torso = np.median(torsos(ours, size))
    parts = [
        (f"{side} hand", ours.hands[:, i], ours.hands_confidence[:, i], theirs[f"{side}_hand"])
        for i, side in enumerate(SIDES)
    ]
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
        columns = ["", "", "found by us", "by MediaPipe", "agree", "distance", "CPU ms/frame, body", "all", "MediaPipe"]
        print("|", " | ".join(columns), "|\n|", " | ".join(["---"] * len(columns)), "|")
    for path in args.media:
        beside_mediapipe(path, args)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
