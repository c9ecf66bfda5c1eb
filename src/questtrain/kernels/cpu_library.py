"""Finds and loads the library of products on a CPU (``make kernels``).

It is loaded when the ops are registered, where it has been built and ``QUESTTRAIN_KERNELS_BACKEND``
is ``auto``, and then serves on every CPU, with the best of its `PATHS` that the CPU has;
``QUESTTRAIN_CPU_ISA`` caps the path, to compare them. Without it the plain-torch references serve.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from questtrain.errors import UserError, unknown
from questtrain.kernels.extension import BACKEND_VARIABLE, backend, constant_when_compiled

log = logging.getLogger(__name__)

PATH_VARIABLE = "QUESTTRAIN_CPU_LIBRARY"
ISA_VARIABLE = "QUESTTRAIN_CPU_ISA"
NAME = "questtrain_cpu.so"

PATHS = ("portable", "avx2", "avx512-vnni")
"""For every CPU; with AVX2 and FMA; with AVX-512 (F, BW, VL, DQ) and its VNNI."""

INTERFACE = 1
"""What a library says of itself (csrc/cpu/interface.h): raised when an op of its own changes."""


@dataclass(frozen=True)
class CpuLibrary:
    """The library as found: ``error`` says why it is not loaded, ``left_out`` that this is no fault
    of its own; ``compiler`` built it from sources with this hash."""

    path: Path
    error: str | None = None
    left_out: bool = False
    compiler: str | None = None
    source_hash: str | None = None

    @property
    def loaded(self) -> bool:
        return self.error is None


_found: CpuLibrary | None = None


def load() -> CpuLibrary:
    """Load it once, after the schemas are defined. Never raises: uses do, where the environment
    asks for what there is not. One that is there and cannot be used is warned of."""
    global _found
    if _found is None:
        named = os.environ.get(PATH_VARIABLE)
        path = Path(named or Path(__file__).parent / NAME)
        _found = _unwanted(path) or _load(path)
        if _found.error and not _found.left_out and (named or path.exists()):
            log.warning("the CPU's library: %s; the plain-torch references serve", _found.error)
    return _found


@constant_when_compiled
def serves() -> bool:
    """Whether the library does the products on a CPU; UserError as in `check_isa`."""
    check_isa()
    return load().loaded


def serving_path() -> str:
    """The path that the loaded library takes, one of `PATHS`."""
    name: bytes = _symbols(load().path).questtrain_cpu_path()
    return name.decode()


def cap(path: str | None) -> None:
    """Let no better path than this one serve from now on; None lets every one."""
    _symbols(load().path).questtrain_cpu_cap(None if path is None else path.encode())


def check_isa() -> None:
    """UserError where QUESTTRAIN_CPU_ISA is none of `PATHS`."""
    asked = os.environ.get(ISA_VARIABLE)
    if asked and asked not in PATHS:
        raise unknown(ISA_VARIABLE, asked, PATHS)


def _is_wanted() -> bool:
    """Whether the environment asks for it, and for something that there is."""
    try:
        check_isa()
        return backend() == "auto"
    except UserError:
        return False


def _unwanted(path: Path) -> CpuLibrary | None:
    if _is_wanted():
        return None
    variable = BACKEND_VARIABLE if os.environ.get(BACKEND_VARIABLE) else ISA_VARIABLE
    return CpuLibrary(path, f"{variable}={os.environ.get(variable)}", left_out=True)


def _load(path: Path) -> CpuLibrary:
    if not path.exists():
        missing = os.environ.get(PATH_VARIABLE) or path.name
        return CpuLibrary(path, f"not built ({missing} is missing; make kernels builds it)")
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if facts.get("interface") != INTERFACE:
            return CpuLibrary(path, f"{path} is of another version (make kernels builds it anew)")
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        asked = os.environ.get(ISA_VARIABLE)
        _symbols(path).questtrain_cpu_cap(asked.encode() if asked else None)
    except (OSError, ValueError, AttributeError) as error:
        return CpuLibrary(path, f"{path} does not load: {error}")
    return CpuLibrary(path, None, False, facts.get("compiler"), facts.get("source_hash"))


def _symbols(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.questtrain_cpu_path.restype = ctypes.c_char_p
    library.questtrain_cpu_cap.argtypes = [ctypes.c_char_p]
    return library
