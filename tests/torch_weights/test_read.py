"""Weight files of every kind, and what is said about broken ones."""

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from animate_jax.errors import UserError
from animate_jax.torch_weights.read import read_state_dict

TENSORS = {
    "conv.weight": torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "brain": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "position_ids": torch.arange(5)[None],
}


def check(state_dict: dict) -> None:
    assert state_dict.keys() == TENSORS.keys()
    assert state_dict["brain"].dtype == ml_dtypes.bfloat16
    for key, tensor in TENSORS.items():
        assert state_dict[key].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(np.asarray(state_dict[key]).astype(np.float64), tensor.double().numpy())


def test_safetensors(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check(read_state_dict(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_torch(tmp_path, zipped):
    torch.save(TENSORS, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    check(read_state_dict(tmp_path / "model.pth"))


def test_tensors_that_share_one_storage(tmp_path):
    flat = torch.arange(10.0)
    torch.save({"a": flat[:4].view(2, 2), "b": flat[4:]}, tmp_path / "flat.pth")
    state_dict = read_state_dict(tmp_path / "flat.pth")
    np.testing.assert_array_equal(state_dict["a"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(state_dict["b"], np.arange(4.0, 10.0))


def test_wrappings_are_removed(tmp_path):
    wrapped = {f"module.{key}": torch.nn.Parameter(tensor, requires_grad=False) for key, tensor in TENSORS.items()}
    torch.save({"epoch": 3, "state_dict": wrapped | {"animatediff_config": "v2"}}, tmp_path / "model.ckpt")
    check(read_state_dict(tmp_path / "model.ckpt"))


class Anything:
    pass


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0 not a header...", "not a readable safetensors file"),
        ("model.safetensors", b"", "not a readable safetensors file"),
        ("model.pth", b"not a pickle", "not a readable torch file of plain tensors"),
        ("model.pth", Anything(), "not a readable torch file of plain tensors"),
        ("model.pth", [torch.zeros(2)], "holds a list; expected a state dict"),
        ("model.pth", {"epoch": 3}, "holds no tensors; expected a state dict"),
        ("model.pth", None, "no such file"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="truncated"):
        read_state_dict(path)
