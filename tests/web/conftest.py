import json

import pytest


@pytest.fixture
def keypoints():
    """Writes a JSON file of one person's keypoints on a canvas of (width, height), with `size` bytes of ballast."""

    def write(path, canvas, frames, size=0):
        points = [value for index in range(18) for value in (1000.0 * index, 5.0 * index, 1.0)]
        people = [{"people": [{"pose_keypoints_2d": points}]}] * frames
        file = {"canvas_width": canvas[0], "canvas_height": canvas[1], "frames": people, "more": "." * size}
        path.write_text(json.dumps(file))
        return str(path)

    return write
