"""How a process finds the others; how they work together is tests/training/test_processes.py."""

import os

import jax
import pytest

from animate_jax.errors import UserError
from animate_jax.parallel import processes

ADDRESS, COUNT, INDEX = processes.ENV_VARS


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in processes.ENV_VARS:
        monkeypatch.delenv(name, raising=False)


def test_nothing_said_is_nothing(monkeypatch):
    assert processes.from_environment() == (None, None, None)


def test_the_environment_says_it(monkeypatch):
    for name, value in {ADDRESS: "host:1234", COUNT: "4", INDEX: "3"}.items():
        monkeypatch.setenv(name, value)
    assert processes.from_environment() == ("host:1234", 4, 3)


@pytest.mark.parametrize(
    "said, message",
    [
        ({ADDRESS: "host:1"}, "set all three"),
        ({COUNT: "2", INDEX: "0"}, "set all three"),
        ({ADDRESS: "host:1", COUNT: "two", INDEX: "0"}, "set all three"),
        ({ADDRESS: "host:1", COUNT: "2", INDEX: "2"}, "JAX_PROCESS_ID=2: must be 0 to 1"),
    ],
)
def test_half_of_it_is_refused(monkeypatch, said, message):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), processes.distributed():
        pass


def lost():
    raise jax.errors.JaxRuntimeError("INTERNAL: connection reset\nmore")


def test_a_lost_process_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="process 0 of 4 lost another one") as caught:
        with processes.distributed():
            lost()
    assert "(INTERNAL: connection reset)" in str(caught.value) and "\n" not in str(caught.value)
    assert "start all of them again" in str(caught.value)


def test_alone_errors_are_what_they_are(monkeypatch):
    def none_recognised(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", none_recognised)
    with pytest.raises(jax.errors.JaxRuntimeError), processes.distributed():
        lost()


def test_failures_of_a_job_end_at_once(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    assert processes.exit_now(2) == 2 and not ended
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    processes.exit_now(2)
    assert ended == [2]
