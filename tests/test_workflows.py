"""What runs on a forge is what a contributor runs."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_targets_of_the_makefile(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    called = {target for command in commands for target in re.findall(r"\bmake (\w+)", command)}
    assert called and called <= set(TARGETS)


def test_every_check_runs_somewhere():
    text = "".join(path.read_text() for path in WORKFLOWS)
    assert all(f"make {target}" in text for target in ("lint", "types", "quick", "test", "docs", "slow"))


def test_ruff_is_the_same_everywhere():
    versions = {
        version
        for name in ("pyproject.toml", ".pre-commit-config.yaml")
        for version in re.findall(r"ruff==([\d.]+)", (ROOT / name).read_text())
    }
    assert len(versions) == 1
