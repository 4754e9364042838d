"""Checkpoints by name: the bundled one, published ones (downloaded and converted once), on the hub, and folders."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import cast

from animate_jax.atomic import atomic_file
from animate_jax.checkpoints import checkpoint, hub
from animate_jax.config import PublishedName
from animate_jax.errors import UserError
from animate_jax.presets import find_preset
from animate_jax.storage import Address, Folder, home, size_text
from animate_jax.torch_weights.families import Files
from animate_jax.torch_weights.importing import import_checkpoint
from animate_jax.torch_weights.published import PUBLISHED, Published, PublishedFile

BUNDLED = pathlib.Path(__file__).parents[1] / "assets" / "tiny"
SPARE = 1 << 28  # bytes that a disk should have left


def find_checkpoint(name: Address, revision: str | None = None, cache_dir: str | os.PathLike | None = None) -> Folder:
    """The checkpoint's directory; what is not here is downloaded.

    Args:
        name: "tiny", a name in `PUBLISHED`, a checkpoint's directory or a training run's, here or in a bucket, or
            "owner/repository" on the hub. A folder of that name comes first, but for "tiny".
        revision, cache_dir: of a repository on the hub, see `hub.fetch`.

    Raises:
        UserError: there is none, or it cannot be had.
    """
    return checkpoint.find(localize(name, revision, cache_dir))


def localize(name: Address, revision: str | None = None, cache_dir: str | os.PathLike | None = None) -> Address:
    """Where `name` lies; what is neither a name nor on the hub stays as it is, also if there is nothing.

    Raises:
        UserError: it cannot be had, or has no revisions.
    """
    on_the_hub = name != "tiny" and name not in PUBLISHED and not pathlib.Path(name).exists()
    if revision is not None and not on_the_hub:
        raise UserError(f"--revision {revision}: {name} has no revisions: only a repository on the hub has")
    if name == "tiny":
        return BUNDLED
    if pathlib.Path(name).exists():
        return name
    if name in PUBLISHED:
        return fetch(cast(PublishedName, name))
    if (remote := hub.split(name)) and not remote[1]:
        return hub.fetch(str(name), revision, cache_dir)
    return name


def name_of(place: Address) -> str:
    """What `localize` found there: a name, if it is a bundled or fetched checkpoint."""
    published = next((name for name in PUBLISHED if str(_folder(name)) == str(place)), str(place))
    return "tiny" if str(place) == str(BUNDLED) else published


def fetch(name: PublishedName, accept_licenses: bool = False) -> pathlib.Path:
    """A published checkpoint's directory below `storage.home()`; if it is not there, its files are downloaded into
    huggingface_hub's cache and converted. Done at once if it is; an attempt that was cut or killed is continued.

    Args:
        accept_licenses: otherwise they are asked for, once, in a terminal.

    Raises:
        UserError: the licenses are not accepted, there is too little room, a file cannot be had, or is not the one that
            the table knows.
    """
    target, published = _folder(name), PUBLISHED[name]
    if is_fetched(name):
        return target
    checkpoint.check_output(target)
    licenses = {file.repository.name: file.repository.license for file in published.files.values()}
    accepted = _accepted_licenses()
    new = {repository: license for repository, license in licenses.items() if accepted.get(repository) != license}
    terms = [f"  {hub.page(repository)}: {license}" for repository, license in licenses.items()]
    print(f"{name} is made of", *terms, sep="\n", file=sys.stderr)
    if new and not (accept_licenses or sys.stdin.isatty()):
        raise UserError(
            f"{name}: its licenses must be accepted first: animate-jax weights fetch {name} --accept-licenses"
        )
    found = {file: hub.cached(file.repository.name, file.path, file.repository.revision) for file in _files(published)}
    missing = _look_up(name, target, [file for file, local in found.items() if local is None])
    rest = sum(file.bytes - hub.bytes_here(file) for file in missing.values())
    _check_room(name, target, published, rest)
    print(f"{size_text(rest)} to download to {hub.cache_folder()}", file=sys.stderr)
    print(f"{size_text(published.bytes)} for the checkpoint {target}", file=sys.stderr)
    if new:
        _accept(new, accepted, accept_licenses)
    for file, remote in missing.items():
        found[file] = hub.download(remote)
    files: Files = {part: path for part, file in published.files.items() if (path := found[file]) is not None}
    reports, lacking = import_checkpoint(files, target, find_preset(published.preset))
    print(*reports, sep="\n", file=sys.stderr)
    if lacking:
        print(f"{name}: starts training; has no {', '.join(lacking)}", file=sys.stderr)
    print(f"{name}: the downloads in {hub.cache_folder()} are needed no more", file=sys.stderr)
    return target


def is_fetched(name: Address) -> bool:
    """Whether `localize` finds this without downloading a published checkpoint."""
    return name not in PUBLISHED or pathlib.Path(name).exists() or (_folder(str(name)) / "params").is_dir()


def _folder(name: str) -> pathlib.Path:
    return home() / "checkpoints" / name


def _files(published: Published) -> list[PublishedFile]:
    return list(dict.fromkeys(published.files.values()))


def _look_up(name: str, target: pathlib.Path, files: list[PublishedFile]) -> dict[PublishedFile, hub.File]:
    """What the hub says about the files that are missing: all of them can be had before the first is downloaded.

    Raises:
        UserError: it does not answer, or has another file.
    """
    remote = {}
    for file in files:
        try:
            remote[file] = hub.look_up(file.repository.name, file.path, file.repository.revision)
        except UserError as error:
            raise UserError(
                f"{error}. Without the hub: run animate-jax weights fetch {name} elsewhere and copy its folder "
                f"{target.name} to {target}, or give files of your own to animate-jax weights import"
            ) from error
        exact = file.sha256 is not None  # otherwise its size is known to three digits
        if file.sha256 != remote[file].etag if exact else abs(remote[file].bytes / file.bytes - 1) > 0.01:
            raise UserError(
                f"{file.repository.name}/{file.path}: is another file than this version of animate-jax knows "
                f"({remote[file].bytes:,} bytes, {file.bytes:,} expected): give it to animate-jax weights import"
            )
    return remote


def _check_room(name: str, target: pathlib.Path, published: Published, rest: int) -> None:
    """
    Raises:
        UserError: a disk has no room for what will be written to it.
    """
    needs: dict[int, tuple[pathlib.Path, int]] = {}  # device -> a folder there, bytes
    for folder, size in ((hub.cache_folder(), rest), (target, published.bytes)):
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        needs[device] = (folder, needs.get(device, (folder, 0))[1] + size)
    for folder, size in needs.values():
        if (free := shutil.disk_usage(folder).free) < size + SPARE:
            raise UserError(
                f"{name}: needs {size_text(size + SPARE)} on the disk of {folder}, which has {size_text(free)} free: "
                "make room, or set HF_HOME (downloads) and ANIMATE_JAX_HOME (checkpoints) to other places"
            )


def _accept(new: Mapping[str, str], accepted: dict[str, str], without_asking: bool) -> None:
    """Asks for the licenses that were not accepted before, and keeps the answer.

    Raises:
        UserError: they are not accepted.
    """
    if not without_asking:
        print("Do you accept these licenses? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError("licenses not accepted: nothing was downloaded")
    with atomic_file(_answers()) as file:
        file.write_text(json.dumps({**accepted, **new}, indent=1))


def _accepted_licenses() -> dict[str, str]:
    try:
        answers = json.loads(_answers().read_text())
        return answers if isinstance(answers, dict) else {}
    except (OSError, ValueError):
        return {}


def _answers() -> pathlib.Path:
    return home() / "accepted_licences.json"
