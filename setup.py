"""`configs/` beside the package is `animate_jax/configs` inside a wheel; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = [path.as_posix() for path in sorted(Path("configs").glob("*.py"))]


class BuildWithConfigs(build_py):
    """Copies the files instead of mapping a package, which an editable install would need an import hook for."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for file in CONFIGS:
                target = Path(self.build_lib, "animate_jax", file)
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(file, str(target))

    def get_source_files(self) -> list[str]:
        return super().get_source_files() + CONFIGS


setup(cmdclass={"build_py": BuildWithConfigs})
