"""The warp of the reference: pixels go where their joints go."""

import dataclasses

import cv2
import numpy as np
import pytest

from animate_jax.pose.inpaint import diffused, foreground, without_person
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.warp import LIMBS, NUM_PARTS, TORSO, capsules, warp, warp_field

SIZE = 128, 96
# A person who stands and spreads the arms a little, in pixels.
BODY = np.float32(
    [
        (48, 22),
        (48, 35),
        (38, 35),
        (30, 50),
        (26, 64),
        (58, 35),
        (66, 50),
        (70, 64),
        (42, 68),
        (40, 90),
        (39, 112),
        (54, 68),
        (56, 90),
        (57, 112),
        (46, 20),
        (50, 20),
        (43, 21),
        (53, 21),
    ]
)
RIGHT_ELBOW, RIGHT_WRIST = 3, 4
RIGHT_FOREARM = 3  # number of the part
FACE = [0, 14, 15, 16, 17]


def person(body=BODY, missing=()):
    confidence = np.ones(18, np.float32)
    confidence[list(missing)] = 0
    points = (body / np.float32(SIZE[::-1])).astype(np.float32)
    return dataclasses.replace(Keypoints.empty(), body=points, body_confidence=confidence)


def frames(*poses):
    return Keypoints.stack(list(poses))


@pytest.fixture(scope="module")
def picture():
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


