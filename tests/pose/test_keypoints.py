import json

import numpy as np
import pytest

from animate_jax import limits
from animate_jax.errors import UserError
from animate_jax.pose.files import read_poses, write_poses
from animate_jax.pose.keypoints import BODY, FACE_MIRROR, Keypoints

HEIGHT, WIDTH = 480, 640


def random_keypoints(frames=3, seed=0):
    rng = np.random.default_rng(seed)
    empty = Keypoints.empty(frames)
    arrays = {name: rng.uniform(0.05, 1, getattr(empty, name).shape).astype(np.float32) for name in Keypoints.names()}
    arrays["body_confidence"][0, 3] = 0
    arrays["hands_confidence"][1, 0] = 0
    return Keypoints(**arrays)


def person(points=18, scale=(WIDTH, HEIGHT), **more):
    body = np.zeros((points, 3))
    body[:, 0] = (np.arange(points) + 1) / (points + 1) * scale[0]
    body[:, 1] = 0.5 * scale[1]
    body[:, 2] = 0.9
    return {"pose_keypoints_2d": body.ravel().tolist(), **more}


def frame(*people, canvas=True):
    size = {"canvas_width": WIDTH, "canvas_height": HEIGHT} if canvas else {}
    return {"people": list(people), **size}


def save(path, content):
    path.write_text(json.dumps(content))
    return path


def assert_same(a, b, atol=0.0):
    for name in Keypoints.names():
        points = name.removesuffix("_confidence")
        there = getattr(b, f"{points}_confidence") > 0
        np.testing.assert_allclose(getattr(a, name)[there], getattr(b, name)[there], rtol=0, atol=atol, err_msg=name)
        np.testing.assert_array_equal(getattr(a, f"{points}_confidence") > 0, there)


def test_mirrored_twice_is_the_same_and_once_trades_sides():
    keypoints = random_keypoints()
    assert_same(keypoints.flipped().flipped(), keypoints, atol=1e-6)
    left, right = BODY.index("left_knee"), BODY.index("right_knee")
    np.testing.assert_allclose(keypoints.flipped().body[:, left, 0], 1 - keypoints.body[:, right, 0])
    assert sorted(FACE_MIRROR) == list(range(68))


def test_npz_keeps_everything(tmp_path):
    write_poses(tmp_path / "new" / "poses.npz", random_keypoints(), (HEIGHT, WIDTH))
    keypoints, canvas = read_poses(tmp_path / "new" / "poses.npz")
    assert canvas == (HEIGHT, WIDTH)
    for name in Keypoints.names():
        np.testing.assert_array_equal(getattr(keypoints, name), getattr(random_keypoints(), name))


def test_json_keeps_positions_and_missing_points(tmp_path):
    write_poses(tmp_path / "poses.json", random_keypoints(), (HEIGHT, WIDTH))
    keypoints, canvas = read_poses(tmp_path / "poses.json")
    assert canvas == (HEIGHT, WIDTH)
    assert_same(keypoints, random_keypoints(), atol=1e-3)


def test_frames_without_anybody(tmp_path):
    write_poses(tmp_path / "poses.json", Keypoints.empty(2), (HEIGHT, WIDTH))
    keypoints, _ = read_poses(tmp_path / "poses.json")
    assert len(keypoints) == 2
    assert not keypoints.body_confidence.any()


@pytest.mark.parametrize("layout", ["one frame", "list", "frames"])
def test_openpose_files(tmp_path, layout):
    hand = [10.0, 20.0, 0.5] * 21
    face = [30.0, 40.0, 0.7] * 70
    one = frame(person(hand_right_keypoints_2d=hand, face_keypoints_2d=face, hand_left_keypoints_2d=[]), person())
    content = {"one frame": one, "list": [one], "frames": {**frame(), "frames": [{"people": one["people"]}]}}[layout]
    keypoints, canvas = read_poses(save(tmp_path / "poses.json", content))
    assert (len(keypoints), canvas) == (1, (HEIGHT, WIDTH))
    np.testing.assert_allclose(keypoints.body[0, :, 0], (np.arange(18) + 1) / 19, rtol=1e-5)
    np.testing.assert_allclose(keypoints.body[0, :, 1], 0.5)
    np.testing.assert_allclose(keypoints.hands[0, 1], [[10 / WIDTH, 20 / HEIGHT]] * 21, rtol=1e-5)
    np.testing.assert_allclose(keypoints.face[0], [[30 / WIDTH, 40 / HEIGHT]] * 68, rtol=1e-5)
    assert not keypoints.hands_confidence[0, 0].any()


def test_body_25_leaves_out_hip_centre_and_feet(tmp_path):
    keypoints, _ = read_poses(save(tmp_path / "poses.json", frame(person(25))))
    rows = np.array([*range(8), *range(9, 19)])
    np.testing.assert_allclose(keypoints.body[0, :, 0], (rows + 1) / 26, rtol=1e-5)


def test_folder_is_read_in_order_of_names(tmp_path):
    for index in (2, 0, 1):
        content = frame(person(), canvas=False)
        content["people"][0]["pose_keypoints_2d"][0] = 100.0 * index
        save(tmp_path / f"clip_{index:012d}_keypoints.json", content)
    keypoints, canvas = read_poses(tmp_path, canvas=(HEIGHT, WIDTH))
    assert canvas == (HEIGHT, WIDTH)
    np.testing.assert_allclose(keypoints.body[:, 0, 0] * WIDTH, [0, 100, 200], atol=1e-3)


