"""A motion of one body becomes the same motion of another."""

import dataclasses

import numpy as np
import pytest

from animate_jax.pose.align import ALIGN_METHODS, align_motion, align_none
from animate_jax.pose.keypoints import Keypoints, to_pixels
from animate_jax.pose.proportions import FLAT_PALM, PALM
from animate_jax.pose.retarget import retarget

CANVAS = (400, 300)  # height, width
HIPS, NECK, ANKLES = [8, 11], 1, [10, 13]
LIMBS = {"arm": ((2, 3, 4), (5, 6, 7)), "leg": ((8, 9, 10), (11, 12, 13))}


def puppet(frames=12, seed=0, arm=1.0, leg=1.0, torso=1.0, shoulders=1.0, size=1.0, at=(150, 330), swing=1.0):
    """Somebody flat who waves arms and legs and walks to the right, standing on y = 330 with one foot at least.

    The same seed is the same motion of another body; ways are as long as legs. Sizes are pixels.
    """
    random = np.random.default_rng(seed)
    phase = random.uniform(0, 2 * np.pi, 8)[:, None] + np.linspace(0, 4, frames)
    angle = swing * 0.5 * np.sin(phase)  # of upper arms, forearms, thighs, shins: right and left

    def down(a):
        return np.stack([np.sin(a), np.cos(a)], -1)

    body = np.zeros((frames, 18, 2))
    body[:, NECK] = [0, -80 * torso]
    for side, sign in enumerate((-1, 1)):
        shoulder, elbow, wrist = LIMBS["arm"][side]
        hip, knee, ankle = LIMBS["leg"][side]
        body[:, shoulder] = body[:, NECK] + [sign * 28 * shoulders, 0]
        body[:, elbow] = body[:, shoulder] + 50 * arm * down(sign * 0.3 + angle[side])
        body[:, wrist] = body[:, elbow] + 42 * arm * down(sign * 0.3 + angle[2 + side])
        body[:, hip] = [sign * 15, 0]
        body[:, knee] = body[:, hip] + 65 * leg * down(angle[4 + side])
        body[:, ankle] = body[:, knee] + 62 * leg * down(angle[4 + side] + 0.5 * angle[6 + side])
    body[:, 0] = body[:, NECK] + [0, -32]
    for point, place in ((14, (-6, -7)), (15, (6, -7)), (16, (-12, -2)), (17, (12, -2))):
        body[:, point] = body[:, 0] + place
    body[..., 0] += 6 * leg * np.arange(frames)[:, None]
    body[..., 1] -= body[:, ANKLES, 1].max(1)[:, None]
    points = (body * size + at) / (CANVAS[1], CANVAS[0])
    empty = Keypoints.empty(frames)
    hands = np.repeat(points[:, [7, 4], None], 21, 2) + random.normal(0, 0.02, (1, 2, 21, 2))
    face = points[:, [0]] + random.normal(0, 0.02, (1, 68, 2))
    arrays = {"body": points, "hands": hands, "face": face}
    values = {name: array.astype(np.float32) for name, array in arrays.items()}
    values |= {f"{name}_confidence": np.ones_like(getattr(empty, f"{name}_confidence")) for name in arrays}
    return Keypoints(**values)


def unseen(keypoints: Keypoints, points, frames=slice(None)) -> Keypoints:
    """Confidence 0, and a position that must not matter."""
    body, confidence = keypoints.body.copy(), keypoints.body_confidence.copy()
    rows = np.arange(len(body))[frames]
    body[np.ix_(rows, points)], confidence[np.ix_(rows, points)] = 7, 0
    return dataclasses.replace(keypoints, body=body, body_confidence=confidence)


def distance(a: Keypoints, b: Keypoints, points=slice(None)) -> float:
    """The largest, in torsos."""
    torso = 80 / CANVAS[0]
    return float(np.linalg.norm(a.body[:, points] - b.body[:, points], axis=-1).max() / torso)


def assert_same(a: Keypoints, b: Keypoints, atol=1e-4):
    for name in Keypoints.names():
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol, err_msg=name)


