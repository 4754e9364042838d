"""How well a motion of one body is carried over to another: joints of two people in the same motion.

    python benchmarks/retarget.py [--split test_both] [--pairs 24]

Person A does a motion before a camera; person B, of another body, does the same motion before the same camera,
which tells where every joint of B truly is. What a method makes of A's keypoints and ONE picture of B is
compared with that. In the first table B's picture shows the motion's first frame; in the second B stands in a frame
of another motion, facing the camera more or less, at the place where the motion starts. The third table makes the
second harder: B is drawn with a large head and short limbs, or is a giant of long limbs; joints are as uncertain as
detected ones; the camera looks down; B's picture ends at the waist. In the last one frame of A's motion shows nobody.
Prints Markdown.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tyro

from animate_jax.data.mocap_people import raster
from animate_jax.data.mocap_people.motion import ACROBATIC, Segment, axis_angle_to_matrix, heading
from animate_jax.data.mocap_people.scene import NUM_IDENTITIES, Camera, MocapPeople
from animate_jax.pose.align import ALIGN_METHODS, align_motion, keep_inside
from animate_jax.pose.keypoints import Keypoints

BONES = (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0)
ANKLES = [15, 16]  # of COCO-17
FRAMES, HEIGHT, WIDTH = 48, 512, 384
LOST = 7  # the frame that shows nobody
BELOW_WAIST = [8, 9, 10, 11, 12, 13]
TREE = (  # child, parent, what scales the bone between them; from the neck outwards
    *((p, 1, "trunk") for p in (2, 5, 8, 11)), (0, 1, "head"), *((p, 0, "head") for p in (14, 15, 16, 17)),
    *((p, q, "arm") for p, q in ((3, 2), (4, 3), (6, 5), (7, 6))),
    *((p, q, "leg") for p, q in ((9, 8), (10, 9), (12, 11), (13, 12))),
)  # fmt: skip
BUILDS = {  # bones of figures that are no people, in a person's
    "drawn": {"trunk": 1.0, "head": 2.2, "arm": 0.75, "leg": 0.7},
    "odd": {"trunk": 0.8, "head": 0.8, "arm": 1.4, "leg": 1.3},
}
LOOKS_DOWN = 0.56  # radians: 32 degrees
NOISE, DROPPED = 0.03, 0.03  # of detected joints: standard deviation in torsos, share that is missing


@dataclasses.dataclass(frozen=True)
class Arguments:
    split: str = "test_both"  # whose bodies and motions; the constants of retarget.py were chosen on "train"
    pairs: int = 24


@dataclasses.dataclass(frozen=True)
class Case:
    driving: Keypoints
    truth: Keypoints
    same_pose: Keypoints  # references: one frame each
    other_pose: Keypoints
    motion: str


def case(people: MocapPeople, index: int, pitch: float | None = None) -> Case:
    rng = np.random.default_rng((index, 17))
    a, b = (people._make_person(int(rng.integers(NUM_IDENTITIES[people._identity_split])))[1] for _ in range(2))
    segment = on_floor(people, people._motion_split, a, rng)
    points, coco, hands = joints(people, a, segment)
    camera = still_camera(rng, segment, points, pitch)
    # Another pose, turned to the camera up to half a radian, where the motion starts.
    other = on_floor(people, "train", b, rng)
    ahead = camera.views[0, 2, :3]
    turn = np.arctan2(-ahead[0], ahead[1]) + rng.uniform(-0.5, 0.5) - heading(other.rotations[:1, 0])
    turned = axis_angle_to_matrix(np.array([0.0, 0, 1]), turn)[:, None] @ other.rotations[:1]
    truth = project(people, camera, *joints(people, b, segment)[1:])
    still = project(people, camera, *joints(people, b, Segment(other.name, turned, other.root[:1]))[1:])[0]
    return Case(project(people, camera, coco, hands), truth, truth[0], still, segment.name)


def on_floor(people: MocapPeople, split: str, body, rng: np.random.Generator) -> Segment:
    """A motion that starts at the origin with a foot on the floor, not in the air or on a climbing frame."""
    while True:
        segment = people._motions.sample_segment(split, rng, FRAMES, people.fps)
        _, coco, _ = joints(people, body, segment)
        if segment.name not in ACROBATIC and coco[0, ANKLES, 2].min() < 0.15:
            return dataclasses.replace(segment, root=segment.root - segment.root[:1] * [1, 1, 0])


def still_camera(rng: np.random.Generator, segment: Segment, points, pitch: float | None = None) -> Camera:
    """Holds all vertices [frames, n, 3]; looks at the person's front, up to a radian from the side, or anywhere."""
    yaw = heading(segment.rotations[:1, 0])[0] + (rng.uniform(-1, 1) if rng.random() < 0.8 else rng.uniform(-3, 3))
    usual = rng.normal(0.08, 0.07)
    pitch = usual if pitch is None else pitch
    ahead = np.array([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.cross(ahead, [0, 0, 1]) / np.cos(pitch)
    axes = np.stack([right, np.cross(ahead, right), ahead])
    points = points[:, ::8].reshape(-1, 3).astype(np.float64)
    target = (points.min(0) + points.max(0)) / 2
    local = (points - target) @ axes.T
    focal = HEIGHT / 2 / np.tan(np.radians(rng.uniform(20, 38)) / 2)
    half = np.array([WIDTH, HEIGHT]) / 2 * 0.9
    distance = (focal * np.abs(local[:, :2]) / half - local[:, 2:]).max()
    eye = target - distance * ahead
    view = np.concatenate([axes, -(axes @ eye)[:, None]], 1).astype(np.float32)
    lens = np.array([focal, WIDTH / 2, HEIGHT / 2], np.float32)
    return Camera(np.repeat(view[None], FRAMES, 0), np.repeat(eye[None], FRAMES, 0), lens)


def joints(people: MocapPeople, body, segment: Segment):
    """Vertices, COCO-17 joints and hands of a body in a motion, in meters."""
    matrices = people._body_model.skinning_matrices(body, segment)
    rest, bones, weights, regressor = body.joints
    moved = raster.skin(rest, bones, weights, matrices)
    coco = (moved[:, :-42].reshape(len(moved), 17, -1, 3) * regressor[..., None]).sum(2)
    return raster.skin(body.rest, body.bones, body.weights, matrices), coco, moved[:, -42:]


def project(people: MocapPeople, camera, coco, hands) -> Keypoints:
    """Keypoints with nothing in front of anything and no edge of the picture: everything is seen."""
    nothing = np.zeros((people.height * 2, people.width * 2), np.float32)
    seen = people._keypoints(coco, hands, camera, [nothing] * len(coco))
    ones = {f"{name}_confidence": np.ones_like(getattr(seen, f"{name}_confidence")) for name in ("body", "hands")}
    return dataclasses.replace(seen, **ones)


def scores(result: Keypoints, truth: Keypoints) -> np.ndarray:
    """PCK@0.1, PCK@0.2 of the torso, mean distance in torsos, mean relative error of bone lengths."""
    size = np.array([WIDTH, HEIGHT])
    found, true = result.body * size, truth.body * size
    torso = np.linalg.norm(true[:, 1] - true[:, [8, 11]].mean(1), axis=-1).max()
    distance = np.linalg.norm(found - true, axis=-1) / torso
    a, b = np.array(BONES).T
    lengths, true_lengths = (np.linalg.norm(points[:, a] - points[:, b], axis=-1) for points in (found, true))
    long = true_lengths > 0.15 * torso  # a bone that points at the camera has no length to compare
    error = np.abs(lengths / true_lengths - 1)[long].mean()
    return np.array([(distance < 0.1).mean(), (distance < 0.2).mean(), distance.mean(), error])


def without(keypoints: Keypoints, place) -> Keypoints:
    """The body points at `place` are missing."""
    confidence = keypoints.body_confidence.copy()
    confidence[place] = 0
    return dataclasses.replace(keypoints, body_confidence=confidence)


def inside(result: Keypoints) -> float:
    """Share of the joints that lie in the picture."""
    return float(((result.body > 0) & (result.body < 1)).all(-1).mean())


def built(keypoints: Keypoints, build: dict[str, float]) -> Keypoints:
    """The same pose of a figure with other bones, standing where the person stood: in the middle of its feet."""
    size = np.array([WIDTH, HEIGHT])
    before = keypoints.body * size
    after = before.copy()
    for child, parent, bone in TREE:
        after[..., child, :] = after[..., parent, :] + build[bone] * (before[..., child, :] - before[..., parent, :])
    feet = [10, 13]
    stand = lambda points: np.stack([points[..., feet, 0].mean(-1), points[..., feet, 1].max(-1)], -1)  # noqa: E731
    after = after + (stand(before) - stand(after))[..., None, :]
    return dataclasses.replace(keypoints, body=(after / size).astype(np.float32))


def detected(keypoints: Keypoints, rng: np.random.Generator) -> Keypoints:
    """As uncertain as a detector's."""
    size = np.array([WIDTH, HEIGHT])
    torso = np.linalg.norm((keypoints.body[..., 1, :] - keypoints.body[..., [8, 11], :].mean(-2)) * size, axis=-1).max()
    body = keypoints.body + NOISE * torso * rng.normal(size=keypoints.body.shape) / size
    seen = rng.random(keypoints.body_confidence.shape) >= DROPPED
    return dataclasses.replace(keypoints, body=body.astype(np.float32), body_confidence=seen.astype(np.float32))


def harder(cases: list[Case], down: list[Case]) -> dict[str, list[tuple[Keypoints, Keypoints, Keypoints]]]:
    """Name -> A's motion, B's picture and where B truly is, of every case."""
    rng = np.random.default_rng(0)
    return {
        "as it is": [(c.driving, c.other_pose, c.truth) for c in cases],
        **{
            f"{name} figure": [(c.driving, built(c.other_pose, build), built(c.truth, build)) for c in cases]
            for name, build in BUILDS.items()
        },
        "detected joints": [(detected(c.driving, rng), detected(c.other_pose, rng), c.truth) for c in cases],
        "camera looks down": [(c.driving, c.other_pose, c.truth) for c in down],
        "cut at the waist": [(c.driving, without(c.other_pose, BELOW_WAIST), c.truth) for c in cases],
    }


def print_harder(cases: list[Case], down: list[Case]) -> None:
    print("\nB's picture: another pose, and harder\n")
    print(f"| | {' | '.join(ALIGN_METHODS)} |\n|---|{'---|' * len(ALIGN_METHODS)}")
    for name, inputs in harder(cases, down).items():
        cells = []
        for method in ALIGN_METHODS:
            found = []
            for driving, reference, truth in inputs:
                result = align_motion(driving, (HEIGHT, WIDTH), reference, (HEIGHT, WIDTH), method)
                result = keep_inside(result, reference) if method == "bones" else result
                if name == "cut at the waist":  # nobody sees the legs
                    keep = np.setdiff1d(np.arange(18), BELOW_WAIST)
                    distance = np.linalg.norm((result.body - truth.body)[:, keep] * [WIDTH, HEIGHT], axis=-1)
                    spine = (truth.body[:, 1] - truth.body[:, [8, 11]].mean(1)) * [WIDTH, HEIGHT]
                    torso = np.linalg.norm(spine, axis=-1).max()
                    within = (result.body > 0) & (result.body < 1)
                    found.append(((distance < 0.1 * torso).mean(), within[:, keep].all(-1).mean()))
                else:
                    found.append((scores(result, truth)[0], inside(result)))
            pck, share = np.mean(found, 0)
            cells.append(f"{pck:.3f} ({share:.3f})")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def print_lost_frames(cases: list[Case]) -> None:
    print("\nOne frame of A's motion shows nobody\n")
    print("| B's picture | PCK@0.1 of the other frames | with every frame | videos with NaN |\n|---|---|---|---|")
    others = np.arange(FRAMES) != LOST
    for picture, name in (("the first frame", "same_pose"), ("another pose", "other_pose")):
        for cut, missing in (("", []), (", cut at the waist", BELOW_WAIST)):
            found, bad = [], 0
            for each in cases:
                reference = without(getattr(each, name), missing)
                for driving in (without(each.driving, LOST), each.driving):
                    result = align_motion(driving, (HEIGHT, WIDTH), reference, (HEIGHT, WIDTH))
                    bad += not np.isfinite(result.body).all()
                    found.append(scores(result[others], each.truth[others])[0])
            lost, whole = np.reshape(found, (-1, 2)).mean(0)
            print(f"| {picture}{cut} | {lost:.3f} | {whole:.3f} | {bad} of {len(cases)} |")


def print_hands(cases: list[Case]) -> None:
    print(
        "\nHands\n\n| B's picture | size error, root mean square | points / hand | points within 0.1 hands |\n"
        + "|---" * 4
        + "|"
    )
    size = np.array([WIDTH, HEIGHT])
    for picture, name in (("the first frame", "same_pose"), ("another pose", "other_pose")):
        for hidden, parts in (("", ()), (", hands not seen", ("hands",))):
            errors, points = [], []
            for each in cases:
                reference = getattr(each, name).without(*parts)
                result = align_motion(each.driving, (HEIGHT, WIDTH), reference, (HEIGHT, WIDTH))
                found, true = ((k.hands - k.hands[:, :, :1]) * size for k in (result, each.truth))
                spread, true_spread = (np.linalg.norm(hands, axis=-1).mean(-1) for hands in (found, true))
                errors.append(np.log(spread / true_spread).mean())
                length = np.linalg.norm(true, axis=-1).max()
                points.append(np.linalg.norm(found - true, axis=-1)[..., 1:].ravel() / length)
            points = np.concatenate(points)
            print(
                f"| {picture}{hidden} | {np.sqrt(np.mean(np.square(errors))):.3f} | {points.mean():.3f} | "
                f"{(points < 0.1).mean():.3f} |"
            )


def main(args: Arguments) -> None:
    people = MocapPeople(args.split, height=HEIGHT, width=WIDTH)
    cases = [case(people, index) for index in range(args.pairs)]
    print(f"{args.pairs} pairs of `{args.split}`, motions: {', '.join(sorted({c.motion for c in cases}))}")
    for title, name in (("B's picture: the first frame", "same_pose"), ("B's picture: another pose", "other_pose")):
        print(f"\n{title}\n\n| method | PCK@0.1 | PCK@0.2 | distance / torso | bone length error | best of pairs |")
        print("|---|---|---|---|---|---|")
        size = HEIGHT, WIDTH
        table = [
            [scores(align_motion(case.driving, size, getattr(case, name), size, method), case.truth) for case in cases]
            for method in ALIGN_METHODS
        ]
        table = np.array(table)
        best = table[..., 2].argmin(0)
        for row, (method, results) in enumerate(zip(ALIGN_METHODS, table, strict=True)):
            pck1, pck2, distance, bones = results.mean(0)
            wins = (best == row).sum()
            print(f"| {method} | {pck1:.3f} | {pck2:.3f} | {distance:.3f} | {bones:.3f} | {wins} of {len(cases)} |")
    print_harder(cases, [case(people, index, LOOKS_DOWN) for index in range(args.pairs)])
    print_lost_frames(cases)
    print_hands(cases)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
