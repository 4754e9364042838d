"""Checkpoints on the Hugging Face hub: a repository holds one as it lies in a folder."""

from __future__ import annotations

import pathlib
import re

from animate_jax.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/repository


def fetch(name: str) -> pathlib.Path:
    """The local copy of the checkpoint in "owner/repository", downloaded once.

    Raises:
        UserError: it cannot be had, or huggingface_hub is not installed.
    """
    hub = _library(name)
    try:
        return pathlib.Path(hub.snapshot_download(name))
    except Exception as error:  # the hub raises its own, its transport's and the file system's
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name}: no such folder, and the hub could not give it ({reason})") from error


def push(folder: pathlib.Path, name: str, private: bool = True) -> str:
    """Uploads the checkpoint in a folder as "owner/repository", which is made if there is none; returns its address.

    Raises:
        UserError: not allowed or not reachable, or huggingface_hub is not installed.
    """
    hub = _library(name)
    if not NAME.fullmatch(name):
        raise UserError(f"{name}: not a name on the hub: give owner/repository")
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Checkpoint of animate_jax")
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name}: the hub did not take it ({reason}): log in with `hf auth login`") from error
    return str(address)


def _library(name: str):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name}: no such folder; the hub needs: pip install 'animate-jax[hub]'") from error
    return huggingface_hub