@pytest.mark.parametrize("seed", range(4))
def test_the_same_body_stays_where_it_is(seed):
    clip = puppet(seed=seed)
    assert_same(retarget(clip, CANVAS, clip[0], CANVAS), clip)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_body_in_another_pose_keeps_its_bones(seed):
    clip, reference = puppet(seed=seed), puppet(seed=seed + 10)[0]
    assert distance(retarget(clip, CANVAS, reference, CANVAS), clip) < 0.1


BODIES = [{"leg": 1.15}, {"arm": 0.85, "torso": 1.1}, {"leg": 0.8, "shoulders": 1.2}, {"size": 0.7, "arm": 1.2}]


@pytest.mark.parametrize("body", BODIES)
def test_another_body_in_the_same_pose_is_met_exactly(body):
    clip, truth = puppet(seed=1), puppet(seed=1, **body)
    result = retarget(clip, CANVAS, truth[0], CANVAS)
    assert distance(result, truth, slice(0, 14)) < 0.05
    for other in ("none", "global"):
        assert distance(align_motion(clip, CANVAS, truth[0], CANVAS, other), truth) > 0.1


@pytest.mark.parametrize("body", BODIES)
def test_another_body_in_another_pose_is_met_nearly(body):
    clip, truth, reference = puppet(seed=1), puppet(seed=1, **body), puppet(seed=5, **body)[0]
    errors = {a: distance(align_motion(clip, CANVAS, reference, CANVAS, a), truth, slice(0, 14)) for a in ALIGN_METHODS}
    assert errors["bones"] < min(errors["none"], errors["global"])  # MusePose's is made for people this flat
    assert errors["bones"] < 0.4


def test_a_foreshortened_arm_does_not_shorten_the_arms():
    """In the reference both forearms point at the camera."""
    clip, reference = puppet(seed=1), puppet(seed=6)[0]
    body = reference.body.copy()
    for _, elbow, wrist in LIMBS["arm"]:
        body[wrist] = body[elbow] + 0.2 * (body[wrist] - body[elbow])
    result = retarget(clip, CANVAS, dataclasses.replace(reference, body=body), CANVAS)

    def forearms(k):
        return np.linalg.norm(to_pixels(k, CANVAS)[:, [4, 7]] - to_pixels(k, CANVAS)[:, [3, 6]], axis=-1)

    np.testing.assert_allclose(forearms(result), forearms(clip), rtol=0.1)


def test_nor_do_arms_grow_when_the_clip_foreshortens_them():
    """No gorillas: the clip's forearms always point at the camera, the reference shows them from the side."""
    clip, reference = puppet(seed=1), puppet(seed=6)[0]
    body = clip.body.copy()
    for _, elbow, wrist in LIMBS["arm"]:
        body[:, wrist] = body[:, elbow] + 0.2 * (body[:, wrist] - body[:, elbow])
    result = retarget(dataclasses.replace(clip, body=body), CANVAS, reference, CANVAS)
    forearms = np.linalg.norm(to_pixels(result, CANVAS)[:, [4, 7]] - to_pixels(result, CANVAS)[:, [3, 6]], axis=-1)
    assert forearms.max() < 42 * 0.6


@pytest.mark.parametrize("body", BODIES)
def test_feet_stay_on_the_ground_and_steps_fit_the_legs(body):
    clip, reference = puppet(seed=2), puppet(seed=7, **body)[0]
    result = to_pixels(retarget(clip, CANVAS, reference, CANVAS), CANVAS)
    np.testing.assert_allclose(result[:, ANKLES, 1].max(1), 330, atol=5)
    way = result[-1, HIPS, 0].mean() - result[0, HIPS, 0].mean()
    legs = body.get("size", 1) * body.get("leg", 1)
    assert way == pytest.approx(6 * 11 * legs, rel=0.16)  # short legs in one picture are believed in part


@pytest.mark.parametrize("scale, offset", [((2, 2), (0, 0)), ((0.7, 0.7), (0.6, 0.1)), ((1, 1), (-1, 3))])
def test_size_and_place_of_the_driving_person_do_not_matter(scale, offset):
    clip, reference = puppet(seed=2), puppet(seed=7, arm=1.2)[0]
    expected = retarget(clip, CANVAS, reference, CANVAS)
    assert_same(retarget(clip.affine(scale, offset), CANVAS, reference, CANVAS), expected)


