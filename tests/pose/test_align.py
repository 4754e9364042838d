"""The simple alignments: the driving person's size and place become the reference's."""

import dataclasses

import numpy as np
import pytest

from animate_jax.pose.align import align_global as align
from animate_jax.pose.align import align_musepose, align_none, crop_box, keep_inside
from animate_jax.pose.keypoints import MIN_CONFIDENCE, Keypoints, to_pixels

CANVAS = (200, 100)  # height, width


def person(frames=5, seed=0) -> Keypoints:
    """Somebody who stays the same size and moves about, everything seen, hands and face included."""
    random = np.random.default_rng(seed)
    everybody = Keypoints.empty(frames)
    steps = np.cumsum(random.normal(0, 0.01, (frames, 2)), 0)
    arrays = {}
    for name in ("body", "hands", "face"):
        shape = getattr(everybody, name).shape
        place = random.uniform(0.3, 0.7, shape[1:])
        motion = steps.reshape(frames, *[1] * (len(shape) - 2), 2)
        arrays[name] = (place + motion).astype(np.float32)
        arrays[f"{name}_confidence"] = np.ones(shape[:-1], np.float32)
    return Keypoints(**arrays)


def without(keypoints: Keypoints, points, frames=slice(None)) -> Keypoints:
    confidence = keypoints.body_confidence.copy()
    confidence[frames, points] = 0
    return dataclasses.replace(keypoints, body_confidence=confidence)


def assert_same(a: Keypoints, b: Keypoints, atol=1e-5):
    for name in Keypoints.names():
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=atol, err_msg=name)


def test_the_same_body_stays_where_it_is():
    clip = person()
    assert_same(align(clip, CANVAS, clip[0], CANVAS), clip)


def test_the_neck_of_the_first_frame_lands_on_the_references():
    reference = person(1, seed=1)[0]
    aligned = align(person(seed=2), CANVAS, reference, CANVAS)
    np.testing.assert_allclose(aligned.body[0, 1], reference.body[1], atol=1e-5)


@pytest.mark.parametrize("scale, offset", [((2, 2), (0, 0)), ((0.7, 0.7), (0.6, 0.1)), ((1, 1), (-1, 3))])
def test_size_and_place_of_the_driving_person_do_not_matter(scale, offset):
    clip, reference = person(seed=2), person(1, seed=1)[0]
    expected = align(clip, CANVAS, reference, CANVAS)
    assert_same(align(clip.affine(scale, offset), CANVAS, reference, CANVAS), expected)


def test_nor_does_the_shape_of_the_driving_picture():
    """The clip cut out of a wide picture: the same pixels in units of another canvas."""
    clip, reference = person(seed=2), person(1, seed=1)[0]
    wide = clip.affine((100 / 400, 200 / 300), (0.5, 0.1))  # pixels of 100 x 200 inside 400 x 300
    assert_same(align(wide, (300, 400), reference, CANVAS), align(clip, CANVAS, reference, CANVAS))


def test_limbs_keep_their_proportions():
    """One scale for both axes and all frames, in pixels of the result."""
    clip, reference, canvas = person(seed=2), person(1, seed=1)[0], (60, 90)
    before, after = to_pixels(clip, CANVAS), to_pixels(align(clip, CANVAS, reference, canvas), canvas)
    ratio = np.diff(after, axis=1) / np.diff(before, axis=1)
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-3)
    assert np.median(ratio) > 0


def test_a_reference_of_half_the_size_halves_the_motion():
    clip = person()
    aligned = align(clip, CANVAS, clip[0].affine((0.5, 0.5), (0.2, 0.3)), CANVAS)
    assert_same(aligned, clip.affine((0.5, 0.5), (0.2, 0.3)))


def test_mirrored_people_align_as_mirror_images():
    clip, reference = person(seed=2), person(1, seed=1)[0]
    expected = align(clip, CANVAS, reference, CANVAS).flipped()
    assert_same(align(clip.flipped(), CANVAS, reference.flipped(), CANVAS), expected)


def test_a_foreshortened_bone_does_not_enlarge_the_person():
    """The clip's person bends: half of the frames show the torso at half its length."""
    clip = person(frames=10)
    body = clip.body.copy()
    body[5:, 8:14, 1] = (body[5:, 8:14, 1] + body[5:, 1:2, 1]) / 2
    aligned = align(dataclasses.replace(clip, body=body), CANVAS, clip[0], CANVAS)
    np.testing.assert_allclose(aligned.body[:5], clip.body[:5], atol=0.01)


