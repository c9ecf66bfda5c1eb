"""How quantized matrices lie in memory (docs/kernels.md).

A row of ``levels`` = n equidistant values holds level indices q in 0 … n-1. Its integers are
``v = 2q - (n-1)``, odd for even n, and its values ``v · scale``: scale is half a step of the grid.

- int8 codes: the integers v, int8 ``[M, K]``.
- packed codes: the indices q in 1, 2 or 4 bits, uint8 ``[M, K·bits/8]``, the first index lowest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEVELS = (2, 3, 4, 8, 16, 32, 64, 128)
"""What the kernels quantize to; the integers of more levels do not fit into int8."""

BLOCKS = (1, 16, 32, 64, 128, 256)
"""Hadamard blocks of the kernels; 1 is no rotation."""

MAX_PACKED_LEVELS = 16


class Quantized(NamedTuple):
    """Rows of integers: ``codes`` int8 or packed; ``scales`` fp32 ``[M]``; ``sums`` int32 ``[M]``
    of the integers; ``mask`` uint8 ``[M, K/8]``, a bit where the gradient is trusted, the first
    lowest (``[M, 0]`` where none was asked for)."""

    codes: Tensor
    scales: Tensor
    sums: Tensor
    mask: Tensor


class PackedMatrix(NamedTuple):
    """A weight ``[N, K]`` of packed codes, ``scales`` fp32 ``[N]`` and ``sums`` int32 ``[N]``."""

    codes: Tensor
    scales: Tensor
    sums: Tensor
    levels: int


class Int8Matrix(NamedTuple):
    """A weight ``[N, K]`` of int8 integers and ``scales`` fp32 ``[N]``."""

    codes: Tensor
    scales: Tensor


def integers_of(codes: Tensor, levels: int) -> Tensor:
    """The integers that int8 ``codes`` of ``levels`` levels stand for."""
    return codes


def container_bits(levels: int) -> int:
    """Bits of one packed code: 1, 2 or 4, the fewest that hold ``levels``."""
    if not 2 <= levels <= MAX_PACKED_LEVELS:
        raise ValueError(f"packed codes hold 2 to {MAX_PACKED_LEVELS} levels, not {levels}")
    return 1 if levels == 2 else 2 if levels <= 4 else 4


def pack_bits(indices: Tensor, bits: int) -> Tensor:
    """uint8 ``[M, K]`` of indices below ``2^bits`` → ``[M, K·bits/8]``, the first lowest."""
    in_byte = 8 // bits
    groups = indices.reshape(indices.shape[0], indices.shape[1] // in_byte, in_byte)
    packed = groups[..., 0].clone()
    for position in range(1, in_byte):
        packed |= groups[..., position] << (bits * position)
    return packed


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """The indices, uint8 ``[M, K]``, that `pack_bits` packed."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    indices: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return indices.flatten(1)
