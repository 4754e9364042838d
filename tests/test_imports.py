"""Who may import whom among the packages, and what never enters a process that samples or trains."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compiles

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "animate_jax"

# Package or file -> what it may import besides itself and, as all may, BASICS. docs/architecture.md has the same table.
BASICS = {
    "atomic",
    "config",
    "errors",
    "images",
    "kept",
    "limits",
    "presets",
    "progress",
    "renamed",
    "storage",
    "unpickle",
    "validation",
    "xla_flags",
}
ALLOWED = {
    "atomic": {"errors"},
    "config": set(),
    "errors": set(),
    "images": set(),
    "kept": {"storage"},
    "limits": set(),
    "progress": set(),
    "presets": {"config", "errors", "renamed", "validation"},
    "renamed": {"config"},
    "validation": {"config"},
    "unpickle": {"limits"},
    "storage": {"errors"},
    "xla_flags": set(),
    "models": set(),
    "diffusion": {"models"},
    "pose": set(),
    "video": set(),
    "parallel": set(),
    "perceptual": set(),
    "checkpoints": {"models"},
    "torch_weights": {"models", "checkpoints"},
    "data": {"pose", "video"},
    "sampling": {"models", "diffusion", "pose", "video", "parallel", "checkpoints", "torch_weights"},
    "evaluation": {"pose", "video", "data", "perceptual", "sampling"},
    "training": {
        "models",
        "diffusion",
        "pose",
        "video",
        "parallel",
        "checkpoints",
        "data",
        "perceptual",
        "sampling",
        "evaluation",
        "torch_weights",
    },
    "web": {"pose", "video", "sampling"},
    "commands": {
        "models",
        "pose",
        "video",
        "parallel",
        "checkpoints",
        "torch_weights",
        "data",
        "perceptual",
        "sampling",
        "training",
        "evaluation",
        "web",
    },
    "__main__": set(),  # imports commands by their names
}
FOREIGN = {"torch", "tensorflow", "diffusers", "transformers"}
# Tools and readers that need torch themselves, and import it inside the function that does.
FOREIGN_INSIDE_FUNCTIONS = {
    "data/mocap_people/bake.py",
    "evaluation/features.py",
    "torch_weights/exporting.py",
    "torch_weights/verify.py",
}

FILES = sorted(PACKAGE.rglob("*.py"))


def imports(source, package=("animate_jax",)):
    """(dotted name, is it inside a function) of everything a file imports; `from x import y` is x.y."""

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                parents = package[: len(package) - child.level + 1] if child.level else ()
                base = ".".join([*parents, *filter(None, [child.module])])
                yield from ((f"{base}.{alias.name}", inside) for alias in child.names)
            else:
                yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return list(walk(ast.parse(source), False))


def violations(path, source):
    """What a file (path relative to the package) imports against the rules."""
    parts = path.with_suffix("").parts
    package, wrong = parts[0], []
    for name, inside in imports(source, ("animate_jax", *parts[:-1])):
        top, *rest = name.split(".")
        if top in ("train", "sample", "tests", "configs"):
            wrong.append(name)
        elif top in FOREIGN and not (inside and path.as_posix() in FOREIGN_INSIDE_FUNCTIONS):
            wrong.append(name)
        elif top == "animate_jax" and package != "__init__" and rest and rest[0] in ALLOWED:
            basics = set() if package in BASICS else BASICS
            if rest[0] not in ALLOWED[package] | basics | {package}:
                wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_only_what_is_allowed(path):
    assert violations(path.relative_to(PACKAGE), path.read_text()) == []


def test_every_package_has_a_rule():
    names = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES} - {"__init__"}
    assert names == set(ALLOWED)


def test_the_documentation_has_the_same_table():
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \| .* \| ([^|]*) \|$", (ROOT / "docs/architecture.md").read_text(), re.M)
    assert {name: set(re.findall(r"\w+", imports)) for name, imports in rows} == ALLOWED


@pytest.mark.parametrize(
    "path, source, wrong",
    [
        ("models/unet.py", "from animate_jax.diffusion import guidance", "animate_jax.diffusion.guidance"),
        ("models/unet.py", "from animate_jax import pose", "animate_jax.pose"),
        ("models/unet.py", "from ..video import read", "animate_jax.video.read"),
        ("video/read.py", "def f():\n    import animate_jax.pose.draw", "animate_jax.pose.draw"),
        ("perceptual/lpips.py", "if x:\n    import animate_jax.training", "animate_jax.training"),
        ("training/loop.py", "import train", "train"),
        ("torch_weights/read.py", "import torch", "torch"),
        ("models/vae.py", "def f():\n    from diffusers.models import vae", "diffusers.models.vae"),
        ("config.py", "from animate_jax.errors import UserError", "animate_jax.errors.UserError"),
    ],
)
def test_the_rules_catch(path, source, wrong):
    assert violations(Path(path), source) == [wrong]


def test_the_rules_allow():
    allowed = {
        "torch_weights/exporting.py": "def f():\n    import torch",
        "models/unet.py": "from . import resnet\nfrom animate_jax.config import UNetConfig",
        "sampling/pipeline.py": "import animate_jax.video.read\nfrom animate_jax.errors import UserError",
        "__init__.py": "from animate_jax.sampling.pipeline import Pipeline",
    }
    for path, source in allowed.items():
        assert violations(Path(path), source) == []


# Runs in a fresh interpreter: imports what the argument names, then every module of the package.
LOAD = """
import importlib, pkgutil, runpy, sys
if sys.argv[1].endswith(".py"):
    runpy.run_path(sys.argv[1], run_name="imported")
else:
    importlib.import_module(sys.argv[1])
if sys.argv[2:]:
    import animate_jax
    for module in pkgutil.walk_packages(animate_jax.__path__, "animate_jax."):
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["animate_jax.sampling.pipeline"],
        ["animate_jax.__main__"],
        ["sample.py"],
        ["train.py"],
        ["animate_jax", "and every module"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_sampling_and_training_load_no_other_framework(arguments):
    """The rest of what the programs import, they import inside functions: hence the last case."""
    done = subprocess.run([sys.executable, "-c", LOAD, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "animate_jax" in loaded and loaded & FOREIGN == set()
    assert arguments != ["animate_jax.__main__"] or not loaded & {"jax", "numpy", "tyro"}, "slow to say its version"