def test_points_missing_on_either_side_are_left_out():
    clip, legs = person(), [9, 10, 12, 13]
    misplaced = clip.body.copy()
    misplaced[:, legs] = 40  # the position of a missing point has no meaning
    clip = without(dataclasses.replace(clip, body=misplaced), legs)
    assert_same(align(clip, CANVAS, person()[0], CANVAS), clip)
    reference = without(person(), [0, 5])[0]
    assert_same(align(person(), CANVAS, reference, CANVAS), person())
    np.testing.assert_array_equal(align(clip, CANVAS, reference, CANVAS).body_confidence, clip.body_confidence)


def test_a_neck_that_appears_later_is_the_anchor_then():
    clip = without(person(), [1], [0, 1])
    assert_same(align(clip, CANVAS, person()[2], CANVAS), clip.affine((1, 1), (0, 0)), atol=1e-5)


def test_without_a_neck_a_hip_is_the_anchor():
    clip = without(person(), [1])
    assert_same(align(clip, CANVAS, person()[0].affine((1, 1), (0.1, 0.2)), CANVAS), clip.affine((1, 1), (0.1, 0.2)))


@pytest.mark.parametrize("canvas", [(200, 100), (100, 100), (50, 100)])
def test_with_nothing_in_common_the_picture_is_fitted_in(canvas):
    """Centered, whole, undistorted; the clip's canvas is 100 wide and 200 high."""
    clip, nobody = person(), Keypoints.empty()
    aligned = align(clip, CANVAS, nobody, canvas)
    scale = canvas[0] / 200
    expected = to_pixels(clip, CANVAS) * scale + np.array([(canvas[1] - 100 * scale) / 2, 0])
    np.testing.assert_allclose(to_pixels(aligned, canvas), expected, atol=1e-3)


