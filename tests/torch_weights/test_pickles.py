"""A torch file is data: whatever else its pickle asks for is refused, and nothing runs."""

import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from animate_jax.errors import UserError
from animate_jax.torch_weights.read import read_state_dict


class Runs:
    """Would create a file if it were ever called."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def attacks(marker):
    touch = f"touch {marker}"
    yield Runs(os.system, touch)
    yield Runs(sys.modules["posix"].system, touch)
    yield Runs(eval, f"open({str(marker)!r}, 'w')")
    yield Runs(exec, f"open({str(marker)!r}, 'w')")
    yield Runs(os.getenv, "HOME")
    yield Runs(open, str(marker), "w")
    yield Runs(__import__, "antigravity")
    yield Runs(torch.load, str(marker))


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path, number, zipped):
    attack = list(attacks(tmp_path / "ran"))[number]
    path = tmp_path / "model.ckpt"
    torch.save(
        {"state_dict": {"weight": torch.zeros(2)}, "callbacks": attack}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(UserError, match="not a readable torch file of plain tensors") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def saved(path, tensors, change):
    """A torch file whose pickle went through `change`."""
    torch.save(tensors, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if info.filename.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    "change",
    [
        lambda pkl: pkl.replace(b"FloatStorage", b"QuantStorage"),
        lambda pkl: pkl.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
        lambda pkl: pkl.replace(b"ctorch._utils\n_rebuild_tensor_v2", b"cposix\nsystem"),
        lambda pkl: pkl[:-30],
        lambda pkl: b"",
        lambda pkl: pickle.dumps({"weight": "text"}),
    ],
    ids=["storage", "function", "posix.system", "truncated", "empty", "no tensors"],
)
def test_a_changed_pickle_is_one_line(tmp_path, change):
    saved(tmp_path / "model.pth", {"weight": torch.arange(3.0)}, change)
    with pytest.raises(UserError) as caught:
        read_state_dict(tmp_path / "model.pth")
    assert str(tmp_path / "model.pth") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [10, 200, 1000, -300, -1])
def test_a_truncated_file_is_one_line(tmp_path, keep):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.arange(900.0)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a readable torch file of plain tensors"):
        read_state_dict(path)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path):
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as old, zipfile.ZipFile(tmp_path / "model.pth", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, content[:100] if info.filename.endswith("data/0") else content)
    with pytest.raises(UserError, match="reaches beyond its storage"):
        read_state_dict(tmp_path / "model.pth")


def test_views_and_transposed_tensors(tmp_path):
    square = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "t": square.T,
        "column": square[:, 1],
        "step": square[::2, 1::2],
        "empty": square[:0],
        "one": square[1, 1],
        "expanded": square[:1].expand(5, 4),
    }
    torch.save(tensors, tmp_path / "model.pth")
    state = read_state_dict(tmp_path / "model.pth")
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(np.asarray(state[key]), tensor.numpy(), err_msg=key)


def test_what_lightning_leaves_in_the_original_files(tmp_path, monkeypatch):
    """sd-v1-4.ckpt holds a ModelCheckpoint with numpy scalars; torch's own safe reader refuses it."""
    callbacks = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": callbacks.__name__})
    callbacks.ModelCheckpoint = ModelCheckpoint
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, callbacks.__name__, callbacks)
    state = {ModelCheckpoint: {"best_model_score": np.float64(0.25), "monitor": "val"}}
    path = tmp_path / "sd-v1-4.ckpt"
    torch.save({"callbacks": state, "state_dict": {"weight": torch.arange(3.0)}, "lr": np.float32(1)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    np.testing.assert_array_equal(np.asarray(read_state_dict(path)["weight"]), [0, 1, 2])
