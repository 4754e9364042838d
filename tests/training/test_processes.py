"""Whole training runs in processes of their own: several that work together, and some that are killed."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytestmark = pytest.mark.compiles

CHILD = Path(__file__).with_name("child.py")


class Job:
    """Processes that train together; `options` are child.py's."""

    def __init__(self, place, count=1, devices=1, **options):
        self.output = Path(options["output"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
        environment |= {"JAX_PLATFORMS": "cpu", "CHILD_CACHE": str(place / "cache")}
        environment["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={devices} --xla_cpu_use_fusion_emitters=false"
        )
        if count > 1:
            environment |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        self._errors = [place / f"{self.output.name}_{index}.err" for index in range(count)]
        self.processes = []
        for index, path in enumerate(self._errors):
            own = environment | ({"JAX_PROCESS_ID": str(index)} if count > 1 else {})
            with path.open("w") as errors:
                command = [sys.executable, str(CHILD), json.dumps(options)]
                self.processes.append(subprocess.Popen(command, env=own, stdout=errors, stderr=errors))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self, seconds=1800):
        end = time.monotonic() + seconds
        return [process.wait(max(end - time.monotonic(), 1)) for process in self.processes]

    def finish(self):
        with self:
            assert self.wait() == [0] * len(self.processes), self.said()

    def reach(self, step, seconds=240):
        """Waits until the step is logged; False when the processes ended before."""
        end = time.monotonic() + seconds
        while all(line["step"] < step for line in log(self.output)):
            assert time.monotonic() < end, self.said()
            if any(process.poll() is not None for process in self.processes):
                return False
            time.sleep(0.02)
        return True

    def said(self):
        return "\n".join(path.read_text()[-20_000:] for path in self._errors)


def log(output):
    try:
        lines = (output / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def losses(output):
    """Of every step, each logged once."""
    lines = log(output)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["loss"] for line in lines])


def saved(output):
    return sorted(int(path.name) for path in (output / "checkpoints").glob("[0-9]*") if path.name.isdigit())


def assert_same_end(output, other, rtol=0.0):
    with np.load(output / "final.npz") as a, np.load(other / "final.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol, err_msg=name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def alone(place, micro_checkpoint):
    """One process with eight devices, undisturbed."""
    options = {"output": str(place / "alone"), "init": str(micro_checkpoint), "steps": 8, "save_every": 4, "fsdp": 2}
    Job(place, devices=8, **options).finish()
    return place / "alone", options


def test_two_processes_are_one_and_stop_together_and_go_on_as_one(alone, place):
    reference, options = alone
    options = options | {"output": str(place / "two"), "fsdp": 4, "save_every": 100}
    with Job(place, 2, 4, **options, delay=0.5) as job:
        assert job.reach(3), job.said()
        job.processes[1].send_signal(signal.SIGTERM)  # only one is told to stop
        assert job.wait() == [0, 0], job.said()
    (stopped,) = saved(job.output)
    assert 3 <= stopped < 8 and len(losses(job.output)) == stopped
    for index in range(2):
        read = np.loadtxt(job.output / f"read_{index}.txt")
        np.testing.assert_array_equal(read, np.arange(8 * stopped).reshape(stopped, 2, 4)[:, index])
    Job(place, devices=1, **options | {"fsdp": 1}).finish()  # another mesh, another number of processes
    np.testing.assert_allclose(losses(job.output), losses(reference), rtol=1e-5)
    assert_same_end(job.output, reference, 1e-5)
    totals = [[line["preview/total"] for line in log(output)[3::4]] for output in (job.output, reference)]
    np.testing.assert_allclose(*totals, rtol=1e-5)


def test_previews_of_two_processes_are_those_of_one(place, micro_checkpoint):
    """Real ones: process 0 samples on its two devices, which divide the frames, from weights that four hold."""
    options = {"init": str(micro_checkpoint), "steps": 1, "save_every": 100, "previews": True, "preview_every": 1}
    Job(place, output=str(place / "shown_by_one"), **options).finish()
    Job(place, 2, 2, output=str(place / "shown_by_two"), fsdp=4, **options).finish()
    runs = [place / "shown_by_one", place / "shown_by_two"]
    for run in runs:
        assert sorted(path.name for path in (run / "previews").iterdir()) == ["0000001.mp4", "0000001.png"]
    pictures = [np.asarray(PIL.Image.open(run / "previews" / "0000001.png")).astype(int) for run in runs]
    assert pictures[0].std() > 10 and np.abs(pictures[0] - pictures[1]).max() <= 1  # of 255
    scores = [{name: value for name, value in log(run)[0].items() if name.startswith("preview/")} for run in runs]
    assert len(scores[0]) >= 3 and scores[1] == pytest.approx(scores[0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_job_and_a_restart_goes_on(alone, place, victim):
    reference, options = alone
    options = options | {"output": str(place / f"lost_{victim}"), "save_every": 2}
    with Job(place, 2, 4, **options, delay=1.0) as job:
        assert job.reach(5), job.said()
        job.processes[victim].kill()
        job.processes[1 - victim].wait(60)
    assert job.processes[1 - victim].returncode not in (0, -signal.SIGKILL)
    assert "another task died" in job.said() or "lost another one" in job.said()
    Job(place, 2, 4, **options).finish()
    np.testing.assert_allclose(losses(job.output), losses(reference), rtol=1e-5)
    assert_same_end(job.output, reference, 1e-5)


@pytest.mark.parametrize(
    "kills, steps, real",
    [
        (3, 10, False),
        pytest.param(20, 100, False, marks=pytest.mark.slow),
        pytest.param(20, 100, True, marks=pytest.mark.slow),
    ],
    ids=["3", "20", "20 of stage 1"],
)
def test_killed_at_random_and_none_the_worse(place, micro_checkpoint, kills, steps, real):
    """kill -9, half of the time while a checkpoint is being written, since every step writes one."""
    options = {"init": str(micro_checkpoint), "steps": steps, "save_every": 1, "real": real}
    name, chance = f"{kills}_{real}", random.Random(kills)
    Job(place, output=str(place / f"calm_{name}"), **options).finish()
    output, while_saving, lost = place / f"killed_{name}", 0, 0
    for _ in range(kills):
        with Job(place, output=str(output), **options) as job:
            assert job.reach(max(saved(output), default=0) + chance.randint(1, 3)), job.said()
            time.sleep(chance.uniform(0, 0.3))
            job.processes[0].kill()
            job.processes[0].wait()
        while_saving += any("tmp" in path.name for path in (output / "checkpoints").iterdir())
        lost += log(output)[-1]["step"] - max(saved(output), default=0)
    Job(place, output=str(output), **options).finish()
    print(f"{kills} kills, {while_saving} while saving; {lost} steps done again")
    np.testing.assert_array_equal(losses(output), losses(place / f"calm_{name}"))
    assert_same_end(output, place / f"calm_{name}")
    assert saved(output) == [steps - 1, steps]