def turned(body, center, moved, degrees):
    body, a = body.copy(), np.radians(degrees)
    turn = np.float32([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    body[moved] = body[center] + (body[moved] - body[center]) @ turn.T
    return body


def own_places():
    x, y = np.meshgrid(np.arange(SIZE[1]) + 0.5, np.arange(SIZE[0]) + 0.5)
    return np.stack([x, y], -1)


def test_the_same_pose_is_the_identity_on_the_person(picture):
    found = warp_field(person(), frames(person(), person()), *SIZE)
    inside = found.part[0] >= 0
    assert 1500 < inside.sum() < 6000
    assert set(np.unique(found.part)) == set(range(-1, NUM_PARTS))
    np.testing.assert_allclose(found.source[1][inside], own_places()[inside], atol=1e-3)
    mask = capsules(person(), *SIZE)
    pictures, masks = warp(picture, mask, person(), frames(person()))[:]
    assert np.abs(pictures[0].astype(int) - picture)[mask == 255].max() <= 1
    assert masks[0, ..., 0][mask == 255].min() == 255
    assert masks[0, ..., 0][mask == 0].max() == 0
    assert masks[0, ..., 1][int(BODY[9, 1]), int(BODY[9, 0])] > 200  # on a knee


@pytest.mark.parametrize("degrees", [-50, 30, 90])
def test_a_turned_forearm_takes_its_pixels_along(degrees):
    driven = turned(BODY, RIGHT_ELBOW, [RIGHT_WRIST], degrees)
    found = warp_field(person(), frames(person(driven)), *SIZE)
    forearm = found.part[0] == RIGHT_FOREARM
    assert forearm.sum() > 100
    places, elbow = own_places(), driven[RIGHT_ELBOW]
    straight = forearm & (np.linalg.norm(places - elbow, axis=-1) > 14)  # near the elbow it bends
    back = turned(np.concatenate([elbow[None], places[straight]]), 0, np.s_[1:], -degrees)[1:]
    assert straight.sum() > 30
    np.testing.assert_allclose(found.source[0][straight], back, atol=0.05)
    elsewhere = found.part[0] == LIMBS.start + 5  # the right shin has not moved
    np.testing.assert_allclose(found.source[0][elsewhere], own_places()[elsewhere], atol=0.05)


@pytest.mark.parametrize("degrees", [30, 90, 140])
def test_an_elbow_bends_without_a_crack_and_without_shrinking(degrees):
    driven = turned(BODY, RIGHT_ELBOW, [RIGHT_WRIST], degrees)
    found = warp_field(person(), frames(person(driven)), 4 * SIZE[0], 4 * SIZE[1])
    source, part = found.source[0], found.part[0]
    arm = (part == RIGHT_FOREARM) | (part == RIGHT_FOREARM - 1)
    bones = [driven[RIGHT_ELBOW] - driven[joint] for joint in (RIGHT_ELBOW - 1, RIGHT_WRIST)]
    outward = sum(bone / np.linalg.norm(bone) for bone in bones)
    x, y = np.round(4 * driven[RIGHT_ELBOW] + 9 * outward / np.linalg.norm(outward)).astype(int)
    around = np.s_[y - 6 : y + 7, x - 6 : x + 7]
    assert arm[around].all() and len(np.unique(part[around])) == 2
    steps = [np.diff(source[around], axis=axis) for axis in range(2)]
    crack = 2 * 9 * np.sin(np.radians(degrees / 2))  # how far apart two rigid parts' sources are here: 5 to 17 pixels
    assert max(np.linalg.norm(step, axis=-1).max() for step in steps) < max(crack / 3, 3)
    down, right = steps[0][:, :-1], steps[1][:-1]
    areas = np.abs(down[..., 0] * right[..., 1] - down[..., 1] * right[..., 0])
    assert 0.5 < areas.mean() < 2


def test_a_leg_does_not_take_what_the_picture_shows_of_the_other_one():
    size = height, _ = 4 * SIZE[0], 4 * SIZE[1]
    together = BODY.copy()
    together[[9, 10], 0], together[[12, 13], 0] = 40, 57  # knees and ankles
    apart = together.copy()
    apart[[9, 12], 0], apart[[10, 13], 0] = (34, 66), (26, 74)
    image = np.full((*size, 3), (0, 0, 255), np.uint8)
    image[:, : 4 * 45] = 255, 0, 0  # the right leg ends left of the middle between the two
    image[: 4 * 70] = 128
    warped = warp(image, np.full(size, 255, np.uint8), person(together), frames(person(apart)))
    warped = dataclasses.replace(warped, background=np.full_like(image, 128), reach=0.004)
    legs = warp_field(person(together), frames(person(apart)), *size).part[0]
    right = np.isin(legs, (LIMBS.start + 4, LIMBS.start + 5)) & (np.arange(height) > 4 * 85)[:, None]
    blue, red = ((warped[:][0][0][right][:, color] > 200).sum() for color in (2, 0))
    assert red > 5000 and blue < 0.05 * red, (red, blue)


def test_the_torso_does_not_show_the_arm_that_lay_in_front_of_it():
    folded, gray, red = turned(BODY, RIGHT_ELBOW, [RIGHT_WRIST], -90), (128, 128, 128), (255, 0, 0)
    part = warp_field(person(folded), frames(person(folded)), *SIZE).part[0]
    assert (part == RIGHT_FOREARM)[:, 38:58].any()  # in front of the torso
    image = np.full((*SIZE, 3), gray, np.uint8)
    image[part == RIGHT_FOREARM] = red
    everything = warp(image, np.full(SIZE, 255, np.uint8), person(folded), frames(person(), person(folded)))
    everything = dataclasses.replace(everything, background=np.full_like(image, 128))
    careful = dataclasses.replace(everything, reach=0.01)
    torso = warp_field(person(folded), frames(person()), *SIZE).part[0] == TORSO
    ghosts = [torso & (images[0][..., 0] > 160) for images in (everything[:][0], careful[:][0])]
    # What is within reach may stay: a rim as narrow as a pixel.
    inner = [cv2.erode(ghost.astype(np.uint8), np.ones((3, 3), np.uint8)).sum() for ghost in ghosts]
    assert ghosts[0].sum() > 2 * ghosts[1].sum() and inner[0] > 30 and inner[1] < 3
    for images, masks in (everything[:], careful[:]):  # the arm itself is there, in both poses
        assert (images[1] == red).all(-1).sum() > 0.8 * (part == RIGHT_FOREARM).sum()
        assert masks[0, 60, 27, 0] > 250
    pictures, masks = careful.complete(np.s_[:])  # says what the other leaves out
    np.testing.assert_array_equal(pictures, everything[:][0])
    assert masks[0, ..., 2][ghosts[0] & ~ghosts[1]].mean() < 100 and masks[0, ..., 2][~torso].mean() > 250


def test_a_smaller_person_shows_all_of_the_reference():
    middle = np.float32([48, 64])
    found = warp_field(person(), frames(person((BODY - middle) / 2 + middle)), *SIZE)
    inside = found.part[0] >= 0
    np.testing.assert_allclose(found.source[0][inside], (own_places()[inside] - middle) * 2 + middle, atol=0.01)


def test_a_mirrored_person_gives_the_mirrored_warp(picture):
    driven = turned(turned(BODY, 2, [3, 4], 40), 11, [12, 13], -20)
    mask = capsules(person(), *SIZE)
    straight = warp(picture, mask, person(), frames(person(driven)))[:]
    other = warp(picture[:, ::-1].copy(), mask[:, ::-1].copy(), person().flipped(), frames(person(driven)).flipped())[:]
    for one, two in zip(straight, other, strict=True):
        difference = np.abs(one.astype(int) - two[:, :, ::-1])
        assert np.quantile(difference, 0.97) <= 2  # a few pixels between two parts go to the other one


def test_half_a_body_still_has_torso_arms_and_head():
    half = person(BODY * 1.6 - (28, 20), missing=[8, 9, 10, 11, 12, 13])
    moved = frames(person(BODY * 1.6 - (20, 24), missing=[8, 9, 10, 11, 12, 13]))
    found = warp_field(half, moved, *SIZE)
    assert set(np.unique(found.part)) == {-1, 0, 1, 2, 3, 4, 5}
    inside = found.part[0] >= 0
    np.testing.assert_allclose(found.source[0][inside], (own_places() + (-8, 4))[inside], atol=0.01)
    assert (found.part[0] == TORSO).sum() > 1500


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ([4], {3}),
        ([9], {6, 7}),
        ([3], {2, 3}),
        (FACE, {1}),
        ([2, 5], {0, 2, 4}),
        (range(18), set(range(NUM_PARTS))),
    ],
)
def test_a_lost_joint_takes_its_parts_away(missing, gone):
    for pair in ((person(missing=missing), person()), (person(), person(missing=missing))):
        found = warp_field(pair[0], frames(pair[1]), *SIZE)
        assert set(range(NUM_PARTS)) - set(np.unique(found.part)) == gone


