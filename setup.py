"""Packages `conf/` and `sweeps/` from the top level as questtrain.conf and questtrain.sweeps.

With QUESTTRAIN_KERNELS=1 the CUDA kernels are built first and become part of the package.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (ROOT / "src/questtrain/__init__.py").read_text()
).group(1)


def yaml_packages(folder: str) -> dict[str, str]:
    """Package name → folder for a tree of YAML files; each folder holds an __init__.py."""
    return {
        ".".join(["questtrain", *path.parent.relative_to(ROOT).parts]): str(
            path.parent.relative_to(ROOT)
        )
        for path in (ROOT / folder).rglob("__init__.py")
    }


def build_kernels() -> None:
    sys.path.insert(0, str(ROOT / "csrc"))
    import build

    try:
        build.build(os.environ.get("ARCHS"))
    except build.BuildError as error:
        raise SystemExit(f"error: {error}") from None


if os.environ.get("QUESTTRAIN_KERNELS") == "1":
    build_kernels()

YAML = yaml_packages("conf") | yaml_packages("sweeps")

setup(
    version=VERSION,
    packages=[*find_packages("src"), *sorted(YAML)],
    package_dir={"": "src", **YAML},
    package_data={name: ["*.yaml"] for name in YAML}
    | {
        "questtrain": ["py.typed"],
        "questtrain.scaling.report": ["assets/*"],
        "questtrain.kernels": ["questtrain_kernels.so", "questtrain_kernels.json"],
    },
)
