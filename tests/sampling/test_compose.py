"""Results at the picture's own size: whose pixels are where. Nothing here compiles."""

import dataclasses
import pathlib

import cv2
import numpy as np
import pytest

from animate_jax.config import AnimationConfig
from animate_jax.errors import InputWarning, UserError
from animate_jax.pose.inpaint import without_person
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.shadow import ANKLES, Shadow
from animate_jax.pose.warp import capsules
from animate_jax.sampling import compose as module
from animate_jax.sampling.backgrounds import backdrop, median, paint, place, similarity
from animate_jax.sampling.compose import Composition, Scene, compose, cut, into_box, person_box, read_scene
from animate_jax.sampling.inputs import DrivingMotion, fit_motion
from animate_jax.video.images import read_image, write_image
from animate_jax.video.write import write_video
from tests.pose.test_warp import BODY, RIGHT_ELBOW, RIGHT_WRIST, turned

ASTRONAUT = pathlib.Path(__file__).parents[1] / "data" / "astronaut.jpg"
SIZE = 256, 192
SMALL = AnimationConfig(width=48, height=64)


def person(body=BODY):
    points = (body / np.float32([96, 128])).astype(np.float32)
    return dataclasses.replace(Keypoints.empty(), body=points, body_confidence=np.ones(18, np.float32))