@pytest.mark.parametrize(
    ("missing", "place", "part"),
    [([9, 10, 12, 13], (48, 85), TORSO), ([10], (40, 105), 6), ([4], (26, 60), 2)],
    ids=["knees", "an ankle", "a wrist"],
)
def test_a_part_goes_on_where_the_picture_ends_before_the_next_joint(missing, place, part):
    for pair in ((person(missing=missing), person(BODY + 3)), (person(), person(BODY + 3, missing=missing))):
        found = warp_field(pair[0], frames(pair[1]), *SIZE)
        x, y = np.add(place, 3)
        assert found.part[0, y, x] == part
        np.testing.assert_allclose(found.source[0, y, x], np.add(place, 0.5), atol=0.01)


def test_a_person_cut_off_by_the_lower_edge_goes_on_below_it(picture):
    body = BODY + (0, 40)
    own, driven = person(body, missing=[9, 10, 12, 13]), person(body - (0, 15), missing=[9, 10, 12, 13])
    mask = np.full(SIZE, 255, np.uint8)
    assert (warp(picture, mask, own, frames(driven))[:][1][0, 118:, 48, 0] == 255).all()


def test_one_frame_does_not_change_another():
    driven = frames(person(missing=[4]), person(turned(BODY, 2, [3, 4], 60)), person())
    together = warp_field(person(), driven, *SIZE)
    for i in range(3):
        alone = warp_field(person(), driven[i : i + 1], *SIZE)
        np.testing.assert_array_equal(together.part[i], alone.part[0])
        np.testing.assert_array_equal(together.source[i][alone.part[0] >= 0], alone.source[0][alone.part[0] >= 0])


@pytest.mark.parametrize(
    "body",
    [
        np.zeros((18, 2), np.float32),
        np.full((18, 2), 50, np.float32),
        BODY * 1e4,
        BODY * (1, 0),
        BODY * (0, 1),
        BODY - 500,
    ],
)
def test_degenerate_joints_give_finite_numbers(picture, body):
    for pair in ((person(body), person()), (person(), person(body)), (person(body), person(body))):
        with np.errstate(all="raise", under="ignore"):
            found = warp_field(pair[0], frames(pair[1]), *SIZE)
        assert np.isfinite(found.source).all() and np.isfinite(found.depth).all()
        warp(picture, None, pair[0], frames(pair[1]))[:]


