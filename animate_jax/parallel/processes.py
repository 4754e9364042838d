"""Starting and ending a job of several processes (`jax.distributed`)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import jax

from animate_jax.errors import UserError

HEARTBEAT = 20  # seconds of silence after which a process counts as dead
ENV_VARS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@contextlib.contextmanager
def distributed() -> Iterator[None]:
    """Connects to the job's other processes before the body, which must be the first to use a device.

    JAX recognizes Cloud TPU pods, GKE, Slurm and MPI. Elsewhere the environment variables JAX_COORDINATOR_ADDRESS
    (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID name them. Otherwise there is only this process.

    Raises:
        UserError: the variables are incomplete or wrong; or another process was lost during the body.
    """
    address, count, index = from_environment()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the training loop
    try:
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError):
        if address is not None:
            raise
        # No cluster was recognized, or JAX is in use already, as in a notebook: this is the only process.
    try:
        yield
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # waits for all, so that no process ends the others
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one ({reason}); the last "
            "checkpoint is intact: start all of them again"
        ) from error


def from_environment() -> tuple[str | None, int | None, int | None]:
    """Coordinator's address, number of processes and index of this one; all None where none is set.

    Raises:
        UserError: some are missing or impossible.
    """
    address, *numbers = (os.environ.get(name) for name in ENV_VARS)
    if address is None and numbers == [None, None]:
        return None, None, None
    if address is None or not all(number and number.isdecimal() for number in numbers):
        raise UserError(f"{', '.join(ENV_VARS)}: set all three (host:port and two numbers), or none")
    count, index = (int(number) for number in numbers if number)
    if index >= count:
        raise UserError(f"JAX_PROCESS_ID={index}: must be 0 to {count - 1}, as JAX_NUM_PROCESSES is {count}")
    return address, count, index


def exit_now(status: int) -> int:
    """Ends a failed process at once if it is one of several: the usual exit would wait for the others, which wait for
    this one. A single process gets the status back."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status