def test_nor_does_the_shape_of_the_driving_picture():
    clip, reference = puppet(seed=2), puppet(seed=7, arm=1.2)[0]
    wide = clip.affine((300 / 900, 400 / 500), (0.3, 0.1))
    assert_same(retarget(wide, (500, 900), reference, CANVAS), retarget(clip, CANVAS, reference, CANVAS))


def test_the_result_follows_the_reference():
    clip, reference = puppet(seed=2), puppet(seed=7, arm=1.2)[0]
    expected = retarget(clip, CANVAS, reference, CANVAS).affine((0.5, 0.5), (0.2, 0.3))
    assert_same(retarget(clip, CANVAS, reference.affine((0.5, 0.5), (0.2, 0.3)), CANVAS), expected)


def test_mirrored_people_become_mirror_images():
    clip, reference = puppet(seed=2), puppet(seed=7, arm=1.2)[0]
    expected = retarget(clip, CANVAS, reference, CANVAS).flipped()
    assert_same(retarget(clip.flipped(), CANVAS, reference.flipped(), CANVAS), expected)


def test_somebody_who_comes_nearer_does_so_in_the_result():
    """The clip's person grows by half; at first, so the reference, both have one size."""
    clip = puppet(frames=24, seed=3, swing=0.5)
    growth = np.linspace(1, 1.5, 24, dtype=np.float32)[:, None, None]
    clip = dataclasses.replace(clip, body=0.3 + growth * (clip.body - 0.3))
    result = retarget(clip, CANVAS, puppet(seed=9, swing=0.5)[0], CANVAS)

    def torso(k):
        return np.linalg.norm(to_pixels(k, CANVAS)[:, NECK] - to_pixels(k, CANVAS)[:, HIPS].mean(1), axis=-1)

    np.testing.assert_allclose(torso(result), torso(clip), rtol=0.08)


@pytest.mark.parametrize("points", [[10], [9, 10], [4, 7], [0, 14, 16], [8], [1], [9, 10, 12, 13], [0, *range(14, 18)]])
def test_what_a_few_frames_or_the_reference_do_not_show_changes_little(points):
    clip, reference = puppet(seed=2), puppet(seed=7, leg=1.1)[0]
    whole = retarget(clip, CANVAS, reference, CANVAS)
    others = [p for p in range(18) if p not in points]
    gaps = retarget(unseen(clip, points, slice(3, 6)), CANVAS, reference, CANVAS)
    assert distance(gaps, whole, others) < 0.1
    np.testing.assert_array_equal(gaps.body_confidence, unseen(clip, points, slice(3, 6)).body_confidence)
    reference = unseen(Keypoints.stack([reference]), points)[0]
    assert distance(retarget(clip, CANVAS, reference, CANVAS), whole, others) < 0.5


def test_upper_bodies_are_enough():
    """Neither the clip nor the reference shows anything below the chest."""
    below = [8, 9, 10, 11, 12, 13]
    clip, truth = unseen(puppet(seed=2), below), puppet(seed=2, shoulders=1.2, arm=0.9)
    result = retarget(clip, CANVAS, unseen(truth, below)[0], CANVAS)
    shift = truth.body[:, [NECK]] - result.body[:, [NECK]]  # how fast she walks, shoulders do not tell
    moved = dataclasses.replace(result, body=result.body + shift)
    assert distance(moved, truth, [0, 1, 2, 3, 4, 5, 6, 7]) < 0.05


def test_hands_and_face_move_and_grow_with_their_limb():
    clip, reference = puppet(seed=2), puppet(seed=2, size=0.5)[0].without("hands", "face")
    result = retarget(clip, CANVAS, reference, CANVAS)
    for points, place in ((result.hands, result.body[:, [7, 4], None]), (result.face, result.body[:, [0]])):
        own = clip.hands - clip.body[:, [7, 4], None] if points is result.hands else clip.face - clip.body[:, [0]]
        np.testing.assert_allclose(points - place, 0.5 * own, atol=2e-3)


