"""Kernels that sum in the same order each time, while a reproducible run trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What torch asks for before it takes cuBLAS for deterministic."""


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """torch refuses, inside the block, what would not give the same bits each time; memory that is
    not written yet is left as it is."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault(*CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
