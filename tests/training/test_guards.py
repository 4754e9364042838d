"""Guards that need no run, and where a run's time went."""

import faulthandler
import json
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from animate_jax.errors import UserError
from animate_jax.parallel.mesh import make_mesh
from animate_jax.training import guards
from animate_jax.training.goodput import account, clock_time, report
from animate_jax.training.guards import Watchdog, check_memory, check_step_memory
from animate_jax.training.state import TrainState

pytestmark = pytest.mark.compiles


def test_signals_during_a_compilation():
    """A lock stands for the compiler: Python calls no handler before it has it, which is never."""
    code = """
import ctypes
from animate_jax.training.guards import Interrupt
with Interrupt():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    print("compiling", flush=True)
    while True: libc.pthread_mutex_lock(mutex)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "compiling\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert "stopping after the step" in "".join(process.stderr.readline() for _ in range(2))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


def test_too_little_memory_is_told_before_anything_is_loaded(monkeypatch):
    mesh = make_mesh(devices=jax.devices()[:1])
    everywhere = NamedSharding(mesh, PartitionSpec())
    leaf = jax.ShapeDtypeStruct((1000, 1000), jnp.float32, sharding=everywhere)
    step = jax.ShapeDtypeStruct((0,), jnp.int32, sharding=everywhere)
    state = TrainState(step, trainable={"a": leaf}, frozen={"b": leaf}, opt=[leaf, leaf], ema={})
    monkeypatch.setattr(guards, "host_memory_free", lambda: 20_000_000)  # weights, two moments, gradients: 5 x 4 MB
    check_memory(state, mesh)
    monkeypatch.setattr(guards, "host_memory_free", lambda: 19_999_999)
    with pytest.raises(UserError, match=r"take 0\.0 GB, .* this machine has 0\.0 GB: divide them \(--mesh\.fsdp\)"):
        check_memory(state, mesh)
    monkeypatch.setattr(guards, "host_memory_free", lambda: None)
    check_memory(state, mesh)


def test_too_little_memory_for_a_step_is_told_before_the_first_one(monkeypatch):
    step = jax.jit(lambda x: (x @ x) @ x).lower(jax.ShapeDtypeStruct((100, 100), jnp.float32)).compile()
    monkeypatch.setattr(guards, "host_memory_free", lambda: 10**9)
    check_step_memory(step)
    monkeypatch.setattr(guards, "host_memory_free", lambda: 39_999)  # the inner product: 100 x 100 x 4 bytes
    with pytest.raises(UserError, match=r"a step takes .* in addition to .* this machine has 0\.0 GB left: --remat"):
        check_step_memory(step)


def test_free_memory_is_plausible():
    assert 10**8 < guards.host_memory_free() < 10**14


def test_the_watchdog_tells_where_a_step_hangs():
    code = """
import time
from animate_jax.training.guards import Watchdog
def the_step_that_hangs(seconds): time.sleep(seconds)
with Watchdog(0.5 / 60) as dog:
    dog.arm(); the_step_that_hangs(0.1); dog.arm(); the_step_that_hangs(1.5); dog.disarm(); time.sleep(0.7)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said.count("Timeout") == 1 and said.count("in the_step_that_hangs") == 1


def test_no_watchdog(monkeypatch):
    monkeypatch.setattr(faulthandler, "dump_traceback_later", pytest.fail)
    with Watchdog(0.0) as dog:
        dog.arm()


def event(at, kind, seconds=0.0, **fields):
    return {"time": at, "event": kind, "seconds": seconds, **fields}


# Killed after step 30, of which 20 were saved; the second start does 21 to 30 again.
EVENTS = [
    {"time": 100.0, "event": "start"},
    event(110.0, "initialise", 10.0, step=0),
    event(140.0, "compile", 30.0),
    event(160.0, "steps", 20.0, step=20, steps=20, waited=2.0),
    event(161.0, "save", 1.0, step=20),
    event(171.0, "steps", 10.0, step=30, steps=10, waited=1.0),
    {"time": 200.0, "event": "start"},
    event(205.0, "restore", 5.0, step=20),
    event(208.0, "compile", 3.0),
    event(228.0, "steps", 20.0, step=40, steps=20, waited=0.0),
    event(231.0, "preview", 3.0, step=40),
    {"time": 235.0, "event": "stop"},
]


def test_where_the_time_went(tmp_path):
    spent = account(EVENTS)
    assert spent == {
        "steps": 38.0,
        "waited": 2.0,
        "again": 10.0,
        "compile": 33.0,
        "restore": 5.0,
        "initialise": 10.0,
        "save": 1.0,
        "preview": 3.0,
        "down": 29.0,
        "other": 4.0,
    }
    assert sum(spent.values()) == 135.0
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, EVENTS)) + '\n{"time": 236.0, "ev')
    said = report(tmp_path).splitlines()
    assert said[0] == f"{tmp_path}: 28.1% goodput of 0:02:15 in 2 starts"
    assert "  compiling            0:00:33   24.4%" in said
    assert clock_time(3725.0) == "1:02:05"
    command = [sys.executable, "-m", "animate_jax", "goodput", str(tmp_path)]
    began = time.monotonic()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == said
    assert time.monotonic() - began < 30
    done = subprocess.run([*command[:-1], str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "holds no events.jsonl: give the --output of a training run" in done.stderr


def test_windows_that_are_done_again_in_part():
    steps = event(60.0, "steps", 40.0, step=40, steps=40, waited=0.0)
    events = [
        {"time": 0.0, "event": "start"},
        steps,
        {"time": 70.0, "event": "start"},
        event(71.0, "restore", 1.0, step=30),
    ]
    assert account(events)["again"] == 10.0