@pytest.fixture(scope="module")
def scene():
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    noise[: SIZE[0] // 2] //= 2
    mask = capsules(person(), *SIZE)
    picture = cv2.GaussianBlur(noise, (0, 0), 1)
    picture = np.where(mask[..., None] > 128, (picture // 2 + np.uint8([120, 20, 0])), picture)
    return Scene(picture, person(), mask, without_person(picture, mask))


@pytest.fixture(scope="module")
def waving():
    poses = [turned(BODY, RIGHT_ELBOW, [RIGHT_WRIST], angle) for angle in (0, 20, 40, 60, 80)]
    return Keypoints.stack([person(body) for body in poses])


def shrunk(image, size=(64, 48)):
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def layers(scene, waving, frame):
    made = Composition.of(scene, waving, SMALL)
    [warped], [masks] = made.warped.complete(np.s_[frame : frame + 1])
    return warped, masks, made.warped.background


def difference(a, b):
    return np.abs(a.astype(int) - b).mean(-1)


def test_a_frame_that_shows_what_the_warp_shows_becomes_the_warp(scene, waving):
    warped, masks, background = layers(scene, waving, 3)
    found = compose(shrunk(warped), warped, masks, background)
    assert found.shape == warped.shape
    assert difference(found, warped).mean() < 0.5
    assert np.quantile(difference(found, warped), 0.99) < 12  # enlarged frames are further than 30 from it
    enlarged = cv2.resize(shrunk(warped), warped.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    assert difference(found, warped).mean() < 0.2 * difference(enlarged, warped).mean()


def test_the_model_takes_away_what_the_warp_is_not_sure_of(scene, waving):
    warped, masks, background = layers(scene, waving, 0)
    unsure = masks.copy()
    unsure[..., 1] = 0
    shown = difference(warped, background) > 60
    gone = compose(shrunk(background), warped, unsure, background)
    assert difference(gone, background)[shown].mean() < 10
    kept = compose(shrunk(background), warped, masks, background)
    middle = masks[..., 1] > 230  # on the bones
    assert difference(kept, warped)[middle].mean() < 10 < difference(kept, background)[middle].mean()


def test_an_outline_a_pixel_aside_leaves_no_fringe():
    background = np.full((*SIZE, 3), (240, 235, 220), np.uint8)
    warped, masks = background.copy(), np.zeros((*SIZE, 3), np.uint8)
    warped[40:200, 72:120], masks[40:200, 72:120] = (200, 40, 40), 255
    masks[..., 2] = 255
    found = compose(np.roll(shrunk(warped), 1, axis=1), warped, masks, background)
    assert difference(found, warped)[60:180, 60:132].mean() < 2


def test_what_the_reference_shows_of_another_limb_needs_a_model_that_agrees(scene, waving):
    warped, masks, background = layers(scene, waving, 0)
    masks = masks * np.uint8([1, 0, 1])
    shown = difference(warped, background) > 60
    between = np.round(0.65 * warped + 0.35 * background.astype(np.float32)).astype(np.uint8)

    def lost(frame, own):
        masks[..., 2] = own
        return difference(compose(shrunk(frame), warped, masks, background), warped)[shown].mean()

    assert lost(between, 0) > 1.5 * lost(between, 255)
    assert lost(warped, 0) < 0.5 * lost(between, 0)


@pytest.mark.parametrize("width, whose", [(2, "background"), (16, "warped")])
def test_a_dark_sliver_that_the_model_does_not_show_goes_and_a_limb_stays(width, whose):
    background = np.full((*SIZE, 3), (70, 140, 100), np.uint8)
    warped = background.copy()
    warped[40:200, 90 : 90 + width] = (20, 60, 40)
    masks = np.full((*SIZE, 3), 255, np.uint8)
    found = compose(shrunk(background), warped, masks, background)[60:180, 90 : 90 + width]
    wanted = {"background": background, "warped": warped}[whose][60:180, 90 : 90 + width]
    assert difference(found, wanted).mean() < 8
    shown = compose(shrunk(warped), warped, masks, background)[60:180, 90 : 90 + width]
    assert difference(shown, warped[60:180, 90 : 90 + width]).mean() < 12


def test_what_only_the_model_knows_is_its_own(scene, waving):
    warped, masks, background = layers(scene, waving, 0)
    frame = shrunk(warped)
    frame[2:14, 2:14] = [0, 255, 255]
    found = compose(frame, warped, masks, background)
    scale = np.divide(warped.shape[:2], frame.shape[:2])
    top, bottom = (np.array([[4, 12]]).T * scale).astype(int)
    there = found[top[0] : bottom[0], top[1] : bottom[1]]
    assert difference(there, np.uint8([0, 255, 255])).mean() < 60
    assert difference(found, warped)[int(20 * scale[0]) :].mean() < 1


def test_the_box_holds_all_joints_in_the_models_proportions_and_keypoints_follow_the_cut(scene, waving):
    fitted = waving.affine((1, 1), (0.1, 0))
    box = person_box(scene.keypoints, fitted, SIZE, 0.75)
    left, top, right, bottom = box
    assert abs((right - left) / (bottom - top) - 0.75) < 0.01
    for keypoints in (scene.keypoints, fitted):
        moved = into_box(keypoints, SIZE, box).body
        assert 0.05 < moved.min() and moved.max() < 0.95
    marked = np.zeros((*SIZE, 3), np.uint8)
    x, y = (scene.keypoints.body[4] * SIZE[::-1]).astype(int)
    marked[y, x] = 255
    own = cut(marked, box)
    assert own.shape[:2] == (bottom - top, right - left)
    found = np.argwhere(own[..., 0] == 255).mean(0)
    expected = into_box(scene.keypoints, SIZE, box).body[4] * [right - left, bottom - top]
    np.testing.assert_allclose(found, expected[::-1], atol=1.5)


@pytest.mark.parametrize("outside", [(-3.0, 0), (0, 5.0), (0.3, 0)])
def test_a_person_who_walks_out_leaves_the_rest_of_the_picture(outside, scene, waving):
    made = Composition.of(scene, waving.affine((1, 1), outside), SMALL)
    frames = [shrunk(made.warped[i : i + 1][0][0]) for i in range(len(waving))]
    [found] = made.frames(iter([np.stack(frames)]))
    assert found.shape == (5, *SIZE, 3)
    if max(np.abs(outside)) > 1:
        assert difference(found, scene.background).mean() < 3


def test_chunks_do_not_matter_and_frames_are_in_their_places(scene, waving):
    made = Composition.of(scene, waving, SMALL)
    frames = np.stack([shrunk(made.warped[i : i + 1][0][0]) for i in range(5)])
    [whole] = made.frames(iter([frames]))
    parts = np.concatenate(list(made.frames(iter([frames[:2], frames[2:4], frames[4:]]))))
    np.testing.assert_array_equal(whole, parts)
    for i in range(5):
        [warped], _ = dataclasses.replace(
            made.warped,
            picture=scene.picture,
            mask=scene.mask,
            reference=person(),
            background=scene.background,
            driven=waving,
        )[i : i + 1]
        assert difference(whole[i], warped).mean() < 2
    assert difference(whole[0], whole[4]).max() > 50


def test_the_shadow_goes_with_the_feet_and_stays_behind_another_background(scene, waving):
    ankles = {ankle: np.zeros(SIZE, np.float32) for ankle in ANKLES}
    ankles[ANKLES[0]][-30:-20, 20:60] = 0.5
    shaded = dataclasses.replace(scene, shadow=Shadow(ankles, scene.keypoints))
    aside = waving.affine((1.0, 1.0), (0.25, 0.0))
    made = Composition.of(shaded, aside, SMALL)
    bright = shrunk(Composition.of(scene, aside, SMALL).warped.background)
    [result], [plain] = (
        np.concatenate(list(Composition.of(each, aside[:1], SMALL).frames(iter([bright[None]]))))
        for each in (shaded, scene)
    )
    darker = scene.background.astype(int) - made.behind(0)
    there = np.s_[-30:-20, 20 + SIZE[1] // 4 : 60 + SIZE[1] // 4]
    assert darker[there].mean() > 20 and np.delete(darker, np.r_[-30:-20], 0).max() == 0
    assert difference(result, plain)[there].mean() > 10
    assert shaded.before(scene.background).shadow is None


def test_where_neither_person_is_the_picture_stays_whatever_the_model_says(scene, waving):
    made = Composition.of(scene, waving, SMALL)
    frames = np.full((5, 64, 48, 3), (0, 255, 255), np.uint8)
    [found] = made.frames(iter([frames]))
    grown = np.ones((45, 45), np.uint8)
    for driven, result in zip([waving[i] for i in range(5)], found, strict=True):
        either = np.maximum(capsules(driven, *SIZE), scene.mask)
        nobody = cv2.dilate(either, grown) == 0
        assert 0.2 < nobody.mean() < 0.9
        np.testing.assert_array_equal(result[nobody], scene.picture[nobody])
        assert difference(result, scene.picture)[capsules(driven, *SIZE) > 0].mean() > 20


def test_the_model_sees_the_box_at_its_own_size(scene, waving):
    made = Composition.of(scene, waving, SMALL)
    seen = made.seen_by_model(SMALL)
    assert seen.picture.shape == seen.background.shape == (64, 48, 3) and seen.mask.shape == (64, 48)
    assert difference(seen.picture, shrunk(cut(scene.picture, made.box))).mean() < 5
    assert len(seen) == 5 and seen.mask.max() > 200


@pytest.mark.parametrize(
    "own, asked, size",
    [
        ((601, 403), {}, (600, 404)),
        ((1536, 1024), {}, (768, 512)),
        ((300, 6000), {}, (68, 1366)),
        ((600, 400), {"height": 300}, (300, 200)),
        ((600, 400), {"width": 600}, (900, 600)),
        ((600, 400), {"width": 300, "height": 301}, (300, 300)),
    ],
)
def test_sizes_are_the_pictures_own_or_what_is_asked_for(own, asked, size, monkeypatch):
    monkeypatch.setattr(module, "segment", lambda picture, keypoints: None)
    picture = np.full((*own, 3), 90, np.uint8)
    found = read_scene(picture, SMALL, **asked, detector=lambda frames: Keypoints.stack([person()]))
    assert found.size == size and found.mask.shape == size and found.background.shape == (*size, 3)
    with pytest.raises(UserError, match="--width 20000: must be between 32 and 4096"):
        read_scene(picture, SMALL, width=20000)


def test_of_two_people_one_is_animated_and_the_other_stays():
    astronaut = read_image(ASTRONAUT)
    smaller = cv2.resize(astronaut[:, ::-1], None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    other = np.full((len(astronaut), smaller.shape[1], 3), smaller[0, 0], np.uint8)
    other[-len(smaller) :] = smaller
    found = read_scene(np.concatenate([astronaut, other], 1), SMALL)
    middle = round(found.size[1] * astronaut.shape[1] / (astronaut.shape[1] + other.shape[1]))
    seen = found.keypoints.body_confidence > 0.5
    assert seen.sum() > 6 and (found.keypoints.body[seen, 0] * found.size[1] < middle).all()
    assert (found.mask[:, :middle] > 128).mean() > 0.2 and (found.mask[:, middle + 20 :] > 128).mean() < 0.02
    np.testing.assert_array_equal(found.background[:, middle + 40 :], found.picture[:, middle + 40 :])


def test_half_a_body_is_driven_by_a_whole_one_without_a_word(waving, recwarn):
    scene = read_scene(ASTRONAUT, SMALL)
    options = dataclasses.replace(SMALL, pose_style="tiny")
    fitted = fit_motion(DrivingMotion(10.0, waving, (128, 96)), scene.keypoints, scene.size, options, "bones")
    assert not recwarn
    made = Composition.of(scene, fitted, SMALL)
    left, top, right, bottom = made.box
    assert bottom - top < 1.75 * scene.size[0] and right > 0 and left < scene.size[1]
    frames = np.stack([shrunk(made.warped[i : i + 1][0][0]) for i in range(2)])
    [found] = made.frames(iter([frames]))
    orange = (found[..., 0].astype(int) - found[..., 2] > 100).mean((1, 2))
    assert orange.min() > 0.1  # the suit


def test_colors_and_pictures_of_any_shape_are_backgrounds(tmp_path):
    np.testing.assert_array_equal(paint("#ff8000", (4, 6)), np.broadcast_to(np.uint8([255, 128, 0]), (4, 6, 3)))
    wide = np.zeros((50, 200, 3), np.uint8)
    wide[:, 75:125] = 200
    write_image(tmp_path / "wide.png", wide)
    assert paint(tmp_path / "wide.png", (64, 64))[8:-8, 8:-8].min() > 150  # its middle, undistorted
    with pytest.raises(UserError, match="--background nothing: give reference, driving, a color"):
        paint("nothing", (4, 6))
    with pytest.raises(UserError, match=r"--background sky\.jpg: no such file: give reference"):
        paint("sky.jpg", (4, 6))
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.png"):
        paint(tmp_path / "broken.png", (4, 6))


def test_the_person_keeps_its_pixels_before_another_background(scene):
    white = scene.before(paint("white", SIZE))
    assert difference(white.picture, scene.picture)[scene.mask == 255].max() == 0
    assert white.picture[scene.mask == 0].min() == 255


def test_the_median_leaves_out_what_is_not_seen():
    pictures = np.zeros((5, 2, 3, 3), np.uint8)
    pictures[:] = np.uint8([10, 20, 30, 40, 50])[:, None, None, None]
    seen = np.ones((5, 2, 3), bool)
    seen[2:, 0, 0] = seen[:, 1, 2] = False
    found, times = median(pictures, seen)
    assert found[0, 0, 0] == 10 and found[0, 1, 0] == 30
    assert times[0, 0] == 2 and times[1, 2] == 0


def test_a_person_stands_where_the_driving_one_stood(scene, waving):
    driving = waving.affine((0.5, 0.5), (0.3, 0.4))
    scale, shift = similarity(waving, SIZE, driving, (512, 192))
    # x 0.5, y 0.5 of twice the height is 1: one scale between the two, feet on the floor
    assert 0.5 < scale < 1
    feet = scale * waving.body[:, [10, 13], 1] * SIZE[0] + shift[1]
    np.testing.assert_allclose(feet, driving.body[:, [10, 13], 1] * 512, atol=0.5)
    same, fitted = place(scene, waving, module_backdrop(scene, waving.affine((0.5, 0.5), (0.25, 0.4))))
    np.testing.assert_allclose(fitted.body, waving.affine((0.5, 0.5), (0.25, 0.4)).body, atol=1e-3)
    np.testing.assert_allclose(same.keypoints.body, fitted.body[0], atol=1e-3)
    expected = cv2.resize(scene.mask, SIZE[1] // 2 * np.array([1, 0]) + SIZE[0] // 2 * np.array([0, 1]))
    top, left = round(0.4 * SIZE[0]), SIZE[1] // 4
    part = same.mask[top : top + SIZE[0] // 2, left : left + SIZE[1] // 2]
    assert np.abs(part.astype(int) - expected).mean() < 4


def module_backdrop(scene, keypoints):
    from animate_jax.sampling.backgrounds import Backdrop

    return Backdrop(np.full_like(scene.picture, 70), keypoints)


def driving_video(folder, moving):
    """Somebody crosses a room; the camera stands or pans."""
    room = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (128, 300, 3)).astype(np.uint8), (0, 0), 3)
    room = cv2.normalize(room, None, 0, 255, cv2.NORM_MINMAX)
    frames, poses = [], []
    for i in range(12):
        start = 8 * i if moving else 60
        frame = room[:, start : start + 192].copy()
        pose = person((BODY - [48, 64]) * 0.7 + [30 + 3 * i, 64])
        frame[capsules(pose, 128, 192) > 100] = [0, 255, 0]
        frames.append(frame)
        poses.append(pose)
    write_video(folder / "crossing.mp4", frames, 10)
    return room[:, 60:252], DrivingMotion(10.0, Keypoints.stack(poses), (128, 192))


def test_the_driving_scene_is_free_of_its_person(tmp_path, recwarn):
    room, motion = driving_video(tmp_path, moving=False)
    found = backdrop(tmp_path / "crossing.mp4", motion)
    assert found.picture.shape == room.shape
    assert difference(found.picture, room).mean() < 12
    green = (found.picture[..., 1].astype(int) - found.picture[..., [0, 2]].max(-1)) > 100
    assert green.mean() < 0.003
    assert not recwarn


def test_a_moving_camera_is_told_in_a_line(tmp_path):
    _, motion = driving_video(tmp_path, moving=True)
    with pytest.warns(InputWarning, match="the camera moves"):
        found = backdrop(tmp_path / "crossing.mp4", motion)
    assert found.picture.shape == (128, 192, 3)


def test_keypoints_have_no_scene(waving):
    for path in ("poses.npz", DrivingMotion(10.0, waving)):
        with pytest.raises(UserError, match="--background driving: only a video of a person has a scene"):
            backdrop(path, DrivingMotion(10.0, waving))
