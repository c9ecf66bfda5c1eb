"""Codes in the block formats of GGUF, packed so that llama.cpp's own arithmetic gives them back.

A format's blocks hold some integers v, a number of weights each, and value = d·v with one fp16
number d a block: the unit of the weight's row. The K-formats have sub-blocks with a scale and a
minimum, small integers; with all scales 2 and all minima L-1 a value is d·(2q - (L-1)), our centred
grid exactly. Other writers choose scales of their own from a block's extremes, and move the codes.

Layouts: ggml-common.h and dequantize_row_* of llama.cpp, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int16]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class BlockType:
    """A format of blocks: its name and number in ggml, of a file of it (general.file_type), weights
    and bytes of a block, the integers it holds, and what packs integers ``[blocks, width]`` without
    their scale. ``scales`` says where the fp16 numbers stand: before or after the rest, once, or
    twice where a minimum has one too."""

    name: str
    number: int
    file_type: int
    width: int
    size: int
    integers: frozenset[int]
    pack: Callable[[Integers], Bytes]
    scales: tuple[str, int] = ("before", 1)

    @property
    def bits(self) -> float:
        """A weight's."""
        return 8 * self.size / self.width

    def blocks(self, integers: Integers, units: npt.NDArray[np.float16]) -> Bytes:
        """uint8 ``[N, K·bits/8]`` of integers ``[N, K]`` and a unit for each of G groups of a row,
        fp16 ``[N, G]``."""
        rows, columns = integers.shape
        count = columns // self.width
        packed = self.pack(integers.reshape(-1, self.width))
        where, times = self.scales
        scale = (
            np.repeat(units, count // units.shape[1] * times)
            .view(np.uint8)
            .reshape(rows * count, 2 * times)
        )
        parts = (scale, packed) if where == "before" else (packed, scale)
        return np.concatenate(parts, axis=1).reshape(rows, count * self.size)


def _fields(codes: npt.NDArray[np.integer], run: int, per_byte: int) -> Bytes:
    """Codes ``[B, n·per_byte·run]``, ``run`` bytes at a time: element i·run + j of such a group in
    byte j, as its i-th field from the low end."""
    bits = 8 // per_byte
    groups = codes.astype(np.uint8).reshape(len(codes), -1, per_byte, run)
    packed = np.zeros((len(codes), groups.shape[1], run), np.uint8)
    for place in range(per_byte):
        packed |= groups[:, :, place] << np.uint8(bits * place)
    return packed.reshape(len(codes), -1)


def _q1_0(v: Integers) -> Bytes:
    return np.packbits(v > 0, axis=1, bitorder="little")


def _q2_0(v: Integers) -> Bytes:
    """Four neighbours a byte, the first lowest."""
    return _fields(v + 1, 1, 4)


def _q4_0(v: Integers) -> Bytes:
    return _fields(v + 8, 16, 2)


def _q5_0(v: Integers) -> Bytes:
    codes = v + 16
    high = np.packbits(codes >> 4, axis=1, bitorder="little")
    return np.concatenate((high, _fields(codes & 15, 16, 2)), axis=1)


def _q8_0(v: Integers) -> Bytes:
    return v.astype(np.int8).view(np.uint8)


def _tq1_0(v: Integers) -> Bytes:
    """Five ternary digits a byte, as the fraction n/243 rounded up to n'/256; the last 16 weights
    four a byte."""
    digits = (v + 1).astype(np.uint16)
    parts = ((0, 160, 32, 5), (160, 240, 16, 5), (240, 256, 4, 4))
    packed = []
    for start, stop, run, count in parts:
        numbers = np.zeros((len(v), run), np.uint16)
        for digit in digits[:, start:stop].reshape(len(v), count, run).swapaxes(0, 1):
            numbers = numbers * 3 + digit
        numbers *= 3 ** (5 - count)
        packed.append(((numbers * 256 + 242) // 243).astype(np.uint8))
    return np.concatenate(packed, axis=1)


def _tq2_0(v: Integers) -> Bytes:
    return _fields(v + 1, 32, 4)


def _same(count: int, *values: int) -> Bytes:
    """The same bytes in every one of ``count`` blocks."""
    return np.tile(np.array(values, np.uint8), (count, 1))


def _q2_k(v: Integers) -> Bytes:
    """Each of 16 sub-blocks: scale 2 in the low half of a byte, minimum 3 in the high one."""
    scales = _same(len(v), *[2 | 3 << 4] * 16)
    return np.concatenate((scales, _fields((v + 3) // 2, 32, 4)), axis=1)


def _q3_k(v: Integers) -> Bytes:
    """16 sub-scales of 6 bits, stored with 32 added: 33 is 1 in the low half and 2 in the high
    bits, four a byte."""
    codes = v + 4
    high = _fields(codes >> 2, 32, 8)
    scales = _same(len(v), *[1 | 1 << 4] * 8, *[0b10101010] * 4)
    return np.concatenate((high, _fields(codes & 3, 32, 4), scales), axis=1)


def _scales_and_minima(count: int, minimum: int) -> Bytes:
    """Eight sub-blocks of scale 2, with 6 bits each for it and for the minimum: those of the first
    four whole, of the last four the low halves together and the high bits above the first's."""
    first, second = 2, minimum | minimum >> 4 << 6
    return _same(count, *[first] * 4, *[second] * 4, *[2 | (minimum & 15) << 4] * 4)


def _q4_k(v: Integers) -> Bytes:
    return np.concatenate((_scales_and_minima(len(v), 15), _fields((v + 15) // 2, 32, 2)), axis=1)


def _q5_k(v: Integers) -> Bytes:
    codes = (v + 31) // 2
    high = _fields(codes >> 4, 32, 8)
    low = _fields(codes & 15, 32, 2)
    return np.concatenate((_scales_and_minima(len(v), 31), high, low), axis=1)


def _between(low: int, high: int, step: int = 1) -> frozenset[int]:
    return frozenset(range(low, high + 1, step))


_TWICE, _AFTER = ("before", 2), ("after", 1)

TYPES = (
    BlockType("Q1_0", 41, 40, 128, 18, frozenset((-1, 1)), _q1_0),
    BlockType("TQ1_0", 34, 36, 256, 54, _between(-1, 1), _tq1_0, _AFTER),
    BlockType("TQ2_0", 35, 37, 256, 66, _between(-1, 1), _tq2_0, _AFTER),
    BlockType("Q2_0", 42, 41, 64, 18, _between(-1, 2), _q2_0),
    BlockType("Q2_K", 10, 21, 256, 84, _between(-3, 3, 2), _q2_k, ("after", 2)),
    BlockType("Q3_K", 11, 11, 256, 110, _between(-4, 3), _q3_k, _AFTER),
    BlockType("Q4_0", 2, 2, 32, 18, _between(-8, 7), _q4_0),
    BlockType("Q4_K", 12, 14, 256, 144, _between(-15, 15, 2), _q4_k, _TWICE),
    BlockType("Q5_0", 6, 8, 32, 22, _between(-16, 15), _q5_0),
    BlockType("Q5_K", 13, 16, 256, 176, _between(-31, 31, 2), _q5_k, _TWICE),
    BlockType("Q8_0", 8, 7, 32, 34, _between(-128, 127), _q8_0),
)
"""From the narrowest to the widest."""


def narrowest(integers: frozenset[int], columns: int) -> BlockType | None:
    """The format of the fewest bits that holds these integers in rows of so many weights; None
    where there is none."""
    for kind in TYPES:
        if integers <= kind.integers and columns % kind.width == 0:
            return kind
    return None


def dequantize(kind: int, data: Bytes, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """The values of a tensor of type ``kind`` and ``shape``, by gguf's own arithmetic where it has
    some, which is not what packed them."""
    from gguf import GGMLQuantizationType, quants

    match kind:
        case 41 | 42:
            values = _dequantize_few_bits(kind, data)
        case _:
            values = quants.dequantize(data, GGMLQuantizationType(kind))
    return values.reshape(shape)


def _dequantize_few_bits(kind: int, data: Bytes) -> npt.NDArray[np.float32]:
    """Q1_0 and Q2_0, blocks of 18 bytes, which gguf 0.19 does not."""
    blocks = data.reshape(-1, 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").astype(np.int8)
    if kind == 41:
        return scale * (2 * bits - 1)
    return scale * (bits[:, ::2] + 2 * bits[:, 1::2] - 1)