def test_fractions_of_the_canvas(tmp_path):
    keypoints, _ = read_poses(save(tmp_path / "poses.json", frame(person(scale=(1, 1)))))
    np.testing.assert_allclose(keypoints.body[0, :, 0], (np.arange(18) + 1) / 19, rtol=1e-5)


def without(arrays, name):
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a readable JSON file"),
        ("[]", "holds no frames"),
        ('{"people": 3, "canvas_width": 9, "canvas_height": 9}', '"people" must be a list'),
        ('{"frames": [7]}', 'needs a list "people"'),
        ('{"version": 1.3}', 'needs a list "people"'),
        (json.dumps(frame(person(), canvas=False)), "canvas_width"),
        (json.dumps(frame({"pose_keypoints_2d": [1, 2, 3]})), "3 x 18 or 3 x 25"),
        (json.dumps(frame({"pose_keypoints_2d": ["a"] * 54})), "pose_keypoints_2d"),
        (json.dumps(frame({"pose_keypoints_2d": [float("nan")] * 54})), "pose_keypoints_2d"),
        (json.dumps(frame({"hand_left_keypoints_2d": [[1]] * 63})), "hand_left_keypoints_2d"),
        (json.dumps({**frame(person()), "canvas_width": "wide"}), "positive numbers"),
        (json.dumps({**frame(person()), "canvas_width": 0}), "a canvas of 0 x "),
        (json.dumps({**frame(person()), "canvas_width": float("inf")}), "a canvas of inf x "),
        (json.dumps({**frame(person()), "canvas_width": 999_999, "canvas_height": 100}), "a canvas of 999999 x 100 "),
        (json.dumps({**frame(person()), "canvas_width": 1700, "canvas_height": 100}), "at most 16 times the other"),
        (json.dumps(frame({"pose_keypoints_2d": [3e38] * 54})), "pose_keypoints_2d"),
        ("[" * 100_000 + "]" * 100_000, "not a readable JSON file"),
    ],
)
def test_malformed_json_is_one_line_naming_the_file(tmp_path, content, reason):
    (tmp_path / "poses.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_poses(tmp_path / "poses.json")
    assert_one_line(error, "poses.json", reason)


def test_malformed_npz_is_one_line_naming_the_file(tmp_path):
    path = tmp_path / "poses.npz"
    arrays = {name: getattr(random_keypoints(), name) for name in Keypoints.names()} | {"canvas": np.array([9, 9])}
    wrong = {
        "body_confidence": without(arrays, "body_confidence"),
        "hands": arrays | {"hands": arrays["hands"][:1]},
        "face": arrays | {"face": arrays["face"] * np.nan},
        "body": arrays | {"body": arrays["body"] + 3e38},
        "other things than arrays of numbers": arrays | {"body": arrays["body"] * 1j},
        "a canvas of 0 x 9 ": arrays | {"canvas": np.array([9, 0])},
        "a canvas of -9 x 9 ": arrays | {"canvas": np.array([9, -9])},
        "a canvas of inf x 9.0 ": arrays | {"canvas": np.array([9, np.inf])},
        "holds no frames": {name: array[:0] for name, array in arrays.items()},
    }
    for name, content in wrong.items():
        np.savez(path, **content)
        with pytest.raises(UserError) as error:
            read_poses(path)
        assert_one_line(error, "poses.npz", name)
    for content in (b"", b"text", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_poses(path)
        assert_one_line(error, "poses.npz", "not a readable keypoint file")


def test_keypoint_files_too_large(tmp_path, monkeypatch):
    keypoints = Keypoints.stack([random_keypoints()[0]] * 40)
    for name in ("poses.json", "poses.npz"):
        write_poses(tmp_path / name, keypoints, (HEIGHT, WIDTH))
    for limit in ("KEYPOINTS_JSON_BYTES", "KEYPOINTS_BYTES"):
        monkeypatch.setattr(limits, limit, 30_000)  # the .npz is smaller, but not what it holds
    for name in ("poses.json", "poses.npz"):
        with pytest.raises(UserError) as error:
            read_poses(tmp_path / name)
        assert_one_line(error, name, "more than 0 MB")
    monkeypatch.undo()
    monkeypatch.setattr(limits, "VIDEO_FRAMES", 39)
    for name in ("poses.json", "poses.npz"):
        with pytest.raises(UserError) as error:
            read_poses(tmp_path / name)
        assert_one_line(error, name, "more than 39 frames")


def test_a_folder_is_read_by_the_numbers_in_names(tmp_path):
    for index in range(1, 12):
        content = frame(person())
        content["people"][0]["pose_keypoints_2d"][0] = 10.0 * index
        save(tmp_path / f"{index}.json", content)
    keypoints, _ = read_poses(tmp_path)
    np.testing.assert_allclose(keypoints.body[:, 0, 0] * WIDTH, 10 * np.arange(1, 12), rtol=1e-5)


def test_places_that_cannot_be_read_or_written(tmp_path):
    (tmp_path / "file").write_text("")
    for act, reason in [
        (lambda: read_poses(tmp_path / "none.json"), "no such file"),
        (lambda: read_poses(tmp_path), "no .json files"),
        (lambda: write_poses(tmp_path / "poses.txt", random_keypoints(), (9, 9)), ".npz or .json"),
        (
            lambda: write_poses(tmp_path / "file" / "poses.npz", random_keypoints(), (9, 9)),
            "cannot be written",
        ),
    ]:
        with pytest.raises(UserError) as error:
            act()
        assert_one_line(error, str(tmp_path), reason)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
