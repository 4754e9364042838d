"""Damaged files, given to the program's own entry points; see `tests/fuzz/fuzz.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]
KINDS = ("pictures", "videos", "poses", "weights", "data", "checkpoints", "presets", "sample")


def fuzz(folder, *arguments):
    command = [sys.executable, "-m", "tests.fuzz.fuzz", *map(str, arguments), "--folder", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def test_a_few_of_every_kind_and_all_that_once_failed(tmp_path):
    told = fuzz(tmp_path, *KINDS)
    assert [line.split(":")[0] for line in told.splitlines()] == list(KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind, seed, tmp_path):
    fuzz(tmp_path, kind, "--seed", seed, "--cases", 1000 if kind in ("pictures", "videos", "poses", "weights") else 150)


NOTICES = """
import pathlib, sys, time
from tests.fuzz import harness
from animate_jax.errors import UserError

harness.SECONDS, harness.MEGABYTES = 1, 90
folder = pathlib.Path(sys.argv[1])

def refuse(path):
    raise UserError("one line")

def quarrel(path):
    raise UserError("two\\nlines")

def crash(path):
    raise KeyError("no")

def shout(path):
    print("!")

def wait(path):
    time.sleep(9)

def grow(path):
    (folder / "x").write_bytes(b"x" * 150_000_000)
    (folder / "x").unlink()

def leave(path):
    path.with_name("left").touch()

for fault in (refuse, quarrel, crash, shout, wait, grow, leave):
    kind = harness.Kind()
    kind.files, kind.read = {"a": b"a"}, fault
    try:
        harness.run_case(kind, "a", b"b", folder / "cases" / "x", folder / "noise")
        print(fault.__name__, "passed")
    except harness.Failed as error:
        print(fault.__name__, str(error).split()[0])
"""


def test_what_the_harness_notices(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NOTICES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.splitlines() == [
        "refuse passed",
        "quarrel no",
        "crash KeyError:",
        "shout printed:",
        "wait took",
        "grow took",
        "leave left",
    ], done.stdout + done.stderr