def with_hands(keypoints: Keypoints, size: float, turn: float = 0.0) -> Keypoints:
    """With flat hands of so many pixels, turned by so many radians about an axis in the picture."""
    flat = np.random.default_rng(5).normal(0, 1, (2, 21, 2))
    flat[:, PALM] = FLAT_PALM
    flat = (flat - flat[:, :1]) * [np.cos(turn), 1] * size / (CANVAS[1], CANVAS[0])
    wrists = keypoints.body[..., [7, 4], None, :]
    return dataclasses.replace(keypoints, hands=(wrists + flat).astype(np.float32))


@pytest.mark.parametrize("turn", [0.0, 0.9])
@pytest.mark.parametrize("larger", [0.8, 1.0, 1.3])
def test_hands_follow_the_wrists_and_are_as_large_as_the_characters(larger, turn):
    """Half as much larger, as a logarithm, as the one picture of them says, which may show them turned."""
    clip, reference = with_hands(puppet(seed=2), 40), with_hands(puppet(seed=2, size=0.5)[0], 20 * larger, turn)
    result = retarget(clip, CANVAS, reference, CANVAS)
    own, carried = (each.hands - each.body[:, [7, 4], None] for each in (clip, result))
    np.testing.assert_allclose(carried, 0.5 * np.sqrt(larger) * own, atol=1e-3)


def test_a_hand_that_is_hardly_seen_does_not_tell_its_size():
    clip, reference = with_hands(puppet(seed=2), 10), with_hands(puppet(seed=2)[0], 13)
    confidence = reference.hands_confidence.copy()
    confidence[:, 5] = 0  # a knuckle
    hidden = retarget(clip, CANVAS, dataclasses.replace(reference, hands_confidence=confidence), CANVAS)
    assert_same(hidden, retarget(clip, CANVAS, reference.without("hands"), CANVAS))
    assert np.abs(hidden.hands - retarget(clip, CANVAS, reference, CANVAS).hands).max() > 0.005


@pytest.mark.parametrize("method", ALIGN_METHODS)
def test_nobody_on_either_side_is_no_error(method):
    clip, nobody = puppet(), Keypoints.empty()
    assert_same(align_motion(clip, CANVAS, nobody, CANVAS, method), align_none(clip, CANVAS, nobody, CANVAS))
    empty = align_motion(Keypoints.empty(3), CANVAS, clip[0], CANVAS, method)
    assert len(empty) == 3 and not empty.body_confidence.any()
    assert np.isfinite(empty.body).all()


def test_a_few_points_are_enough_to_go_on():
    """Too few bones to tell a pose by: nothing is divided by nothing."""
    clip = unseen(puppet(), list(range(6, 18)))
    assert np.isfinite(retarget(clip, CANVAS, puppet(seed=3)[0], CANVAS).body).all()


def test_one_frame_is_a_clip():
    clip = puppet(frames=1)
    assert_same(retarget(clip, CANVAS, clip[0], CANVAS), clip)


def test_a_drawn_figure_with_a_large_head_keeps_its_bones():
    """Standing in the reference; the bones of its picture are all there is to know of it."""
    figure = puppet(1, seed=3, arm=0.75, leg=0.7, swing=0.05)
    body = to_pixels(figure, CANVAS)
    head = [0, 14, 15, 16, 17]
    body[:, head] = body[:, [NECK]] + 2.2 * (body[:, head] - body[:, [NECK]])
    figure = dataclasses.replace(figure, body=(body / (CANVAS[1], CANVAS[0])).astype(np.float32))
    found = to_pixels(retarget(puppet(24, seed=5), CANVAS, figure[0], CANVAS), CANVAS)
    for a, b in ((8, 9), (9, 10), (2, 3), (3, 4), (NECK, 8), (2, 5)):
        length, own = (np.linalg.norm(points[:, a] - points[:, b], axis=-1).max() for points in (found, body))
        assert 0.8 < length / own < 1.25, (a, b)
