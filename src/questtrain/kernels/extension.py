"""Finds and loads the library of CUDA kernels, if it is built (``make kernels``).

Without it, and on the CPU, the references serve.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch

log = logging.getLogger(__name__)

PATH_VARIABLE = "QUESTTRAIN_KERNELS_LIBRARY"
NAME = "questtrain_kernels.so"


@dataclass(frozen=True)
class Extension:
    """The library as found: ``error`` says why it is not loaded; ``architectures`` as in
    ``ARCHS``, and the CUDA it was built with, where its facts lie beside it."""

    path: Path
    architectures: tuple[str, ...] = ()
    cuda: str | None = None
    error: str | None = None

    @property
    def loaded(self) -> bool:
        return self.error is None


_found: Extension | None = None


def load() -> Extension:
    """Load the library once, after the schemas are defined; never raises."""
    global _found
    if _found is None:
        chosen = os.environ.get(PATH_VARIABLE)
        _found = _load(Path(chosen or Path(__file__).parent / NAME))
        if _found.error and (chosen or _found.path.exists()):
            log.warning("CUDA kernels: %s", _found.error)
    return _found


def _load(path: Path) -> Extension:
    if not path.exists():
        return Extension(path, error=f"not built ({path.name} is missing; make kernels builds it)")
    facts = path.with_suffix(".json")
    try:
        known = json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else {}
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        return Extension(path, error=f"{path} does not load: {error}")
    return Extension(path, tuple(known.get("architectures", ())), known.get("cuda"))


def serves(device: torch.device | str) -> bool:
    """Whether the kernels run on ``device``: they are loaded, and it is a GPU from sm_80 on."""
    device = torch.device(device)
    if device.type != "cuda" or not load().loaded or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
