"""Packages `conf/` and `sweeps/` from the top level as questtrain.conf and questtrain.sweeps.

With QUESTTRAIN_KERNELS=1 the kernels are built first and become part of the package, whose wheel
then is for this platform: the CPU's, and CUDA's where there is nvcc. ARCHS chooses architectures,
and is an error without nvcc. Otherwise it is plain Python.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (ROOT / "src/questtrain/version.py").read_text()
).group(1)


def yaml_packages(folder: str) -> dict[str, str]:
    """Package name → folder for a tree of YAML files; each folder holds an __init__.py."""
    return {
        ".".join(["questtrain", *path.parent.relative_to(ROOT).parts]): str(
            path.parent.relative_to(ROOT)
        )
        for path in (ROOT / folder).rglob("__init__.py")
    }


def build_kernels() -> list[str]:
    """The files of the libraries."""
    sys.path.insert(0, str(ROOT / "csrc"))
    import build

    try:
        built = build.build_all(os.environ.get("ARCHS"))
    except build.BuildError as error:
        raise SystemExit(f"error: {error}") from None
    return [file.name for library in built for file in (library, library.with_suffix(".json"))]


class WithLibrary(Distribution):
    """Holds machine code, and is therefore built and installed apart from plain Python."""

    def has_ext_modules(self) -> bool:
        return True


class PlatformWheel(bdist_wheel):
    """For every Python 3 of this platform: the library knows torch, not Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


WITH_KERNELS = os.environ.get("QUESTTRAIN_KERNELS") == "1"
LIBRARIES = build_kernels() if WITH_KERNELS else []
PLATFORM = {"distclass": WithLibrary, "cmdclass": {"bdist_wheel": PlatformWheel}}
YAML = yaml_packages("conf") | yaml_packages("sweeps")

setup(
    version=VERSION,
    packages=[*find_packages("src"), *sorted(YAML)],
    package_dir={"": "src", **YAML},
    package_data={name: ["*.yaml"] for name in YAML}
    | {
        "questtrain": ["py.typed"],
        "questtrain.scaling.report": ["assets/*"],
        "questtrain.inference.serve": ["assets/*"],
        "questtrain.kernels": LIBRARIES,
    },
    **(PLATFORM if WITH_KERNELS else {}),
)
