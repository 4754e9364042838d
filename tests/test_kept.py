"""Traced programs are used again only where all that they depend on is the same, and only if they can be trusted."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from animate_jax import kept, storage
from animate_jax.config import ModelConfig
from animate_jax.models.params import abstract_model
from animate_jax.models.shapes import parameter_shapes

pytestmark = pytest.mark.compiles

X = np.arange(3, dtype=np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this process keeps its programs."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(storage, "_programs", str(tmp_path))
    yield tmp_path / "traced"
    jax.config.update("jax_compilation_cache_dir", before)


def traces(x=X, name="double"):
    """How often a new process would trace a function."""
    traced = []

    def double(tree):
        traced.append(1)
        return {"twice": 2 * tree["x"]}

    result = jax.jit(lambda tree: kept.call(double, name, tree))({"x": x})
    np.testing.assert_array_equal(result["twice"], 2 * x)
    return len(traced)


def test_traced_once(folder):
    assert traces() == 1
    assert traces() == 0


@pytest.mark.parametrize(
    "change",
    ["name", "shape", "dtype", "jax", "jaxlib", "flax", "flag", "option", "device", "source", "cores"],
)
def test_whatever_a_trace_depends_on_traces_again(folder, monkeypatch, change):
    assert traces() == 1
    arguments = {}
    if change == "name":
        arguments["name"] = "triple"
    elif change in ("shape", "dtype"):
        arguments["x"] = X[:2] if change == "shape" else X.astype(np.int32)
    elif change == "flag":
        monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_cpu_enable_fast_math=true")
    elif change == "device":

        class Other:
            platform, device_kind, client = "cpu", "another", jax.devices()[0].client

        monkeypatch.setattr(jax, "devices", lambda: [Other])
    elif change == "source":
        monkeypatch.setattr(kept, "_source", lambda: "edited")
    elif change == "cores":
        monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    elif change != "option":
        version = kept._version
        monkeypatch.setattr(kept, "_version", lambda name: f"{name} 99" if name == change else version(name))
    if change == "option":
        jax.config.update("jax_default_matmul_precision", "high")
    try:
        assert traces(**arguments) == 1
    finally:
        jax.config.update("jax_default_matmul_precision", None)


def files(folder):
    return [file for file in folder.iterdir() if file.is_file()]


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "another", "text", "others may write", "folder"])
def test_files_that_cannot_be_trusted_are_traced_again(folder, damage):
    traces(name="other")
    (other,) = files(folder)
    content = other.read_bytes()
    other.unlink()
    traces()
    (file,) = files(folder)
    whole = file.read_bytes()
    if damage == "others may write":
        file.chmod(0o622)
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        wrong = {"empty": b"", "cut": whole[:middle], "flipped": flipped, "another": content, "text": b"x" * 1000}
        file.write_bytes(wrong[damage])
    assert traces() == 1
    if damage != "folder":
        assert traces() == 0  # and it is replaced by a whole one


def test_a_file_of_another_user_is_not_used(folder, monkeypatch):
    traces()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert traces() == 1


def test_a_program_that_is_whole_but_no_program_is_traced_again(folder):
    traces()
    (file,) = files(folder)
    kept.write(file.name, b"no program")
    assert traces() == 1


def test_nothing_is_kept_where_compiled_programs_are_not(folder, monkeypatch):
    monkeypatch.setattr(storage, "_programs", None)
    assert traces() == 1 and traces() == 1 and not folder.exists()


def test_a_folder_that_cannot_be_written_is_no_error(folder):
    folder.write_text("a file")
    assert traces() == 1


def test_the_oldest_go(folder, monkeypatch):
    monkeypatch.setattr(kept, "FILES", 3)
    for number in range(5):
        kept.write(str(number), b"x")
        os.utime(folder / str(number), (number, number))
    kept.write("new", b"x")
    assert {file.name for file in files(folder)} == {"new", "4", "3"}


def test_shapes_of_parameters_are_kept(folder, micro, monkeypatch):
    config = micro.model
    expected = abstract_model(config)[1]
    parameter_shapes.cache_clear()
    assert parameter_shapes(config) == expected
    parameter_shapes.cache_clear()
    monkeypatch.setattr("animate_jax.models.params.abstract_model", lambda _: 1 / 0)
    assert parameter_shapes(config) == expected
    assert all(leaf.dtype == jnp.float32 for leaf in expected.values())
    parameter_shapes.cache_clear()
    with pytest.raises(ZeroDivisionError):
        parameter_shapes(ModelConfig.sd15())  # another model's are not taken for it
