"""The launch files: their shells and YAML parse, and the training commands in them are ones that the program takes."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import tyro
import yaml

from animate_jax.commands.train import load_config
from animate_jax.config import TrainConfig

FILES = sorted((Path(__file__).parents[1] / "launch").iterdir())


def script(path):
    if path.suffix == ".yaml":
        job = yaml.safe_load(path.read_text())
        assert job.keys() >= {"resources", "setup", "run"}
        return f"{job['setup']}\n{job['run']}"
    return path.read_text()


def training(path):
    """The options of its `animate-jax train`, with a name in place of every variable."""
    text = re.sub(r"\\\n\s*", " ", script(path))
    (line,) = re.findall(r"animate-jax train ([^\"\n]*)", text)
    return shlex.split(re.sub(r"\$\{?\w+\}?", "somewhere", line))


def test_there_is_one_for_every_launcher():
    assert {path.name for path in FILES} == {"gcluster.sh", "skypilot.yaml", "slurm.sh", "tpu_vm.sh", "xpk.sh"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_shell_parses(path):
    subprocess.run(["bash", "-n"], input=script(path), text=True, check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_training_command_is_understood(path):
    name, *options = training(path)
    config = tyro.cli(TrainConfig, default=load_config(name), args=options)
    assert config.stage == "stage1" and config.mesh.fsdp > 1
    remote = [str(value).startswith("gs://") for value in (config.init, config.output, config.data.root)]
    assert all(remote) or not any(remote)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_extra_that_exists_is_installed(path):
    import tomllib

    extras = tomllib.loads((path.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extra,) = re.findall(r"\[(\w+)\]'", path.read_text())
    assert extra in extras
