"""What a run writes while it trains."""

import json

import jax
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from animate_jax.training.metrics import MetricWriter


def read_board(directory):
    """(tag, step, value) of every scalar in the directory's TensorBoard files."""
    scalars = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            event = Event.FromString(data[12 : 12 + size])
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + size :]
    return scalars


def test_lines_and_tensorboard(tmp_path):
    run = tmp_path / "runs" / "one"  # made on demand
    with MetricWriter(run) as writer:
        writer.write(50, {"loss": 0.5, "val/psnr": 20.25})
        assert json.loads((run / "metrics.jsonl").read_text()) == {"step": 50, "loss": 0.5, "val/psnr": 20.25}
    assert read_board(run) == [("loss", 50, 0.5), ("val/psnr", 50, 20.25)]
    with MetricWriter(run) as writer:  # resumed: goes on in the same file
        writer.write(100, {"loss": float("nan")})
    _, line = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 100, "loss": None}


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path) as writer:
        writer.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
