"""Checkpoints on the hub: what is asked of it, and its refusals in one line."""

import shutil
import subprocess
import sys
import types

import huggingface_hub.utils.logging  # noqa: F401  # the fake below has no modules to load
import numpy as np
import pytest
from huggingface_hub import errors

from animate_jax.errors import UserError
from animate_jax.sampling.pipeline import Pipeline

pytestmark = pytest.mark.compiles


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that keeps its repositories in a folder."""

    def place(name):
        if name.startswith("gone/"):
            raise ConnectionError("no network\nmore")
        return tmp_path / name.replace("/", "--")

    fake = types.SimpleNamespace(
        errors=errors,
        model_info=lambda name, **_: place(name),
        snapshot_download=lambda name, **_: str(place(name)),
        create_repo=lambda name, private, exist_ok: f"https://hub/{name}",
        upload_folder=lambda repo_id, folder_path, commit_message: shutil.copytree(folder_path, place(repo_id)),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)


def test_there_and_back(hub, micro, micro_params):
    assert Pipeline(micro_params, micro).push_to_hub("me/micro") == "https://hub/me/micro"
    back = Pipeline.from_pretrained("me/micro")
    assert back.preset == micro
    assert all(np.array_equal(back.params[path], micro_params[path]) for path in micro_params)


def test_a_folder_is_a_folder(hub, micro, micro_checkpoint):
    assert Pipeline.from_pretrained(micro_checkpoint).preset == micro


@pytest.mark.parametrize("name", ["runs/nosuch", "here/nosuch", "./no/such", "/no/such", "some/folder/nosuch"])
def test_a_path_is_not_asked_for(hub, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(UserError, match=f"{name.removeprefix('.')}: no such checkpoint"):
        Pipeline.from_pretrained(name)
    with pytest.raises(UserError, match=r"^gone/model: not here"):
        Pipeline.from_pretrained("gone/model")


def test_refusals(hub, micro, micro_params, monkeypatch):
    with pytest.raises(
        UserError, match=r"^gone/model: not here, .* could not give it \(no network\): without the hub, copy"
    ):
        Pipeline.from_pretrained("gone/model")
    with pytest.raises(UserError, match=r"^gone/model: the hub did not take it .*: log in"):
        Pipeline(micro_params, micro).push_to_hub("gone/model")
    with pytest.raises(UserError, match=r"^model: not a name on the hub"):
        Pipeline(micro_params, micro).push_to_hub("model")
    with pytest.raises(UserError, match=r"nowhere: no such checkpoint"):
        Pipeline.from_pretrained("nowhere")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'animate-jax\[hub\]'"):
        Pipeline.from_pretrained("me/micro")


def test_the_address_of_a_page_in_a_new_process():
    """Nothing else has loaded the parts of huggingface_hub that it takes."""
    code = "from animate_jax.checkpoints import hub; print(hub.page('owner/name/file.pth'))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.endswith("/owner/name\n")
