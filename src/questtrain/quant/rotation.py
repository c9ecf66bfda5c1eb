"""Rotations: which space an operand is quantized in, and which space its product is taken in.

A rotation is a property of each operand, and a product is right only if both operands are in the
same space: ``x_h·w_hᵀ = x·wᵀ`` because H is orthonormal, while ``x_h·wᵀ`` is noise.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from questtrain.config import hadamard_block
from questtrain.kernels import hadamard_signs, hadamard_transform
from questtrain.kernels.dispatch import rotates_rows
from questtrain.kernels.elementwise import hadamard_rows

log = logging.getLogger(__name__)


class NoRotation(nn.Module):
    """The operand stays in the original space; computes in at least fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(x.dtype, torch.float32))


class HadamardRotation(nn.Module):
    """Block-diagonal Hadamard transform along the last dimension, its own inverse."""

    signs: Tensor

    def __init__(self, block: int) -> None:
        super().__init__()
        self.register_buffer("signs", hadamard_signs(block), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if rotates_rows(x, self.signs.shape[0]):
            return hadamard_rows(x, self.signs.shape[0])
        return hadamard_transform(x, self.signs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HadamardRotation:
        """Moves the signs and writes them anew, because ``to_empty`` leaves garbage and no
        checkpoint holds them."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.signs.is_meta:
            self.signs.copy_(hadamard_signs(self.signs.shape[0], device="cpu"))
        return self

    def extra_repr(self) -> str:
        return f"block={self.signs.shape[0]}"


def build_rotation(kind: str, width: int, block: int) -> nn.Module:
    """A rotation for operands of ``width`` columns; a smaller block is used where it must be."""
    if kind == "none":
        return NoRotation()
    largest = hadamard_block(width, block)
    if largest < block:
        _log_smaller_block(width, block, largest)
    return HadamardRotation(largest)


@functools.cache
def _log_smaller_block(width: int, block: int, largest: int) -> None:
    log.warning("width %d is no multiple of %d: its Hadamard block is %d", width, block, largest)