def test_what_lies_behind_the_person_comes_from_around_it():
    y, x = np.mgrid[:128, :96]
    wall = np.stack([x, y, x + y], -1).astype(np.uint8)
    mask = capsules(person(), *SIZE)
    picture = np.where(mask[..., None] > 0, np.uint8(255), wall)
    made = without_person(picture, mask)
    np.testing.assert_array_equal(made[:, :15], wall[:, :15])
    large = [cv2.resize(x, None, fx=4, fy=4) for x in (picture, mask)]
    small = without_person(*large)[2::4, 2::4]
    assert np.abs(small.astype(int) - wall).max() < 60
    for found in (made, small):
        error = np.abs(found.astype(int) - wall).max(-1)[mask > 0]  # the person is off by 170
        assert error.mean() < 20 and np.quantile(error, 0.95) < 35


def test_large_holes_are_filled_without_edges():
    picture = np.full((96, 96, 3), 20, np.uint8)
    picture[:, 48:] = 220
    hole = np.zeros((96, 96), np.uint8)
    hole[16:80, 16:80] = 255
    made = diffused(picture, hole)
    np.testing.assert_array_equal(made[hole == 0], picture[hole == 0])
    assert 20 <= made.min() and made.max() <= 220.001
    inner = made[24:72, 24:72, 0]
    assert max(np.abs(np.diff(inner, axis=axis)).max() for axis in (0, 1)) < 20  # of the 200 between the two sides
    assert inner[:, 0].max() < 70 and inner[:, -1].min() > 170
    np.testing.assert_allclose(diffused(np.full((40, 30, 3), 7, np.uint8), hole[:40, :30]), 7, atol=1e-3)


def test_stripes_go_on_behind_the_person_and_true_pixels_stay():
    y, x = np.mgrid[:384, :288]
    bright = ((x + y) // 24 % 2).astype(bool)
    wall = np.where(bright[..., None], np.uint8([230, 200, 40]), np.uint8([20, 60, 90]))
    mask = cv2.resize(capsules(person(), *SIZE), (288, 384))
    picture = np.where(mask[..., None] > 0, np.uint8([200, 30, 160]), wall)
    made = without_person(picture, mask)
    away = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, 5)
    np.testing.assert_array_equal(made[away > 0.02 * 384], picture[away > 0.02 * 384])
    there = mask > 128
    smooth = diffused(picture, mask)
    errors = [np.abs(fill.astype(float) - wall)[there].mean() for fill in (made, smooth)]
    assert errors[0] < 0.4 * errors[1]
    assert made[there].std(0).mean() > 2 * smooth[there].std(0).mean()  # stripes, not their mean


def test_a_person_that_fills_the_picture_still_has_a_background():
    picture = np.full((240, 200, 3), 90, np.uint8)
    full = np.full((240, 200), 255, np.uint8)
    assert without_person(picture, full).shape == picture.shape
    full[:8] = 0
    assert np.abs(without_person(picture, full).astype(int) - 90).max() <= 1


def test_the_edge_of_a_person_keeps_less_color_of_what_was_behind_it():
    share = np.clip((np.arange(200) - 98) / 4, 0, 1)[None].repeat(200, 0)
    picture = (share[..., None] * [200, 40, 40] + (1 - share[..., None]) * [0, 0, 255]).round().astype(np.uint8)
    mask = (255 * share).round().astype(np.uint8)
    found = foreground(picture, mask)
    edge = (share > 0.3) & (share < 1)
    assert np.abs(found[edge] - [200.0, 40, 40]).mean() < 0.7 * np.abs(picture[edge] - [200.0, 40, 40]).mean()
    np.testing.assert_array_equal(found[mask == 255], picture[mask == 255])


def test_nobody_shows_the_background(picture):
    made = warp(picture, capsules(person(), *SIZE), person(), Keypoints.empty(2))
    pictures, masks = made[:]
    np.testing.assert_array_equal(pictures, np.stack([made.background] * 2))
    assert masks.max() == 0


def test_a_person_seen_from_behind_is_not_trusted(picture):
    behind = BODY.copy()
    behind[[2, 5, 8, 11]] = behind[[5, 2, 11, 8]]
    mask = capsules(person(), *SIZE)
    _, masks = warp(picture, mask, person(), frames(person(), person(behind)))[:]
    chest = np.s_[48:60, 44:52]
    assert masks[0, ..., 1][chest].min() > 60
    assert masks[1, ..., 1][chest].max() == 0 and masks[1, ..., 0][chest].min() == 255
