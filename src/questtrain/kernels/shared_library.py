"""A shared library of kernels: where it lies, whether it loads, and what its build says of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class SharedLibrary:
    """A library as found: ``error`` says why it is not loaded, ``left_out`` that this is no fault
    of its own; ``named`` that the environment asks for this file. What its facts state of the
    build: ``architectures`` as in ``ARCHS``, CUDA's version, the hash of its sources, the compiler.
    """

    path: Path
    architectures: tuple[str, ...] = ()
    cuda: str | None = None
    source_hash: str | None = None
    compiler: str | None = None
    error: str | None = None
    left_out: bool = False
    named: bool = False

    @property
    def loaded(self) -> bool:
        return self.error is None

    @property
    def missed(self) -> bool:
        """Whether it is not loaded although it is there, or was asked for by name."""
        return not self.loaded and not self.left_out and (self.named or self.path.exists())


def find(
    name: str, variable: str, unwanted: str | None, start: Callable[[Path], SharedLibrary]
) -> SharedLibrary:
    """The library ``name`` of this folder, or the one that the environment's ``variable`` names.

    It is left out where something makes it ``unwanted``; else ``start`` loads it from its file, or
    says why not. Never raises.
    """
    named = os.environ.get(variable)
    path = Path(named or Path(__file__).parent / name)
    if unwanted is not None:
        found = SharedLibrary(path, error=unwanted, left_out=True)
    elif not path.exists():
        error = f"not built ({named or name} is missing; make kernels builds it)"
        found = SharedLibrary(path, error=error)
    else:
        try:
            found = start(path)
        except (OSError, ValueError, AttributeError) as error:
            found = SharedLibrary(path, error=f"{path} does not load: {error}")
    return replace(found, named=bool(named))


def facts_of(path: Path) -> dict[str, Any]:
    """What the build wrote beside the library; OSError or ValueError where it cannot be read."""
    facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return facts


def load(path: Path, facts: dict[str, Any]) -> SharedLibrary:
    """Load the file, which registers its kernels; OSError where it is no library."""
    torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    return SharedLibrary(
        path,
        tuple(facts.get("architectures", ())),
        facts.get("cuda"),
        facts.get("source_hash"),
        facts.get("compiler"),
    )
