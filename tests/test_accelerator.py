"""benchmarks/accelerator.py: a failing part is one line and stops nothing; every part runs, small, on a CPU."""

import importlib
import json
import math
import subprocess
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("accelerator")


def test_failures_are_lines_of_the_table(accelerator, monkeypatch, tmp_path, capsys):
    traceback = (
        "Traceback (most recent call last):\n  File x\njaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: no | room\n"
    )
    failing = {"reference", "decode", "video"}
    good = {"device": "Fast Chip 3", "peak_flops": 1e12, "seconds": 2.0, "peak_bytes": 5e9, "compile_seconds": 1.0}

    def answer(command, timeout, **_):
        part = command[command.index("--part") + 1]
        if part in failing and part == "reference":
            return subprocess.CompletedProcess(command, 1, "", traceback)
        if part in failing and part == "decode":
            raise subprocess.TimeoutExpired(command, timeout)
        if part in failing and part == "video":
            return subprocess.CompletedProcess(command, -9, "", "")
        if part == "torch_step":
            return subprocess.CompletedProcess(command, 0, json.dumps({"skipped": "torch not installed"}), "")
        result = {"flops": 1e12} if "--count" in command else good
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps(result)}\n", "")

    monkeypatch.setattr(accelerator.subprocess, "run", answer)
    command = ["--output", str(tmp_path), "--size", "small", "--only"]
    chosen = ["step", "reference", "decode", "video", "stage2", "torch_step"]
    assert accelerator.main([*command, *chosen]) == 1
    said = capsys.readouterr()
    again = f"again: python benchmarks/accelerator.py --size small --output {tmp_path} --only reference decode video\n"
    assert said.err.endswith(again)
    parts = json.loads((tmp_path / "accelerator_Fast_Chip_3.json").read_text())["parts"]
    assert parts["step"]["mfu"] == parts["stage2"]["mfu"] == 0.5
    assert parts["reference"] == {"failed": "jaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: no | room"}
    assert parts["decode"]["failed"].startswith("not done after ")
    assert parts["video"]["failed"].startswith("killed by SIGKILL")
    table = (tmp_path / "accelerator_Fast_Chip_3.md").read_text()
    assert "| guided step, 4 frames at 32x64 | 2 s | 1 | 0.500 | 5.00 |  | 1.0 |" in table
    assert "| **failed**: jaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: no / room |" in table
    assert "| PyTorch: guided step | skipped: torch not installed |" in table
    assert table.endswith(" MFU: TFLOP per second, by the chip's 1 in bfloat16.\n") and table in said.out

    failing.clear()  # run again as the last line says, the others are still there
    assert accelerator.main([*command, "reference", "decode", "video"]) == 0
    parts = json.loads((tmp_path / "accelerator_Fast_Chip_3.json").read_text())["parts"]
    assert list(parts) == [part for part in accelerator.PARTS if part in chosen]
    assert not any("failed" in part for part in parts.values())
    assert "**" not in (tmp_path / "accelerator_Fast_Chip_3.md").read_text()

    monkeypatch.setattr(accelerator, "TOTAL_SECONDS", 0)
    assert accelerator.main([*command, "step"]) == 1
    assert "not begun" in (tmp_path / "accelerator_unknown_device.md").read_text()


def test_every_part_has_its_place_in_the_files(accelerator, monkeypatch, tmp_path):
    """Whole after each part, also when the first one fails before it knows its device; killed, all before stays."""

    def answer(command, **_):
        part = command[command.index("--part") + 1]
        if part == "self_test":
            raise OSError(12, "Cannot allocate memory")
        if part == "golden_single_bfloat16":
            raise KeyboardInterrupt
        result = {"device": "Fast Chip 3", "verdict": "equal"}
        return subprocess.CompletedProcess(command, 0, json.dumps(result), "")

    monkeypatch.setattr(accelerator.subprocess, "run", answer)
    with pytest.raises(KeyboardInterrupt):
        accelerator.main(["--output", str(tmp_path), "--size", "small"])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"accelerator_Fast_Chip_3.{end}" for end in ("json", "md")
    ]
    parts = json.loads((tmp_path / "accelerator_Fast_Chip_3.json").read_text())["parts"]
    assert "Cannot allocate memory" in parts["self_test"]["failed"]
    assert parts["golden_single_float32"]["verdict"] == "equal" and len(parts) == 2


@pytest.mark.slow
def test_every_part_runs_small(accelerator, monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(accelerator, "TOTAL_SECONDS", 3600)
    monkeypatch.setattr(accelerator, "PARTS", {part: (name, 900) for part, (name, _) in accelerator.PARTS.items()})
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert accelerator.main(["--output", str(tmp_path), "--size", "small"]) == 0
    parts = json.loads((tmp_path / "accelerator_cpu.json").read_text())["parts"]
    assert parts.keys() == accelerator.PARTS.keys()
    for part, result in parts.items():
        assert "failed" not in result, (part, result)
        assert "**" not in result.get("verdict", ""), (part, result)
        if part in accelerator.COUNTED:
            assert result["flops"] > 0 and math.isfinite(result["seconds"]) and result["compile_seconds"] > 0, part
