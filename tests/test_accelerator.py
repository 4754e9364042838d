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
    good = {"device": "Fast Chip 3", "peak_flops": 1e12, "seconds": 2.0, "peak_bytes": 5e9, "compile_seconds": 1.0}

    def answer(command, timeout, **_):
        part = command[command.index("--part") + 1]
        if part == "reference":
            return subprocess.CompletedProcess(command, 1, "", traceback)
        if part == "decode":
            raise subprocess.TimeoutExpired(command, timeout)
        result = {"flops": 1e12} if "--count" in command else good
        return subprocess.CompletedProcess(command, 0, f"noise\n{json.dumps(result)}\n", "")

    monkeypatch.setattr(accelerator.subprocess, "run", answer)
    accelerator.main(["--output", str(tmp_path), "--size", "small", "--only", "step", "reference", "decode", "stage2"])
    parts = json.loads((tmp_path / "accelerator_Fast_Chip_3.json").read_text())["parts"]
    assert parts["step"]["mfu"] == parts["stage2"]["mfu"] == 0.5
    assert parts["reference"] == {"failed": "jaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: no | room"}
    assert parts["decode"]["failed"].startswith("not done after ")
    table = (tmp_path / "accelerator_Fast_Chip_3.md").read_text()
    assert "| guided step, 4 frames at 32x64 | 2 s | 1 | 0.500 | 5.00 |  | 1.0 |" in table
    assert "| **failed**: jaxlib._jax.XlaRuntimeError: RESOURCE_EXHAUSTED: no / room |" in table
    assert table in capsys.readouterr().out

    monkeypatch.setattr(accelerator, "TOTAL_SECONDS", 0)
    accelerator.main(["--output", str(tmp_path), "--size", "small", "--only", "step"])
    assert "not begun" in (tmp_path / "accelerator_unknown_device.md").read_text()


@pytest.mark.slow
def test_every_part_runs_small(accelerator, monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(accelerator, "TOTAL_SECONDS", 3600)
    monkeypatch.setattr(accelerator, "PARTS", {part: (name, 900) for part, (name, _) in accelerator.PARTS.items()})
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    accelerator.main(["--output", str(tmp_path), "--size", "small"])
    parts = json.loads((tmp_path / "accelerator_cpu.json").read_text())["parts"]
    assert parts.keys() == accelerator.PARTS.keys()
    for part, result in parts.items():
        assert "failed" not in result, (part, result)
        assert "**" not in result.get("verdict", ""), (part, result)
        if part in accelerator.COUNTED:
            assert result["flops"] > 0 and math.isfinite(result["seconds"]) and result["compile_seconds"] > 0, part
