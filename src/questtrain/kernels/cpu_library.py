"""Finds and loads the library of products on a CPU (``make kernels``).

It is loaded when the ops are registered, where it has been built and ``QUESTTRAIN_KERNELS_BACKEND``
is ``auto``, and then serves on every CPU, with the best of its `PATHS` that the CPU has;
``QUESTTRAIN_CPU_ISA`` caps the path, to compare them. Without it the plain-torch references serve.
"""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from pathlib import Path

from questtrain.errors import UserError, unknown
from questtrain.kernels import shared_library
from questtrain.kernels.extension import BACKEND_VARIABLE, backend, constant_when_compiled
from questtrain.kernels.shared_library import SharedLibrary

log = logging.getLogger(__name__)

PATH_VARIABLE = "QUESTTRAIN_CPU_LIBRARY"
ISA_VARIABLE = "QUESTTRAIN_CPU_ISA"
NAME = "questtrain_cpu.so"

PATHS = ("portable", "avx2", "avx512-vnni")
"""For every CPU; with AVX2 and FMA; with AVX-512 (F, BW, VL, DQ) and its VNNI."""

INTERFACE = 1
"""What a library says of itself (csrc/cpu/interface.h): raised when an op of its own changes."""

_found: SharedLibrary | None = None


def load() -> SharedLibrary:
    """Load it once, after the schemas are defined. Never raises: uses do, where the environment
    asks for what there is not. One that is there and cannot be used is warned of."""
    global _found
    if _found is None:
        _found = shared_library.find(NAME, PATH_VARIABLE, _unwanted(), _start)
        if _found.missed:
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


def _unwanted() -> str | None:
    """What of the environment asks for no library, or for something that there is not."""
    with suppress(UserError):
        check_isa()
        if backend() == "auto":
            return None
    variable = BACKEND_VARIABLE if os.environ.get(BACKEND_VARIABLE) else ISA_VARIABLE
    return f"{variable}={os.environ.get(variable)}"


def _start(path: Path) -> SharedLibrary:
    facts = shared_library.facts_of(path)
    if facts.get("interface") != INTERFACE:
        error = f"{path} is of another version (make kernels builds it anew)"
        return SharedLibrary(path, error=error)
    found = shared_library.load(path, facts)
    asked = os.environ.get(ISA_VARIABLE)
    _symbols(path).questtrain_cpu_cap(asked.encode() if asked else None)
    return found


def _symbols(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.questtrain_cpu_path.restype = ctypes.c_char_p
    library.questtrain_cpu_cap.argtypes = [ctypes.c_char_p]
    return library
