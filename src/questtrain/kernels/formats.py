"""How quantized matrices lie in memory (docs/kernels.md).

A row of ``levels`` = n equidistant values holds level indices q in 0 … n-1. Its integers are
``v = 2q - (n-1)``, odd for even n, and its values ``v · scale``: scale is half a step of the grid.

- int8 codes: the integers v, int8 ``[M, K]``; of 256 levels, whose integers do not fit into int8,
  ``c = q - 128``, which stands for ``v = 2c + 1``.
- packed codes: the indices q in 1, 2 or 4 bits, uint8 ``[M, K·bits/8]``, the first index lowest.
- FP8: the integers of up to 16 levels as e4m3, which holds them exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

INTEGER_LEVELS = (2, 3, 4, 8, 16, 32, 64, 128)
"""Whose int8 codes are the integers themselves."""

OFFSET_LEVELS = 256
"""Whose int8 codes c stand for ``2c + 1``."""

LEVELS = (*INTEGER_LEVELS, OFFSET_LEVELS)
"""What the kernels quantize to."""

MAX_WIDTH = 32768
"""The CUDA quantizers take no wider rows; and products of 256 levels stay in int32: 255²·32768 <
2³¹."""

BLOCKS = (1, 16, 32, 64, 128, 256)
"""Hadamard blocks of the kernels; 1 is no rotation."""

MAX_PACKED_LEVELS = 16

E4M3 = torch.float8_e4m3fn
"""The FP8 of a backward's operands."""

FP8_MULTIPLE = 16
"""Of all sizes of a product in FP8: `torch._scaled_mm` takes no others."""

FIRST_BITS_TO_TOP_BYTE = 0x0102040810204080
"""Times 8 bytes of one bit each: in the product's highest byte, the first byte's bit is lowest."""


class RowFormat(NamedTuple):
    """How an activation's rows are quantized: ``levels`` on ``[-α·rms, α·rms]`` after a Hadamard
    transform in blocks of ``block`` columns (1: none)."""

    levels: int
    alpha: float
    block: int


class Quantized(NamedTuple):
    """Rows of integers: ``codes`` int8 or packed; ``scales`` fp32 ``[M]``; ``sums`` int32 ``[M]``
    of the integers (of 256 levels: of the codes, at most ``2⁷·K``); ``mask`` uint8 ``[M, K/8]``, a
    bit where the gradient is trusted, the first lowest (``[M, 0]`` where none was asked for)."""

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
    """A weight ``[N, K]`` of int8 codes, ``scales`` fp32 ``[N]``, and ``sums`` int32 ``[N]`` of the
    codes, which only a product with a side of 256 levels needs."""

    codes: Tensor
    scales: Tensor
    sums: Tensor | None = None
    levels: int = INTEGER_LEVELS[-1]


def integers_of(codes: Tensor, levels: int) -> Tensor:
    """The integers that int8 ``codes`` of ``levels`` levels stand for; int16 for 256 levels."""
    return 2 * codes.to(torch.int16) + 1 if levels == OFFSET_LEVELS else codes


def int8_codes(indices: Tensor, levels: int) -> Tensor:
    """The int8 codes of level indices, uint8."""
    if levels == OFFSET_LEVELS:
        return (indices.to(torch.int16) - levels // 2).to(torch.int8)
    return (2 * indices.to(torch.int16) - (levels - 1)).to(torch.int8)


def packed_integers(packed: Tensor, levels: int) -> Tensor:
    """The int8 integers ``[M, K]`` of packed codes."""
    return 2 * unpack_bits(packed, container_bits(levels)).to(torch.int8) - (levels - 1)


def container_bits(levels: int) -> int:
    """Bits of one packed code: 1, 2 or 4, the fewest that hold ``levels``."""
    if not 2 <= levels <= MAX_PACKED_LEVELS:
        raise RuntimeError(f"packed codes hold 2 to {MAX_PACKED_LEVELS} levels, not {levels}")
    return 1 if levels == 2 else 2 if levels <= 4 else 4


def pack_bits(indices: Tensor, bits: int) -> Tensor:
    """uint8 ``[M, K]`` of indices below ``2^bits`` → ``[M, K·bits/8]``, the first lowest."""
    if bits == 1:
        eights = indices.contiguous().view(torch.int64)
        return ((eights * FIRST_BITS_TO_TOP_BYTE) >> 56).to(torch.uint8)
    in_byte = 8 // bits
    groups = indices.reshape(indices.shape[0], indices.shape[1] // in_byte, in_byte)
    packed = groups[..., 0].clone(memory_format=torch.contiguous_format)
    for position in range(1, in_byte):
        packed |= groups[..., position] << (bits * position)
    return packed


def unpack_bits(packed: Tensor, bits: int) -> Tensor:
    """The indices, uint8 ``[M, K]``, that `pack_bits` packed: a byte's are looked up together."""
    together = {1: torch.int64, 2: torch.int32, 4: torch.int16, 8: torch.uint8}[bits]
    shifts = torch.arange(0, 8, bits, device=packed.device)
    of_byte = (torch.arange(256, device=packed.device).unsqueeze(1) >> shifts) & (2**bits - 1)
    table = of_byte.to(torch.uint8).view(together).flatten()
    indices = table.index_select(0, packed.flatten().int()).view(torch.uint8)
    unpacked: Tensor = indices.view(packed.shape[0], packed.shape[1] * (8 // bits))
    return unpacked
