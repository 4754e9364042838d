"""What a run writes while it trains."""

import json
import signal
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from animate_jax.errors import UserError
from animate_jax.training import metrics
from animate_jax.training.metrics import Clock, MetricWriter, Profile
from animate_jax.training.progress import progress_text


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
    with MetricWriter(run, 0) as writer:
        writer.write(50, {"loss": 0.5, "val/psnr": 20.25})
        assert json.loads((run / "metrics.jsonl").read_text()) == {"step": 50, "loss": 0.5, "val/psnr": 20.25}
    assert read_board(run) == [("loss", 50, 0.5), ("val/psnr", 50, 20.25)]
    with MetricWriter(run, 50) as writer:  # resumed: goes on in the same file
        writer.write(100, {"loss": float("nan")})
    _, line = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 100, "loss": None}


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_wrote_after_its_last_checkpoint_goes(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        for step in (10, 20, 30):
            writer.write(step, {"loss": float(step)})
    lines = tmp_path / "metrics.jsonl"
    lines.write_text(lines.read_text() + '{"step": 40, "lo')
    with MetricWriter(tmp_path, 20) as writer:
        writer.write(30, {"loss": 0.5})
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [
        {"step": 10, "loss": 10.0},
        {"step": 20, "loss": 20.0},
        {"step": 30, "loss": 0.5},
    ]
    assert [path.name for path in tmp_path.glob("metrics*")] == ["metrics.jsonl"]


@pytest.mark.parametrize("line", ["5", "[1]", "{}", '{"step": "a"}', "loss,0.5"])
def test_lines_of_others_stay(line, tmp_path):
    text = f'{{"step": 5}}\n{line}\n{{"step": 6}}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics.jsonl: line 2 is no step's metrics: move the file away"):
        MetricWriter(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_weights_and_biases(tmp_path, monkeypatch):
    calls = []
    board = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda exit_code: calls.append(exit_code)
    )
    fake = types.SimpleNamespace(init=lambda **options: calls.append(options) or board)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = tmp_path / "one"
    with MetricWriter(run, 0, {"seed": 3}) as writer:
        writer.write(5, {"loss": 0.5})
    begun, *rest = calls
    assert begun["config"] == {"seed": 3} and begun["name"] == "one" and begun["resume"] == "allow"
    assert rest == [(5, {"loss": 0.5}), 0]
    for directory, same in ((run, True), (tmp_path / "other" / "one", False)):  # resumed; a namesake
        with MetricWriter(directory, 0, {}):
            assert (calls[3]["id"] == begun["id"]) is same
        del calls[3:]


def test_weights_and_biases_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb: needs the package wandb: pip install"):
        MetricWriter(tmp_path, 0, {})


def test_rates_count_steps_images_waiting_and_use_of_the_chip(monkeypatch):
    square = jnp.ones((64, 64))
    step = jax.jit(lambda a: a @ a).lower(square).compile()  # 2 * 64**3 FLOPs
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    clock = Clock(6, "TPU v5 lite")  # 197 TFLOP/s
    now[0] += 50  # compiling
    clock.start(step, {}, passes=2)
    with clock.waiting():
        now[0] += 1
    now[0] += 3
    rates = clock.rates(8)
    assert rates.pop("hfu") == pytest.approx(2 * 2 * 64**3 * 2 / 197e12, rel=0.01)
    assert rates.pop("mfu") == pytest.approx(2 * 2 * 64**3 * 2 / 197e12, rel=0.01)
    assert rates == {"steps_per_second": 2.0, "images_per_second": 12.0, "data_wait": 0.25}
    clock.restart()
    for seconds in (1, 1, 1, 5):
        now[0] += seconds
        clock.tick()
    spread = [clock.rates(4)[f"step_seconds_{name}"] for name in ("p50", "p95", "max")]
    assert spread == pytest.approx([1.0, 4.4, 5.0]) and clock.seconds == 8
    clock.restart()
    now[0] += 1
    assert clock.rates(1)["data_wait"] == 0
    unknown = Clock(6, "cpu")
    unknown.start(step, {})
    now[0] += 1
    assert not {"mfu", "hfu"} & unknown.rates(1).keys()
    assert progress_text({"loss": 0.1, "grad_norm": 1.5, **rates, "skipped": 2.0}).endswith("2 steps skipped")
    line = progress_text({"loss": 0.12345, "grad_norm": 1.5, **rates})
    assert line == "loss 0.1235, grad 1.5, 12 images/s, data 25.0%"
    assert progress_text({"loss": 0.1, "grad_norm": 1.5, **rates, "mfu": 0.5}).endswith(", MFU 50.0%")


@pytest.mark.parametrize("end, traced", [(9, [6, 7, 8]), (7, [6, 7])], ids=["three steps", "a run that ends first"])
def test_profile(tmp_path, monkeypatch, end, traced):
    tracing, seen = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda place: tracing.append(place))
    monkeypatch.setattr(jax.profiler, "stop_trace", tracing.clear)
    with Profile(tmp_path, 3, True) as profile:
        for step in range(4, end + 1):
            profile.before(step, jnp.zeros(()))
            seen += [step] * (tracing == [tmp_path / "profile"])
    assert seen == traced and tracing == []
    with Profile(tmp_path, 3, False) as profile:
        for step in range(4, 12):
            if step == 6:
                signal.raise_signal(signal.SIGUSR1)  # at any time
            profile.before(step, jnp.zeros(()))
            assert bool(tracing) == (step in (6, 7, 8))
