"""The console command: what it offers, and that its parts are those of the root scripts."""

import importlib
import importlib.util
import inspect
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import jax
import pytest
import tyro

import animate_jax
from animate_jax.__main__ import COMMANDS, main
from animate_jax.commands import completion, doctor, sample, train, web, weights
from animate_jax.config import TrainConfig
from animate_jax.errors import UserError
from animate_jax.models.self_test import WrongResult
from animate_jax.presets import find_preset
from animate_jax.renamed import TRAIN_OPTIONS, current_flags
from animate_jax.xla_flags import WITHOUT_YNNPACK

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[2]


def test_version_and_help(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"{animate_jax.__version__}\n"
    assert main(["--help"]) == 0
    told = capfd.readouterr().out
    assert all(f"animate-jax {name} " in told for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments, advice", [(["sampel"], "did you mean sample?"), (["--stpes"], "choose one of sample, train, weights")]
)
def test_an_unknown_command_gets_a_suggestion(arguments, advice, capfd):
    assert main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"animate-jax: there is no command {arguments[0]}: {advice}")


def test_no_command_shows_the_help(capfd):
    assert main([]) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and all(f"animate-jax {name} " in captured.err for name in COMMANDS)


def test_a_reader_that_stops_reading_is_no_error():
    """`animate-jax ... | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "animate_jax", "goodput", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_port_that_is_none(capfd):
    assert web.main(["--port", "99999"]) == 2
    assert capfd.readouterr().err == "animate-jax web: --port 99999: must be 0 to 65535\n"


def test_lists_of_what_there_is(capfd):
    """Not only in the errors."""
    for command, names in (
        (["train", "--help"], train.config_names()),
        (["data", "build", "--help"], ["video_folder", "ubc_fashion", "tiktok", "ted_talk"]),
    ):
        assert main(command) == 0
        told = capfd.readouterr().out
        assert all(name in told for name in names)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_called_in_the_same_way(name):
    main = importlib.import_module(f"animate_jax.commands.{name}").main
    parameters = inspect.signature(main).parameters
    assert list(parameters) == ["arguments", "program"] and parameters["program"].default == f"animate-jax {name}"


def test_the_page_loads_as_sampling_does(monkeypatch):
    """With the preset, the kind of numbers, the mesh and the detector that were asked for."""
    loaded, served = MagicMock(return_value=MagicMock(web.Pipeline)), MagicMock(side_effect=UserError("as far as this"))
    monkeypatch.setattr(web, "serving", served)
    monkeypatch.setattr(web.Pipeline, "from_pretrained", loaded)
    monkeypatch.setattr(web, "DWPose", lambda folder: f"DWPose in {folder}")
    monkeypatch.setattr(web, "keep_compiled_programs", lambda: None)
    flags = ["--checkpoint", "mine", "--preset", "moore", "--dtype", "bfloat16", "--dwpose", "models", "--port", "1"]
    assert web.main([*flags, "--lora", "looks", "motion:0.5"]) == 2
    load, *_, detector = served.call_args.args
    load()
    assert loaded.call_args.args == ("mine", find_preset("moore"), None, "bfloat16")
    assert [call.args for call in loaded.return_value.load_lora.call_args_list] == [("looks", 1.0), ("motion", 0.5)]
    assert detector == "DWPose in models"
    assert web.main(["--mesh.frames", "3"]) == 2
    with pytest.raises(UserError, match=r"--mesh.frames 3: .* do not divide"):
        served.call_args.args[0]()


@pytest.mark.parametrize(
    "command, options, arguments, field, value",
    [
        ("web", web.Arguments, ["--waiting", "3"], "queue_size", 3),
        ("sample", sample.Arguments, ["--no-retarget"], "align", "none"),
        ("weights", weights.Import, ["--output", "ckpt", "--motion", "mm.ckpt"], "motion_module", "mm.ckpt"),
        ("train", TrainConfig, ["--stage", "vae", "--output", "run", "--half=vae"], "frozen_bf16", "vae"),
    ],
    ids=["web", "sample", "weights", "train"],
)
def test_old_flags_are_read_for_a_release(command, options, arguments, field, value, monkeypatch):
    found = []
    module = importlib.import_module(f"animate_jax.commands.{command}")
    monkeypatch.setattr(module, "main", lambda arguments, program: found.append(tyro.cli(options, args=arguments)) or 0)
    assert main([command, *arguments]) == 0 and getattr(found[0], field) == value


@pytest.mark.parametrize("old, new", TRAIN_OPTIONS.items())
def test_every_new_name_of_a_training_option_exists(old, new):
    def has(config, path):
        name, _, rest = path.partition(".")
        return hasattr(config, name) and (not rest or has(getattr(config, name), rest))

    config = TrainConfig("vae", "run")
    assert has(config, new) and not has(config, old)
    flag = f"--{old.replace('_', '-')}"
    assert current_flags("train", ["tiny_vae", flag, "1"]) == ["tiny_vae", f"--{new.replace('_', '-')}", "1"]
    assert current_flags("sample", [flag, "1"]) == [flag, "1"]


def test_weights_may_lie_in_a_bucket():
    for arguments in (
        ["import", "--output", "gs://bucket/ckpt"],
        ["export", "moore", "gs://bucket/ckpt", "--output", "o"],
    ):
        command = tyro.cli(weights.Command, args=arguments)
        assert "gs://bucket/ckpt" in (command.output, getattr(command, "checkpoint", None))


def test_errors_name_the_command(capfd, tmp_path):
    assert main(["sample", "--output", str(tmp_path / "out.avi")]) == 2
    assert capfd.readouterr().err.startswith("animate-jax sample: ")
    assert main(["train", "nothing"]) == 2
    assert capfd.readouterr().err.startswith("animate-jax train: nothing: no such configuration: give a .py file, or")
    assert main(["weights", "inspect", str(tmp_path / "gone.pth")]) == 2
    assert capfd.readouterr().err.startswith("animate-jax weights: ")


def test_the_shipped_configurations_are_those_beside_the_package():
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
    assert train.config_names() == names and "stage1" in names
    assert train.load_config("stage1") == train.load_config(str(ROOT / "configs" / "stage1.py"))


def test_the_scripts_are_the_commands():
    for name in ("sample", "train"):
        lines = (ROOT / f"{name}.py").read_text().splitlines()
        assert f'    sys.exit(run("{name}", sys.argv[1:], "{name}.py"))' in lines and len(lines) < 80


def test_the_examples_of_completion_stay_lines(capsys):
    with pytest.raises(SystemExit, match="0"):
        completion.main(["--help"], "animate-jax completion")
    assert len(re.findall(r"^ +animate-jax completion (?:bash|zsh|fish) > ", capsys.readouterr().out, re.M)) == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell, capfd):
    with pytest.raises(SystemExit) as ended:
        completion.main([shell], "animate-jax completion")
    assert not ended.value.code
    script = capfd.readouterr().out
    for word in (*COMMANDS, "tiny_stage1", "guidance", "musepose", "learning-rate"):
        assert word in script, word


def test_bash_completes():
    """What the shell proposes for a line, by its own completion function."""
    script = (
        f"source <({sys.executable} -m animate_jax completion bash); COMP_WORDS=(animate-jax sample --keep); "
        "COMP_CWORD=2; _tyro_animate_jax; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["--keep-inside"], done.stderr


@pytest.fixture
def no_arithmetic(monkeypatch):
    """tests/models/test_self_test.py has it, and it takes seconds."""
    monkeypatch.setattr(doctor, "wrong_results", lambda device: [])


def test_doctor_finds_what_is_there(capfd, no_arithmetic):
    assert doctor.main([], "animate-jax doctor") == 0
    told = capfd.readouterr().out
    for words in (
        f"animate-jax {animate_jax.__version__}",
        "(cpu)",
        "GiB free",
        "preset tiny",
        "BlazePose",
        "cpu:0 computes as",
    ):
        assert words in told
    assert "✗" not in told
    for extra, (packages, purpose) in doctor.EXTRAS.items():
        here = all(importlib.util.find_spec(name) for name in packages.split())
        (line,) = (line for line in told.splitlines() if line.split()[1] == extra)
        assert line.startswith("✓" if here else "·") and purpose in line and ("pip install" in line) != here


def test_doctor_says_what_to_do(capfd, tmp_path, monkeypatch, no_arithmetic):
    monkeypatch.setattr(doctor, "graphics_card", lambda: "NVIDIA H100")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    assert doctor.main(["--checkpoint", str(tmp_path), "--dwpose", str(tmp_path)], "animate-jax doctor") == 1
    bad = [line for line in capfd.readouterr().out.splitlines() if line.startswith("✗")]
    assert len(bad) == 3
    assert "NVIDIA H100 is not used: pip install 'animate-jax[cuda]'" in bad[0]
    assert "holds no checkpoint" in bad[1] and "lacks yolox_l.onnx and dw-ll_ucoco_384.onnx" in bad[2]


@pytest.mark.parametrize(
    "platform, version, flags, advice",
    [
        ("cpu", "0.10.2", "--xla_cpu_experimental_ynn_fusion_type=+reduce", f"XLA_FLAGS={WITHOUT_YNNPACK} (nothing"),
        ("cpu", "0.10.2", WITHOUT_YNNPACK, "pip install 'jax>=0.12'"),
        ("cpu", "0.13.0", "", "another version of jax"),
        ("gpu", "0.11.1", WITHOUT_YNNPACK, "'jax==0.10.2'"),
        ("tpu", "0.11.1", "", "another version of jax"),
    ],
)
def test_doctor_tells_of_devices_that_compute_wrongly(capfd, monkeypatch, platform, version, flags, advice):
    devices = []
    for number in range(3):
        devices.append(MagicMock(spec=jax.Device, platform=platform, number=number))
        devices[-1].__str__.return_value = f"{platform}:{number}"

    def wrong_results(device):
        if device.number == 2:
            raise RuntimeError("out of memory\nmore")
        return [WrongResult("sqrt(512)", 22.627, math.nan), WrongResult("x", 1.0, 2.0)] if device.number == 1 else []

    versions = doctor.importlib.metadata.version
    monkeypatch.setattr(
        doctor.importlib.metadata, "version", lambda name: {"jaxlib": version}.get(name, versions(name))
    )
    monkeypatch.setattr(doctor.jax, "local_devices", lambda: devices)
    monkeypatch.setattr(doctor, "wrong_results", wrong_results)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert doctor.main([], "animate-jax doctor") == 1
    well, wrong, broken = (line for line in capfd.readouterr().out.splitlines() if "arithmetic" in line)
    assert well.startswith("✓") and "✗ arithmetic" in wrong and "✗ arithmetic" in broken
    assert f"{platform}:1: sqrt(512): nan instead of 22.627, and 1 more wrong results: jaxlib {version}" in wrong
    assert f"{platform}:2: cannot compute: out of memory: jaxlib" in broken and advice in wrong and advice in broken


@pytest.fixture
def platforms():
    """Is not changed for other tests."""
    before = jax.config.values["jax_platforms"]
    yield
    jax.config.update("jax_platforms", before)


def test_doctor_without_a_working_accelerator(monkeypatch, capfd, platforms):
    def fails():
        raise RuntimeError("Unable to initialize backend 'tpu'\nmore")

    monkeypatch.setattr(doctor.jax, "devices", fails)
    assert doctor.main([], "animate-jax doctor") == 1
    assert "JAX cannot start: Unable to initialize backend 'tpu'; JAX_PLATFORMS=cpu" in capfd.readouterr().out


def test_no_device_is_one_line_and_doctor_goes_on():
    environment = dict(os.environ, JAX_PLATFORMS="cuda", CUDA_VISIBLE_DEVICES="")
    program = "import jax, sys; from animate_jax.errors import exit_status; sys.exit(exit_status('x', jax.devices, ''))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"x: JAX cannot start: .*; JAX_PLATFORMS=cpu always works\n", done.stderr)
    command = [sys.executable, "-m", "animate_jax", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "" and "✗ accelerator  JAX cannot start" in done.stdout
    assert "detector" in done.stdout and "✓ arithmetic" not in done.stdout


def test_weights_leave_the_accelerator_to_others(monkeypatch, platforms):
    """Another process may hold it: a notebook that calls this one."""
    used = []
    monkeypatch.setattr(weights, "inspect", lambda file: used.append(jax.config.values["jax_platforms"]))
    jax.config.update("jax_platforms", "tpu")
    assert weights.main(["inspect", "file"]) == 0 and used == ["cpu"]
