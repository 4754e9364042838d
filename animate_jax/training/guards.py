"""What a run is guarded against: signals, a second start, steps that hang, and too little memory."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import pathlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from animate_jax.errors import UserError
from animate_jax.training.state import TrainState

GB = 1e9
ANSWER = b"\nstopping after the step that runs or compiles, and saving; a second signal ends at once\n"


class Interrupt:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a request to stop after the step; a second one ends at once.

    Attributes:
        number: the signal, or None.
        stopped: set by the training loop when it ends early: by this process's signal or another's.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.stopped = False
        self._previous: dict[int, Any] = {}
        self._wakeup = self._previous_wakeup = -1

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
                self._previous[number] = signal.signal(number, self._ask)
        reading, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        self._previous_wakeup = signal.set_wakeup_fd(self._wakeup)
        threading.Thread(target=self._answer, args=(reading,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._restore()
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._wakeup)  # ends the thread

    @property
    def asked(self) -> bool:
        return self.number is not None

    @property
    def status(self) -> int:
        """The exit status of a process that this ended, as shells and schedulers know it: 143 after SIGTERM."""
        return 128 + (self.number or signal.SIGTERM) if self.stopped else 0

    def any_process(self, mesh: Mesh, *requests: bool) -> np.ndarray | jax.Array:
        """Whether any process was asked to stop, and which of the other `requests` any process has: the same answers in
        all processes, once they are computed. Every process must call it."""
        own = np.array([self.asked, *requests])
        if jax.process_count() == 1:
            return own
        everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        rows = np.tile(own, (jax.local_device_count(), 1))
        rows = jax.make_array_from_process_local_data(everywhere, rows, (mesh.size, len(own)))
        return jax.jit(_any_row, out_shardings=NamedSharding(mesh, PartitionSpec()))(rows)

    def _ask(self, number: int, _: Any) -> None:
        self.number = number
        self._restore()

    def _answer(self, reading: int) -> None:
        """Says what the first signal does, and ends the process after a second one. Python calls `_ask` only when a
        compilation has returned, after minutes; this thread hears of signals at once."""
        answered = False
        while number := int.from_bytes(os.read(reading, 1), "little"):
            if number not in self._previous:
                continue
            if not answered:
                answered = True
                with contextlib.suppress(OSError):  # the terminal was closed
                    os.write(2, ANSWER)
            elif not self.asked:
                os._exit(128 + number)
        os.close(reading)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def _any_row(rows: jax.Array) -> jax.Array:
    return jnp.any(rows, 0)


@contextlib.contextmanager
def run_lock(output: str | os.PathLike) -> Iterator[None]:
    """Holds the lock `<output>/run.lock` during the body; the system frees it however the process ends.

    Raises:
        UserError: another process holds it.
    """
    path = pathlib.Path(output) / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{output}: is being trained already{_holder(path)}: wait for it, or choose another --output"
            ) from None
        except OSError:
            pass  # a file system without locks
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        yield


def _holder(path: pathlib.Path) -> str:
    try:
        held = json.loads(path.read_text())
        return f" by process {held['pid']} on {held['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return ""


class Watchdog:
    """Prints the stack of every thread when a step takes longer than `minutes` (0: never); the step goes on."""

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_) -> None:
        self.disarm()

    def arm(self) -> None:
        """Before every step."""
        if self._seconds:
            with contextlib.suppress(AttributeError, OSError, ValueError):  # stderr is no file, as in notebooks
                faulthandler.dump_traceback_later(self._seconds, file=sys.stderr)

    def disarm(self) -> None:
        """Before what may take longer than a step."""
        faulthandler.cancel_dump_traceback_later()


def check_memory(state: TrainState, mesh: Mesh) -> None:
    """Stops a run that would be killed for its memory, before it loads anything.

    Args:
        state: shapes, dtypes and shardings.

    Raises:
        UserError: weights, moments and gradients alone exceed the memory of a device, or of this machine.
    """
    gradients = state.trainable
    needed = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves((state, gradients))
    )
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        needed, there, where = needed * len(mesh.local_devices), host_memory_free(), "this machine has"
    else:
        there, where = (device.memory_stats() or {}).get("bytes_limit"), f"each {device.device_kind} has"
    if there is not None and needed > there:
        raise UserError(
            f"weights, moments and gradients take {needed / GB:.1f} GB, before any activations, and {where} "
            f"{there / GB:.1f} GB: divide them (--mesh.fsdp), hold less of them (--optim.moments factored, "
            "--frozen-bf16, --optim.ema 0), or train less (--trainable)"
        )


def check_step_memory(step: jax.stages.Compiled) -> None:
    """Stops a run on CPUs that would be killed in its first step. Accelerators say themselves that it does not fit.

    Raises:
        UserError: what the step computes in passing does not fit beside what is there already.
    """
    if jax.default_backend() != "cpu" or (analysis := step.memory_analysis()) is None:
        return
    needed, free = analysis.temp_size_in_bytes * jax.local_device_count(), host_memory_free()
    if free is not None and needed > free:
        raise UserError(
            f"a step takes {needed / GB:.1f} GB in addition to weights and moments, and this machine has "
            f"{free / GB:.1f} GB left: --remat blocks, a larger --accumulate, or a smaller --data.batch"
        )


def host_memory_free() -> int | None:
    """Free bytes of this machine, or of the container around this process; None where unknown."""
    try:
        with open("/proc/meminfo") as lines:
            sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        free = sizes["MemAvailable"] + sizes["SwapFree"]
    except (OSError, ValueError, LookupError):
        return None
    with contextlib.suppress(OSError, ValueError):
        group = pathlib.Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def memory_used() -> dict[str, float]:
    """Memory of this process, and the peak of its first device where that is known, in GB."""
    used = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:
            used["host_memory"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / GB
    if peak := (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use"):
        used["device_memory"] = peak / GB
    return used
