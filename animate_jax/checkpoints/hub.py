"""The Hugging Face hub: checkpoints as they lie in a folder, and single files, by way of `huggingface_hub`, whose
environment variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, ...) and whose cache of downloads are used."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from animate_jax.errors import UserError
from animate_jax.storage import size_text

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # owner/repository
RUNS = "runs"  # the folder that every configuration trains into, here or not
PYTORCH_FILES = ["*.safetensors", "*.pth", "*.pt", "*.bin", "*.ckpt"]  # are no part of a checkpoint
_INSIDE = re.compile(rf"({NAME.pattern})((?:/[\w.-]+)*)")

ANSWER_SECONDS = 10.0  # huggingface_hub waits for the list of a repository for ever

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class File:
    """What the hub says about a file: its SHA-256, or its git hash if it is small."""

    repository: str
    path: str
    commit: str
    bytes: int
    etag: str


def split(name: str | os.PathLike) -> tuple[str, str] | None:
    """("owner/repository", "path/inside" or "") of a hub name; None for what cannot be one: a path whose first folder
    is here or that of training runs, an absolute path, an address."""
    match = _INSIDE.fullmatch(os.fspath(name))
    owner = os.fspath(name).partition("/")[0]
    if not match or owner in (".", "..", RUNS) or pathlib.Path(owner).exists():
        return None
    return match[1], match[2].removeprefix("/")


def fetch(name: str, revision: str | None = None, cache_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The local copy of the checkpoint in "owner/repository", downloaded once.

    Args:
        revision: branch, tag or commit.
        cache_dir: where downloads lie; default: huggingface_hub's folder.

    Raises:
        UserError: it cannot be had, is no checkpoint, or huggingface_hub is not installed.
    """
    hub = _library(name)
    cache = pathlib.Path(cache_dir) if cache_dir else None

    def download(local_files_only: bool = False) -> pathlib.Path:
        return pathlib.Path(
            hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=cache,
                ignore_patterns=PYTORCH_FILES,
                local_files_only=local_files_only,
            )
        )

    log.info("asking the hub for %s", name)
    with _answering(name):
        try:
            hub.model_info(name, revision=revision, timeout=ANSWER_SECONDS)
        except Exception as error:
            try:
                folder = download(local_files_only=True)  # what was fetched before
            except Exception:
                if getattr(error, "response", None) is not None:
                    raise error from None
                raise UserError(
                    f"{name}: {_explanation(name, error)}: without the hub, copy the checkpoint's folder here and give "
                    "its path"
                ) from error
        else:
            folder = download()
    if next(folder.rglob("_CHECKPOINT_METADATA"), None) is None:
        raise UserError(
            f"{name}: holds no checkpoint of animate_jax: PyTorch files become one with "
            f"animate-jax weights import FAMILY --directory {name} --output DIRECTORY"
        )
    return folder


def list_files(repository: str) -> list[str]:
    """All files of a repository.

    Raises:
        UserError: the hub does not answer, or huggingface_hub is not installed.
    """
    hub = _library(repository)
    log.info("asking the hub for %s", repository)
    with _answering(repository):
        return [file.rfilename for file in hub.model_info(repository, timeout=ANSWER_SECONDS).siblings or ()]


def download_files(repository: str, paths: Iterable[str]) -> pathlib.Path:
    """The folder that holds some files of a repository, each downloaded once.

    Raises:
        UserError: one cannot be had, or huggingface_hub is not installed.
    """
    folder = None
    for path in paths:
        try:
            local = download(look_up(repository, path))
        except UserError:
            if (local := cached(repository, path)) is None:
                raise
        folder = local.parents[path.count("/")]
    if folder is None:
        raise UserError(f"{repository}: holds no file that is wanted: check the name")
    return folder


def cached(repository: str, path: str, revision: str | None = None) -> pathlib.Path | None:
    """Where a file lies that was downloaded before; None if it was not.

    Raises:
        UserError: huggingface_hub is not installed.
    """
    local = _library(repository).try_to_load_from_cache(repository, path, revision=revision)
    return pathlib.Path(local) if isinstance(local, str) else None


def cache_folder() -> pathlib.Path:
    """Where downloads lie."""
    return pathlib.Path(_constants("cache").HF_HUB_CACHE)


def look_up(repository: str, path: str, revision: str | None = None) -> File:
    """What the hub says about a file, without downloading it.

    Raises:
        UserError: it has no such file, or does not answer.
    """
    hub, name = _library(repository), f"{repository}/{path}"
    log.info("asking the hub for %s", name)
    with _answering(name):
        found = hub.get_hf_file_metadata(hub.hf_hub_url(repository, path, revision=revision), timeout=ANSWER_SECONDS)
        if found.size is None or found.etag is None or found.commit_hash is None:
            raise UserError(f"{name}: the server does not say its size and hash: is HF_ENDPOINT a hub?")
        return File(repository, path, found.commit_hash, found.size, found.etag)