@pytest.mark.parametrize("aspect", [0.5, 0.75, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_a_portrait_holds_every_point_and_has_the_aspect(aspect, seed):
    pose = person(1, seed)[0]
    left, top, right, bottom = crop_box(pose, CANVAS, aspect)
    assert (right - left) / (bottom - top) == pytest.approx(aspect)
    points = to_pixels(pose, CANVAS)
    height = np.ptp(points[:, 1])
    assert (points > np.array([left, top]) + 0.1 * height).all()
    assert (points < np.array([right, bottom]) - 0.1 * height).all()
    # and no more than that: one pair of sides is at the margin
    assert min((bottom - top) / height, (right - left) / np.ptp(points[:, 0])) < 2


def test_a_portrait_ignores_points_that_are_not_seen():
    pose = person(1)[0]
    body, confidence = pose.body.copy(), pose.body_confidence.copy()
    body[4], confidence[4] = 9, MIN_CONFIDENCE
    hidden = dataclasses.replace(pose, body=body, body_confidence=confidence)
    body[4] = pose.body[1]
    assert crop_box(hidden, CANVAS, 0.75) == crop_box(dataclasses.replace(hidden, body=body), CANVAS, 0.75)


@pytest.mark.parametrize(
    "aspect, expected", [(0.5, (0, 0, 100, 200)), (1.0, (0, 50, 100, 150)), (0.25, (25, 0, 75, 200))]
)
def test_the_portrait_of_nobody_is_the_largest_centred_cut(aspect, expected):
    assert crop_box(Keypoints.empty(), CANVAS, aspect) == pytest.approx(expected)


def test_without_alignment_the_picture_is_fitted_in():
    clip = person()
    assert_same(align_none(clip, CANVAS, person(1, 3)[0], CANVAS), clip)
    wide = align_none(clip, CANVAS, person(1, 3)[0], (100, 200))
    assert_same(wide, clip.affine((0.25, 1), (0.375, 0)))


def test_musepose_leaves_the_same_body_in_place():
    clip = person()
    assert_same(align_musepose(clip, CANVAS, clip[0], CANVAS), clip)


def test_musepose_measures_every_limb_in_the_first_frame():
    """Twice the thighs in the reference: knees move away from hips, ankles keep their distance from knees."""
    clip = person(seed=4)
    body = clip.body[0].copy()
    for hip, knee, ankle in ((8, 9, 10), (11, 12, 13)):
        thigh = body[knee] - body[hip]
        body[[knee, ankle]] += thigh
    aligned = align_musepose(clip, CANVAS, dataclasses.replace(clip[0], body=body), CANVAS)
    np.testing.assert_allclose(aligned.body[0], body, atol=1e-5)
    steps = clip.body - clip.body[:1]
    np.testing.assert_allclose(aligned.body - aligned.body[:1], steps, atol=1e-5)  # a rigid motion stays one


def test_musepose_counts_in_picture_heights():
    """Half the size in a picture twice as high: bones keep their pixels, so they become 1/2 of the height."""
    clip = person()
    reference = clip[0].affine((0.5, 0.5), (0, 0))
    aligned = to_pixels(align_musepose(clip, CANVAS, reference, (400, 200)), (400, 200))
    np.testing.assert_allclose(np.diff(aligned, axis=1), np.diff(to_pixels(clip, CANVAS), axis=1), atol=1e-3)


def test_musepose_scales_what_it_cannot_measure_by_one():
    clip = person()
    reference = without(person(), [3, 6, 1])[0]
    assert_same(align_musepose(clip, CANVAS, reference, CANVAS), clip)


def standing(frames=6, height=0.8, floor=0.95, x=0.5):
    """Somebody upright, in units of the picture."""
    body = np.zeros((frames, 18, 2), np.float32) + [x, floor - 0.5 * height]
    body[:, [10, 13], 1] = floor
    body[:, [0, 14, 15, 16, 17], 1] = floor - height
    return dataclasses.replace(Keypoints.empty(frames), body=body, body_confidence=np.ones((frames, 18), np.float32))


def test_what_is_inside_stays_as_it_is():
    fitted = standing()
    np.testing.assert_array_equal(keep_inside(fitted, standing(1)[0]).body, fitted.body)


def test_a_head_above_the_picture_is_brought_back_and_the_feet_stay():
    fitted, reference = standing(height=1.2), standing(1)[0]
    found = keep_inside(fitted, reference)
    assert found.body.min() > 0.01
    np.testing.assert_allclose(found.body[:, [10, 13], 1], 0.95, atol=1e-5)
    np.testing.assert_allclose(found.body[..., 0], 0.5, atol=1e-5)


def test_the_crown_of_the_head_stays_in_the_picture_too():
    reference, fitted = standing(1)[0], standing()
    for keypoints in (reference.body[None], fitted.body):
        keypoints[:, [0, 14, 15, 16, 17], 1] = 0.2
        keypoints[:, 1, 1] = 0.35
    fitted.body[:, [0, 14, 15, 16, 17], 1] = 0.05  # in the picture, but the head goes on above it
    found = keep_inside(fitted, reference).body
    assert (found[:, 0, 1] - 0.8 * (found[:, 1, 1] - found[:, 0, 1])).min() > 0.01
    reference.body[[0, 14, 15, 16, 17], 1] = 0.05  # of a picture that cuts the crown off, it may leave
    np.testing.assert_array_equal(keep_inside(fitted, reference).body, fitted.body)


def test_somebody_who_walks_out_is_brought_back_and_one_bad_frame_does_not_count():
    fitted = standing(100)
    fitted.body[..., 0] += np.linspace(0, 0.7, 100)[:, None]
    found = keep_inside(fitted, standing(1)[0]).body
    assert 0 <= np.quantile(found[..., 0], 0.06) and np.quantile(found[..., 0], 0.94) <= 1
    np.testing.assert_allclose(np.diff(found[:, 0, 0]), np.diff(found[:, 0, 0])[0], atol=1e-6)
    wild = standing(100)
    wild.body[50] = 9
    np.testing.assert_allclose(keep_inside(wild, standing(1)[0]).body[0], wild.body[0], atol=1e-6)


def test_legs_that_the_reference_does_not_show_may_leave():
    reference = standing(1)[0]
    reference.body_confidence[[9, 10, 12, 13]] = 0
    fitted = standing(height=0.8, floor=1.4)
    fitted.body[:, :9, 1] = 0.5
    fitted.body[:, [11, 14, 15, 16, 17], 1] = 0.5
    np.testing.assert_array_equal(keep_inside(fitted, reference).body, fitted.body)
    nobody = Keypoints.empty(3)
    np.testing.assert_array_equal(keep_inside(nobody, reference).body, nobody.body)
