"""What goes wrong around a run: storage, second starts, other options, damaged checkpoints, signals."""

import dataclasses
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from animate_jax.config import DataConfig, MeshConfig
from animate_jax.training.guards import Interrupt, run_lock
from animate_jax.training.loop import run
from tests.conftest import using
from tests.training.conftest import Numbers, changed, log, pull, refusal, saved

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.usefixtures("compile_fast"), pytest.mark.compiles]


class Reluctant:
    """A file system that refuses to rename so many folders, as gcsfuse does by default."""

    def __init__(self, monkeypatch, times):
        self.times = times
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, functools.partial(self.move, getattr(os, name)))

    def move(self, really, old, new, **options):
        if os.path.isdir(old) and self.times:
            self.times -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(old))
        return really(old, new, **options)


def test_a_save_that_fails_is_told_at_once_and_tried_again(config, micro, monkeypatch, capfd):
    Reluctant(monkeypatch, 1)

    class Slow(Numbers):
        def __next__(self):
            time.sleep(0.8)  # the save ends before the next one is due
            return super().__next__()

    run(changed(config, save_every=3, log_every=1), pull, Slow())
    assert saved(config) in ([4, 6], [5, 6], [6])  # on a busy machine the second try is the last step's
    said = capfd.readouterr().err
    assert "could not be written (OSError: [Errno 24] Too many open files" in said and "Traceback" not in said
    if saved(config) != [6]:
        assert said.index("could not be written") < said.index("step 6 of 6")


def test_a_storage_that_keeps_failing_ends_the_run_at_once(config, micro, monkeypatch, capfd):
    Reluctant(monkeypatch, 100)
    message = refusal(changed(config, save_every=2, log_every=1), pull, Numbers())
    assert f"{config.output}/checkpoints: no checkpoint can be written (OSError: [Errno 24]" in message
    assert log(config)[-1]["step"] < 6 and "Traceback" not in capfd.readouterr().err


def test_a_second_start_is_refused_and_a_killed_one_is_not(config, micro):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom animate_jax.training.guards import run_lock\n"
            "with run_lock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)",
            config.output,
        ],
        stdout=subprocess.PIPE,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
    )
    assert holder.stdout.readline() == b"held\n"
    message = refusal(config, pull, Numbers())
    assert f"{config.output}: is being trained already by process {holder.pid} on " in message
    holder.kill()
    holder.wait()
    with run_lock(config.output):
        pass


def other(micro, **schedule):
    return dataclasses.replace(micro, name="other", schedule=dataclasses.replace(micro.schedule, **schedule))


def test_what_decides_the_result_cannot_change_unnoticed(config, micro):
    run(config, pull, Numbers(stop=2))
    data = dataclasses.replace(config.data, seed=7)
    message = refusal(
        changed(config, data=data, trainable=r"vae\.quant_conv", preset=other(micro, prediction="v")), pull, Numbers()
    )
    assert message.startswith(f"{config.output}: was started with other options: ")
    for part in ("--prediction x0 -> v; ", "--data.seed 0 -> 7", r"vae\.quant_conv\.bias -> vae\.quant_conv;"):
        assert part in message
    assert "--allow-changes" in message
    wider = dataclasses.replace(micro, frames=dataclasses.replace(micro.frames, width=64))
    assert "other options: --size 48 -> 64: give" in refusal(using(config, wider), pull, Numbers())


def test_harmless_changes_and_wanted_ones_go_on(config, micro, capfd):
    run(config, pull, Numbers(stop=2))
    data = DataConfig(batch=2, num_workers=3)
    harmless = changed(config, steps=3, log_every=1, keep_last=3, mesh=MeshConfig(), data=data)
    run(harmless, pull, Numbers())
    assert "other options" not in capfd.readouterr().err
    wanted = changed(config, steps=4, seed=7, allow_changes=True)
    assert int(run(wanted, pull, Numbers()).step) == 4
    assert "goes on with other options than before: --seed 0 -> 7" in capfd.readouterr().err


def test_other_trainable_parameters_cannot_go_on(config, micro):
    run(config, pull, Numbers(stop=2))
    more = changed(config, trainable=r"vae\.quant_conv", allow_changes=True)
    message = refusal(more, pull, Numbers())
    assert f"{config.output}/checkpoints/2: cannot be restored" in message and f"--init {config.output}" in message


@pytest.mark.parametrize("steps, advice", [([2], "to start again"), ([2, 3], "to go on from step 2")], ids=str)
def test_a_damaged_run_says_what_happened(config, micro, steps, advice):
    for step in steps:
        run(changed(config, steps=step), pull, Numbers())
    shutil.rmtree(Path(config.output) / "checkpoints" / str(steps[-1]) / "train")
    message = refusal(config, pull, Numbers())
    assert f"checkpoints/{steps[-1]}: cannot be restored" in message and advice in message


def test_a_storage_that_fails_is_not_called_damage(config, micro, monkeypatch):
    run(config, pull, Numbers(stop=2))

    def fails(*_):
        raise TimeoutError("the storage answered 503")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.v1.training.Checkpointer.load_checkpointables", fails)
        message = refusal(config, pull, Numbers())
    assert "(TimeoutError: the storage answered 503)" in message and "another --output" not in message
    assert int(run(config, pull, Numbers()).step) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_only_the_first_interrupt_is_a_wish(number):
    reached = []
    before = signal.signal(number, lambda *_: reached.append(number))
    try:
        with Interrupt() as stop:
            assert not stop.asked
            signal.raise_signal(number)
            assert stop.asked and not reached
            signal.raise_signal(number)
            assert reached == [number]
        signal.raise_signal(number)
        assert len(reached) == 2
    finally:
        signal.signal(number, before)
