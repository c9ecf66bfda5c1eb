"""Codes in their bits: how a file holds small integers with nothing between them.

``n`` codes of ``levels`` kinds lie one after the other, rows of a matrix without a gap:

- 2, 4, 8, … 256 levels and what lies between: in b = 1 … 8 bits, the first code lowest, so that 8
  codes fill b bytes and those of 3, 5, 6 and 7 bits straddle bytes;
- 3 levels (1.58 bits) and the 6 of `PAIR_CHOICES`: as digits, five or three to a byte, the first
  lowest: ``d0 + 3·d1 + 9·d2 + 27·d3 + 81·d4`` and ``d0 + 6·d1 + 36·d2``.

What the last byte has beyond the last code is 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DIGITS_IN_BYTE = {3: 5, 6: 3}
"""Levels whose codes are digits → how many a byte holds."""

TOGETHER = 8
"""Codes of b bits that fill b bytes."""

PAIR_CHOICES = (0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100)
"""Which 2 of 4 pairs are kept, the first lowest: what the digits of 2:4 sparsity stand for."""


def packed_bytes(count: int, levels: int) -> int:
    """Bytes of ``count`` codes."""
    in_byte = DIGITS_IN_BYTE.get(levels)
    return math.ceil(count * bits_of(levels) / 8 if in_byte is None else count / in_byte)


def bits_of(levels: int) -> int:
    """Bits of one code that is no digit: the fewest that hold ``levels``."""
    return (levels - 1).bit_length()


def pack_codes(codes: Tensor, levels: int) -> Tensor:
    """uint8 codes below ``levels``, of any shape → uint8 ``[packed_bytes]``."""
    size = packed_bytes(codes.numel(), levels)
    if (in_byte := DIGITS_IN_BYTE.get(levels)) is not None:
        digits = _in_groups(codes, in_byte)
        packed = digits[:, in_byte - 1].clone()
        for place in reversed(range(in_byte - 1)):
            packed.mul_(levels).add_(digits[:, place])
        return packed
    bits = bits_of(levels)
    if bits == 8:
        return codes.flatten()
    groups = _in_groups(codes, TOGETHER)
    words = torch.zeros(groups.shape[0], dtype=torch.int64)
    for place in range(TOGETHER):
        words |= groups[:, place].to(torch.int64) << (bits * place)
    of_word = words.view(torch.uint8).view(-1, TOGETHER)
    return of_word[:, :bits].clone(memory_format=torch.contiguous_format).flatten()[:size]


def unpack_codes(packed: Tensor, levels: int, count: int) -> Tensor:
    """The ``count`` codes, uint8 ``[count]``, that `pack_codes` packed."""
    if (in_byte := DIGITS_IN_BYTE.get(levels)) is not None:
        bytes_ = torch.arange(256)
        table = torch.stack([bytes_ // levels**place % levels for place in range(in_byte)], -1)
        return table.to(torch.uint8)[packed.int()].flatten()[:count]
    bits = bits_of(levels)
    if bits == 8:
        return packed[:count]
    groups = F.pad(_in_groups(packed, bits), (0, TOGETHER - bits)).view(torch.int64)
    codes = [groups >> (bits * place) & (2**bits - 1) for place in range(TOGETHER)]
    return torch.cat([each.to(torch.uint8) for each in codes], -1).flatten()[:count]


def choices_of(kept: Tensor) -> Tensor:
    """bool ``[..., K]``, 2 of each 4 pairs → uint8 ``[n/8]``, places in `PAIR_CHOICES`."""
    pairs = kept.reshape(-1, 4, 2)[..., 0].to(torch.uint8)
    masks = pairs[:, 0] | pairs[:, 1] << 1 | pairs[:, 2] << 2 | pairs[:, 3] << 3
    places = [PAIR_CHOICES.index(mask) if mask in PAIR_CHOICES else 0 for mask in range(16)]
    return torch.tensor(places, dtype=torch.uint8)[masks.int()]


def kept_by(choices: Tensor) -> Tensor:
    """bool ``[8·n]``: the values that choices ``[n]`` keep."""
    table = (torch.tensor(PAIR_CHOICES).unsqueeze(1) >> torch.arange(4) & 1).bool()
    return table[choices.int()].repeat_interleave(2, dim=-1).flatten()


def _in_groups(values: Tensor, size: int) -> Tensor:
    """``[ceil(n / size), size]``, zeros after the last value."""
    flat = values.flatten()
    return F.pad(flat, (0, -flat.numel() % size)).view(-1, size)
