"""DWPose's arithmetic on made-up outputs, and the whole on two tiny made-up models."""

import sys

import cv2
import numpy as np
import pytest

from animate_jax.errors import UserError
from animate_jax.pose.dwpose import (
    DETECTOR,
    HEIGHT,
    MEAN,
    POSE_MODEL,
    STD,
    WIDTH,
    DWPose,
    crop_person,
    decode_boxes,
    decode_simcc,
    from_coco_wholebody,
    letterbox,
)

CELLS = 8400


def outputs(*boxes):
    """YOLOX's rows for (stride, column, row, width, height in pixels, objectness, class, class score)."""
    rows = np.full((CELLS, 85), 0.0, np.float32)
    start = {8: 0, 16: 6400, 32: 8000}
    for stride, column, row, width, height, objectness, kind, score in boxes:
        index = start[stride] + row * (640 // stride) + column
        rows[index, :4] = 0.5, 0.25, np.log(width / stride), np.log(height / stride)
        rows[index, 4], rows[index, 5 + kind] = objectness, score
    return rows


@pytest.mark.parametrize(
    "height, width, shown", [(320, 640, (320, 640)), (1280, 320, (640, 160)), (100, 50, (640, 320))]
)
def test_a_letterbox_holds_the_picture_in_its_corner(height, width, shown):
    frame = np.zeros((height, width, 3), np.uint8) + np.array([10, 20, 30], np.uint8)
    square, scale = letterbox(frame)
    assert square.shape == (3, 640, 640) and square.dtype == np.float32
    assert scale == shown[0] / height
    np.testing.assert_array_equal(
        square[:, : shown[0], : shown[1]].reshape(3, -1).T, [[30, 20, 10]] * (shown[0] * shown[1])
    )
    gray = square.copy()
    gray[:, : shown[0], : shown[1]] = 114
    np.testing.assert_array_equal(gray, 114)


def test_boxes_are_read_from_their_cells():
    found = decode_boxes(outputs((32, 3, 5, 100, 200, 0.9, 0, 0.9), (8, 40, 20, 30, 60, 0.8, 0, 0.8)))
    np.testing.assert_allclose(found[0], [3.5 * 32 - 50, 5.25 * 32 - 100, 3.5 * 32 + 50, 5.25 * 32 + 100], rtol=1e-6)
    np.testing.assert_allclose(found[1], [40.5 * 8 - 15, 20.25 * 8 - 30, 40.5 * 8 + 15, 20.25 * 8 + 30], rtol=1e-6)


@pytest.mark.parametrize("objectness, kind, score", [(0.5, 0, 0.5), (1.0, 1, 1.0), (0.3, 0, 1.0)])
def test_the_unlikely_and_the_inhuman_are_left_out(objectness, kind, score):
    assert len(decode_boxes(outputs((32, 3, 5, 100, 200, objectness, kind, score)))) == 0


def test_of_overlapping_boxes_the_likeliest_remains():
    """One cell to the side: intersection over union 68 / 132; two cells: 36 / 164."""
    near = decode_boxes(outputs((32, 3, 5, 100, 200, 0.7, 0, 1), (32, 4, 5, 100, 200, 0.9, 0, 1)))
    assert len(near) == 1 and near[0, 0] == pytest.approx(4.5 * 32 - 50)
    assert len(decode_boxes(outputs((32, 3, 5, 100, 200, 0.7, 0, 1), (32, 5, 5, 100, 200, 0.9, 0, 1)))) == 2


@pytest.mark.parametrize("box", [(100, 50, 200, 350), (20, 200, 320, 260)])
def test_a_crop_is_the_padded_box_in_its_proportions(box):
    frame = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    picture, to_frame = crop_person(frame, np.array(box, float))
    corners = np.array([[0, 0, 1], [WIDTH, HEIGHT, 1]]) @ to_frame.T
    width, height = corners[1] - corners[0]
    assert width / height == pytest.approx(WIDTH / HEIGHT)
    assert max(width / (box[2] - box[0]), height / (box[3] - box[1])) >= 1.25 - 1e-9
    assert min(width / (box[2] - box[0]), height / (box[3] - box[1])) == pytest.approx(1.25)
    np.testing.assert_allclose(corners.mean(0), [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    x, y = 100, 150  # a pixel of the crop shows the frame there, blue first
    place = to_frame @ (x, y, 1)
    expected = cv2.getRectSubPix(frame[..., ::-1].astype(np.float32), (1, 1), tuple(place))[0, 0]
    np.testing.assert_allclose(picture[:, y, x] * STD + MEAN, expected, atol=4)  # OpenCV's 1/32 pixel


def test_simcc_takes_the_best_column_and_row():
    x, y = np.zeros((133, 576), np.float32), np.zeros((133, 768), np.float32)
    x[np.arange(133), np.arange(133) * 3], y[np.arange(133), 700 - np.arange(133)] = 0.9, 0.6
    x[7], y[7] = 0, 0
    x[7, 11], y[7, 13] = 0.2, 0.8
    points, confidence = decode_simcc(x, y)
    np.testing.assert_array_equal(points[5], [7.5, 347.5])
    np.testing.assert_array_equal(points[7], [5.5, 6.5])
    np.testing.assert_allclose(confidence[[5, 7]], [0.6, 0.2])


def test_whole_body_points_get_their_places():
    points = np.stack([np.arange(133), 2.0 * np.arange(133)], -1)
    confidence = np.linspace(0.4, 1.2, 133)
    pose = from_coco_wholebody(points, confidence, (500, 250))
    # OpenPose 18: nose, (neck), right arm, left arm, right leg, left leg, eyes, ears, by COCO's numbers.
    coco = [0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    for ours, theirs in enumerate(coco):
        if theirs is not None:
            np.testing.assert_allclose(pose.body[ours], [theirs / 250, 2 * theirs / 500], rtol=1e-6)
    np.testing.assert_allclose(pose.body[1], [5.5 / 250, 11 / 500], rtol=1e-6)
    assert pose.body_confidence[1] == 1
    assert pose.face[0, 0] == pytest.approx(23 / 250) and pose.face[67, 0] == pytest.approx(90 / 250)
    assert pose.hands[0, 0, 0] == pytest.approx(91 / 250) and pose.hands[1, 20, 0] == pytest.approx(132 / 250)
    assert pose.hands_confidence[1, 20] == 1  # clipped
    confidence[6] = 0.3
    assert from_coco_wholebody(points, confidence, (500, 250)).body_confidence[1] == 0  # a shoulder is not seen


def write_models(folder, boxes):
    """A detector that always answers `boxes`; a reader whose every point is the brightest column and row."""
    onnx = pytest.importorskip("onnx")
    node, tensor, helper = onnx.helper.make_node, onnx.numpy_helper.from_array, onnx.helper

    def info(name, shape):
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    def write(name, nodes, inputs, outputs, constants):
        graph = helper.make_graph(nodes, name, inputs, outputs, [tensor(v, k) for k, v in constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        onnx.save(model, folder / name)

    write(
        DETECTOR,
        [
            node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
            node("Mul", ["mean", "zero"], ["nothing"]),
            node("Add", ["rows", "nothing"], ["output"]),
        ],
        [info("images", [1, 3, 640, 640])],
        [info("output", [1, CELLS, 85])],
        {"rows": outputs(*boxes)[None], "zero": np.zeros(1, np.float32)},
    )
    many = {"points": np.array([1, 133, 1, 1], np.int64)}
    nodes, results = [], []
    for name, axis, size in (("simcc_x", 2, WIDTH), ("simcc_y", 3, HEIGHT)):
        nodes += [
            node("ReduceMax", ["input"], [f"{name}_max"], axes=[1, axis], keepdims=0),  # [1, size]
            node("Reshape", [f"{name}_max", f"{name}_column"], [f"{name}_upright"]),
            node("Mul", [f"{name}_upright", f"{name}_pair"], [f"{name}_double"]),  # the first of two is best
            node("Reshape", [f"{name}_double", f"{name}_flat"], [f"{name}_row"]),
            node("Tile", [f"{name}_row", f"{name}_times"], [name]),
        ]
        many |= {
            f"{name}_column": np.array([1, 1, size, 1], np.int64),
            f"{name}_pair": np.float32([[[[1, 0.5]]]]),
            f"{name}_flat": np.array([1, 1, 2 * size], np.int64),
            f"{name}_times": np.array([1, 133, 1], np.int64),
        }
        results.append(info(name, [1, 133, 2 * size]))
    many.pop("points")
    write(POSE_MODEL, nodes, [info("input", [1, 3, HEIGHT, WIDTH])], results, many)


def test_two_models_make_a_detector(tmp_path):
    """A white spot in each of two people's boxes is where all their points are found."""
    pytest.importorskip("onnxruntime")
    boxes = (32, 3, 5, 100, 200, 0.9, 0, 0.9), (32, 12, 5, 100, 240, 0.9, 0, 0.8)
    write_models(tmp_path, boxes)
    frames = np.zeros((2, 320, 320, 3), np.uint8)  # shown at twice the size: boxes at half of theirs
    spots = [(50, 80), (205, 70)]
    for x, y in spots:
        frames[:, y - 2 : y + 3, x - 2 : x + 3] = 255
    done = []
    found = DWPose(tmp_path)(frames, done.append, "1")
    assert done == [1, 2] and len(found) == 2
    for place, choice in zip(spots, ("1", "2"), strict=True):
        found = DWPose(tmp_path)(iter(frames), person=choice)
        np.testing.assert_allclose(found.body * 320, np.broadcast_to(place, (2, 18, 2)), atol=3)
        np.testing.assert_allclose(found.hands[..., 0] * 320, place[0], atol=3)
        assert (found.face_confidence == 1).all()


def test_without_boxes_the_whole_picture_is_read(tmp_path):
    pytest.importorskip("onnxruntime")
    write_models(tmp_path, ())
    frame = np.zeros((200, 150, 3), np.uint8)
    frame[140:145, 30:35] = 255
    found = DWPose(tmp_path)(frame[None])
    np.testing.assert_allclose(found.body[0] * (150, 200), np.broadcast_to([32.5, 142.5], (18, 2)), atol=3)


def test_missing_and_broken_models_are_errors(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match=r"yolox_l\.onnx: no such file"):
        DWPose(tmp_path)
    for name in (DETECTOR, POSE_MODEL):
        (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(UserError, match=r"yolox_l\.onnx: not a readable model in ONNX"):
        DWPose(tmp_path)


def test_exchanged_models_are_one_line(tmp_path, capfd):
    pytest.importorskip("onnxruntime")
    write_models(tmp_path, ())
    (tmp_path / DETECTOR).rename(tmp_path / "other")
    (tmp_path / POSE_MODEL).rename(tmp_path / DETECTOR)
    (tmp_path / "other").rename(tmp_path / POSE_MODEL)
    with pytest.raises(UserError, match=r"yolox_l\.onnx: takes pictures of \(384, 288\), not \(640, 640\)") as caught:
        DWPose(tmp_path)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'animate_jax\[dwpose\]'"):
        DWPose(tmp_path)
