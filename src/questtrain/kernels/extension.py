"""Finds and loads the library of CUDA kernels (``make kernels``), and says when references serve.

``QUESTTRAIN_KERNELS_BACKEND`` chooses: ``auto``, the kernels where they run and the plain-torch
references elsewhere; ``cuda``, the same, but without a library nothing runs; ``reference``, plain
torch everywhere. The library is loaded when CUDA starts, for only then is it known which GPUs are
there: importing this starts nothing, and a process that uses no GPU loads nothing.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch._compile import _disable_dynamo

from questtrain.errors import UserError, unknown
from questtrain.kernels import shared_library
from questtrain.kernels.shared_library import SharedLibrary

log = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])

PATH_VARIABLE = "QUESTTRAIN_KERNELS_LIBRARY"
BACKEND_VARIABLE = "QUESTTRAIN_KERNELS_BACKEND"
NAME = "questtrain_kernels.so"

BACKENDS = ("auto", "cuda", "reference")
OLDEST = (8, 0)
"""The compute capability that the kernels need."""

_found: SharedLibrary | None = None


def backend() -> str:
    """One of `BACKENDS`, as the environment says; UserError for anything else."""
    chosen = os.environ.get(BACKEND_VARIABLE) or BACKENDS[0]
    if chosen not in BACKENDS:
        raise unknown(BACKEND_VARIABLE, chosen, BACKENDS)
    return chosen


def load() -> SharedLibrary:
    """Load the library once, after the schemas are defined; starts CUDA where there is a GPU.

    Raises UserError for an unknown backend, and for the backend ``cuda`` without a library.
    """
    global _found
    chosen = backend()
    if _found is None and chosen != "reference" and torch.cuda.is_available():
        torch.cuda.init()  # type: ignore[no-untyped-call]  # may come back here and find it
    if _found is None:
        _found = _find(chosen)
    if chosen == "cuda" and not _found.loaded:
        raise UserError(f"{BACKEND_VARIABLE}=cuda: {_found.error}.")
    return _found


def load_with_cuda() -> None:
    """Have the library loaded before the first tensor is on a GPU; never raises, uses do."""

    def attempt() -> None:
        with suppress(UserError):
            load()

    torch.cuda._lazy_call(attempt)  # type: ignore[no-untyped-call]


def admit_reference(op: str, device: torch.device) -> None:
    """What an op asks before its reference runs on ``device``.

    UserError where the backend does not allow it; on a GPU the log says once why no kernel runs.
    """
    if device.type != "cuda":
        if backend() == "cuda":
            load()
        return
    found = load()
    error = found.error or f"{found.path} has no {op} (make kernels builds it anew)"
    if backend() == "cuda":
        raise UserError(f"{BACKEND_VARIABLE}=cuda: {error}.")
    _say(logging.INFO if backend() == "reference" else logging.WARNING, error)


def constant_when_compiled(function: Function) -> Function:
    """`torch.compiler.assume_constant_result`, which would import the compiler: a second."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def never_compiled(function: Function) -> Function:
    """`torch.compiler.disable`, which would import the compiler: a second or two. Calls where it is
    not imported, where nothing is compiled, go without."""
    disabled = _disable_dynamo(function)

    @functools.wraps(function)
    def called(*args: Any, **keywords: Any) -> Any:
        return (disabled if "torch._dynamo" in sys.modules else function)(*args, **keywords)

    return called  # type: ignore[return-value]


@constant_when_compiled
def serves(device: torch.device | str) -> bool:
    """Whether the kernels run on ``device``: they are loaded, and it is a GPU from sm_80 on.

    UserError as in `load`.
    """
    device = torch.device(device)
    if backend() == "cuda":
        load()
    if device.type != "cuda" or not torch.cuda.is_available() or not load().loaded:
        return False
    return torch.cuda.get_device_capability(device) >= OLDEST


def _find(chosen: str) -> SharedLibrary:
    unwanted = f"{BACKEND_VARIABLE}=reference" if chosen == "reference" else None
    found = shared_library.find(NAME, PATH_VARIABLE, unwanted, _start)
    if chosen == "auto" and found.error and found.missed:
        _say(logging.WARNING, found.error)
    return found


def _start(path: Path) -> SharedLibrary:
    if (newest := _newest_gpu()) and newest < OLDEST:
        needed, given = (".".join(map(str, capability)) for capability in (OLDEST, newest))
        error = f"they need a GPU of compute capability {needed} or newer, here is {given}"
        return SharedLibrary(path, error=error, left_out=True)
    has_facts = path.with_suffix(".json").exists()
    return shared_library.load(path, shared_library.facts_of(path) if has_facts else {})


def _newest_gpu() -> tuple[int, int] | None:
    """The highest compute capability among the visible GPUs, None without one."""
    if not torch.cuda.is_available():
        return None
    return max(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))


@functools.cache
def _say(level: int, error: str) -> None:
    log.log(level, "CUDA kernels: %s; the plain-torch references serve", error)
