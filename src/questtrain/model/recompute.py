"""Activation checkpointing: what the backward computes again instead of keeping it.

The second forward has the bits of the first: nothing in a block is drawn by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recomputed(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)``, of which a backward keeps the arguments alone."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    return cast(T, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False))
