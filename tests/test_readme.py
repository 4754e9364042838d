"""What README and the docs tell is true: code blocks run, links lead somewhere, commands and options exist."""

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from animate_jax.__main__ import COMMANDS
from animate_jax.commands import train
from animate_jax.sampling.inputs import EXAMPLE

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^    (\S(?:.*\\\n)*.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(language, *pages):
    return [code for page in pages for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def commands(page):
    """Every command line of ours in the page's shell blocks and indented lines, as the words after `animate-jax`.
    Benchmarks come as their path."""
    text = "\n".join([*blocks("bash", page), *INDENTED.findall(BLOCK.sub("", page.read_text()))]).replace("\\\n", " ")
    for line in text.splitlines():
        line = line.replace(" && ", "; ").partition("   #")[0]
        for part in line.split(";"):
            words = re.sub(r"\"[^\"]*\"", "...", part).replace("'", "").replace('"', "").split()
            while words and re.fullmatch(r"[A-Z_]+=.*|do|JAX_PLATFORMS=.*", words[0]):
                words = words[1:]
            match [word.removeprefix(".venv/bin/") for word in words[:3]]:
                case ["animate-jax", *_] if ">" not in words:
                    yield words[1:]
                case ["python", "sample.py" | "train.py" as script, *_]:
                    yield [script.removesuffix(".py"), *words[2:]]
                case ["python", script, *_] if script.startswith("benchmarks/"):
                    yield words[1:]


def test_commands_are_found():
    """Of every form, in README and the docs."""
    found = [words for page in PAGES for words in commands(page)]
    assert len(found) > 30
    assert {words[0] for words in found} >= {"sample", "train", "weights", "data", "evaluate", "web", "doctor"}
    assert any(words[0].startswith("benchmarks/") for words in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
            assert page.parent == ROOT or not target.startswith(".."), f"{target} is not part of the site"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page, capfd):
    for words in commands(page):
        flags = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        if words[0].startswith("benchmarks/"):
            source = (ROOT / words[0]).read_text()
            assert all(flag[2:] in source or flag[2:].replace("-", "_") in source for flag in flags), words
            continue
        assert words[0] in COMMANDS, words
        place = [word for word in words[1:3] if not word.startswith("-") and words[0] in ("weights", "data", "train")]
        if words[0] == "train":
            assert Path(place[0]).stem in train.config_names(), words
            place = place[:1]
        with pytest.raises(SystemExit):
            ended = importlib.import_module(f"animate_jax.commands.{words[0]}").main([*place, "--help"], "animate-jax")
            raise SystemExit(ended)
        told = capfd.readouterr()
        for flag in flags:
            assert flag in told.out + told.err, (words, flag)


@pytest.mark.usefixtures("compile_fast")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE / "reference.png", "person.png")
    shutil.copy(EXAMPLE / "driving.mp4", "dance.mp4")
    runnable = [code for code in blocks("python", page) if "load_config(" not in code]  # see test_own_loop.py
    for index, code in enumerate(runnable):
        block = Path(f"block{index}.py")
        short = "steps=1, frames=2" if "pipeline(" in code else "steps=1"
        block.write_text(code.replace("steps=2", short).replace("frames=24", "frames=2"))
        runpy.run_path(str(block))


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(tmp_path):
    """Built from here, installed where nothing is, and run from an empty folder."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HOME": str(tmp_path)}
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "build"), symlinks=True)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path, source], check=True, env=clean)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 60e6
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, env=clean)
    subprocess.run([tmp_path / "env/bin/python", "-m", "pip", "install", "-q", wheel], check=True, env=clean)
    command, empty = tmp_path / "env/bin/animate-jax", tmp_path / "empty"
    empty.mkdir()

    def run(*words):
        return subprocess.run([command, *words], check=True, cwd=empty, env=clean, capture_output=True)

    run("sample", "--steps", "1", "--frames", "2")
    assert {path.name for path in (empty / "outputs").iterdir()} == {"sample.mp4", "sample_sheet.png"}
    assert b"--optim.learning-rate" in run("train", "tiny_stage1", "--help").stdout
    assert run("doctor").returncode == 0


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
