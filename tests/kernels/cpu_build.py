"""The CPU's library for tests: the one that is built, or one built into a temporary folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from questtrain.kernels import cpu_library

ROOT = Path(__file__).parents[2]


def build_module() -> ModuleType:
    """csrc/build_cpu.py."""
    spec = importlib.util.spec_from_file_location("cpu_build_script", ROOT / "csrc/build_cpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def load_for_tests(folder: Path) -> None:
    """Have the library loaded in this process; skips where no compiler could build it."""
    script = build_module()
    found = cpu_library.load()
    if found.loaded:
        if found.source_hash != script.source_hash():
            pytest.fail("the built library is older than its sources: run make kernels")
        return
    try:
        script.find_compiler()
    except script.BuildError as error:
        pytest.skip(str(error))
    cpu_library._found = cpu_library._start(script.build(folder / cpu_library.NAME))
    assert cpu_library._found.loaded, cpu_library._found.error