def bytes_here(file: File) -> int:
    """What of a file is in the cache: all, if another version of its repository has it, or what an attempt has left."""
    partial = _partial(file)
    if partial.with_suffix("").exists():
        return file.bytes
    return min(partial.stat().st_size, file.bytes) if partial.exists() else 0


def download(file: File) -> pathlib.Path:
    """A file in huggingface_hub's cache, downloaded with a bar. What an attempt that was cut or killed has left is
    continued, and a file takes its place in the cache when its bytes have the hash that the hub says.

    Raises:
        UserError: the hub stops answering, or the bytes are others than the hub says.
    """
    if local := cached(file.repository, file.path, file.commit):
        return local
    hub, name = _library(file.repository), f"{file.repository}/{file.path}"
    partial = _partial(file)
    whole = partial.with_suffix("")
    if not whole.exists():
        here = bytes_here(file)
        log.info("downloading %s, %s%s", name, size_text(file.bytes), f", {size_text(here)} here" if here else "")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as stream, _answering(name, "what is there stays: the same command goes on"):
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{name}: another process is downloading it: wait for it") from None
            _receive(file, stream)
            if (found := _hash(partial, file)) != file.etag:
                partial.unlink()
                raise UserError(f"{name}: damaged on the way (hash {found[:9]}..., not {file.etag[:9]}...): try again")
            os.replace(partial, whole)
    with _answering(name):  # enters it into the cache's folder of this commit
        return pathlib.Path(hub.hf_hub_download(file.repository, file.path, revision=file.commit))


def _receive(file: File, stream: BinaryIO) -> None:
    """Appends what is missing of a file; a cut connection is tried again for as long as bytes come."""
    from huggingface_hub import file_download, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    if stream.tell() > file.bytes:
        stream.truncate(0)
    while True:
        received = stream.seek(0, os.SEEK_END)
        try:
            file_download.http_get(
                hf_hub_url(file.repository, file.path, revision=file.commit),
                stream,
                resume_size=received,
                headers=build_hf_headers(),
                expected_size=file.bytes,
                displayed_filename=file.path,
            )
            break
        except Exception as error:
            if _is_full(error) or stream.tell() in (received, file.bytes):
                raise
    stream.flush()
    os.fsync(stream.fileno())


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
        raise UserError(f"{name}: the hub did not take it ({_reason(error)}): log in with `hf auth login`") from error
    return str(address)


def _partial(file: File) -> pathlib.Path:
    """Where a file lies until it is whole: in the cache's folder of files by hash, under their name and this suffix."""
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=file.repository, repo_type="model")
    return cache_folder() / folder / "blobs" / f"{file.etag}.incomplete"


def _hash(path: pathlib.Path, file: File) -> str:
    """As `file.etag`: SHA-256, or git's SHA-1 of files that it holds itself."""
    if len(file.etag) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {file.bytes}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        _feed(digest, stream)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, stream: BinaryIO) -> None:
    while chunk := stream.read(1 << 22):
        digest.update(chunk)


@contextlib.contextmanager
def _answering(name: str, advice: str = "") -> Iterator[None]:
    """What the hub's client raises becomes one line: its own errors, its transport's and the file system's. So do the
    warnings of its retries, which may take a minute.

    Raises:
        UserError: the block raised any `Exception`.
    """

    def only_errors(record: logging.LogRecord) -> bool:
        if re.search("Retrying|resume", record.getMessage()):
            log.info("%s: interrupted, trying again", name)
        return record.levelno >= logging.ERROR

    handlers = logging.getLogger("huggingface_hub").handlers
    for handler in handlers:
        handler.addFilter(only_errors)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: {_explanation(name, error)}{advice and f': {advice}'}") from error
    finally:
        for handler in handlers:
            handler.removeFilter(only_errors)


def page(name: str) -> str:
    """The address of the page of a repository, or of the one that a file "owner/repository/path" lies in.

    Raises:
        UserError: huggingface_hub is not installed.
    """
    return "/".join((_constants(name).ENDPOINT, *name.split("/")[:2]))


def _explanation(name: str, error: Exception) -> str:
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"the hub asks you to accept its terms on {page(name)}, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return "the hub has no such repository, or it is private: check the name, or `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub does not have this version of it any more"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return "the hub has no such file"
    if isinstance(error, errors.OfflineModeIsEnabled) or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return "not here, and HF_HUB_OFFLINE keeps the hub from being asked"
    if _is_full(error):
        return f"the disk is full: make room in {cache_folder()}, or set HF_HOME to another place"
    return f"not here, and the hub could not give it ({_reason(error)})"


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:300]


def _library(name: str):
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"{name}: no such folder; the hub needs: pip install 'animate-jax[hub]'") from error
    return huggingface_hub


def _constants(name: str):
    _library(name)
    from huggingface_hub import constants  # which the package itself does not load

    return constants
