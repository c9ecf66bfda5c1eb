"""Weights as they are stored: codes of few bits and their scales, never a float matrix.

Two forms. `IntegerWeight` is what the integer kernels multiply: a uniform grid's level indices, or
the int8 codes of the integers they stand for, and one scale a row. `CodedWeight` is for everything
else (FP4, sparse 8 bits, scales of groups, 16-bit or learned activations): its values are made from
the codes where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from questtrain.kernels import (
    Int8Matrix,
    PackedMatrix,
    container_bits,
    pack_bits,
    packed_weight_linear,
    unpack,
    unpack_bits,
)
from questtrain.kernels.dispatch import KEPT_INT8_ROWS, multiplies_packed_floats
from questtrain.kernels.formats import MAX_PACKED_LEVELS, int8_codes, integers_of
from questtrain.quant.grid import Grid, UniformGrid
from questtrain.quant.quantizer import QuantizedTensor, decoded


class _Stored(nn.Module):
    """Buffers of codes and scales; the scales keep their dtype when a model is cast."""

    codes: Tensor
    scales: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Stored:
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        return self

    def bytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


class IntegerWeight(_Stored):
    """``[N, K]`` integers ``v = 2·index - (levels-1)`` times a scale a row; a pruned value is 0.

    Buffers: ``codes``, packed uint8 ``[N, K·bits/8]``, or int8 ``[N, K]`` where there are more than
    16 levels or pruned values (`questtrain.kernels.formats`); ``scales`` fp32 ``[N]``, the value of
    one unit; ``sums`` int32 ``[N]`` of the int8 codes; and ``int8 [N, K]`` where `keep_int8` was
    called. 256 levels have no code for a pruned value: all their codes stand for odd integers.
    """

    sums: Tensor
    int8: Tensor | None

    def __init__(self, codes: Tensor, scales: Tensor, sums: Tensor, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("sums", sums)
        self.register_buffer("int8", None)

    @classmethod
    def of(cls, stored: QuantizedTensor, grid: UniformGrid) -> IntegerWeight:
        """From a quantizer's codes of a weight ``[N, K]`` on a ``grid`` of the kernels' levels."""
        rows = stored.codes.shape[0]
        codes = int8_codes(stored.codes, grid.levels)
        if stored.kept is not None:
            codes = codes * stored.kept
        sums = codes.sum(-1, dtype=torch.int32)
        scales = (stored.scale / (grid.levels - 1)).float().reshape(-1).expand(rows).contiguous()
        if stored.kept is None and grid.levels <= MAX_PACKED_LEVELS:
            codes = pack_bits(stored.codes, container_bits(grid.levels))
        return cls(codes, scales, sums, grid.levels)

    @classmethod
    def stacked(cls, weights: Sequence[IntegerWeight]) -> IntegerWeight:
        """The rows of several weights of the same levels and width, one below the other."""
        parts = zip(*((w.codes, w.scales, w.sums) for w in weights), strict=True)
        codes, scales, sums = (torch.cat(part) for part in parts)
        return cls(codes, scales, sums, weights[0].levels)

    @property
    def is_packed(self) -> bool:
        return self.codes.dtype == torch.uint8

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]

    def integers(self) -> Tensor:
        """int8 ``[N, K]``, int16 for 256 levels."""
        if self.is_packed:
            return unpack(self.codes, self.levels)
        return integers_of(self.codes, self.levels)

    def keep_int8(self) -> None:
        """Hold the integers of packed codes too: a byte a weight more, and products of many rows
        need not unpack them."""
        if self.is_packed:
            self.int8 = self.integers()

    def matrix(self, rows: int) -> PackedMatrix | Int8Matrix:
        """The form in which to multiply ``rows`` rows of activations."""
        if not self.is_packed:
            return Int8Matrix(self.codes, self.scales, self.sums, self.levels)
        if self.int8 is not None and rows > KEPT_INT8_ROWS:
            return Int8Matrix(self.int8, self.scales, self.sums, self.levels)
        return PackedMatrix(self.codes, self.scales, self.sums, self.levels)

    def extra_repr(self) -> str:
        return f"codes={tuple(self.codes.shape)} {self.codes.dtype}, levels={self.levels}"


class CodedWeight(_Stored):
    """``[N, K]`` codes of any grid: packed where they have up to 4 bits, otherwise a byte each.

    Buffers: ``codes`` uint8; ``scales [N, G]``, of groups of K/G columns (G = 1: of rows), or
    ``[1]``: the grid's half-widths in at least fp32, or half steps in the 16 bits of a
    ``unit_dtype`` that they are numbers of; ``kept`` uint8 ``[N, K/8]``, a bit a value, where
    sparsity prunes some.
    """

    kept: Tensor | None

    def __init__(
        self, stored: QuantizedTensor, grid: Grid, unit_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.bits = container_bits(grid.levels) if grid.levels <= MAX_PACKED_LEVELS else 8
        if stored.codes.shape[-1] * self.bits % 8:
            self.bits = 8
        self.register_buffer("codes", pack_bits(stored.codes, self.bits))
        scales = stored.scale
        if unit_dtype is not None:
            scales = (scales / (2 * grid.half_width)).to(unit_dtype)
        self.register_buffer("scales", scales)
        kept = None if stored.kept is None else pack_bits(stored.kept.to(torch.uint8), 1)
        self.register_buffer("kept", kept)

    def values(self) -> Tensor:
        """What the codes stand for, ``[N, K]`` in at least fp32 and the quantizer's space."""
        values = decoded(self.grid, unpack_bits(self.codes, self.bits), self.half_widths())
        if self.kept is None:
            return values
        return torch.where(unpack_bits(self.kept, 1).bool(), values, 0.0)

    def half_widths(self) -> Tensor:
        """The grids' half-widths in at least fp32, as the quantizer made them."""
        if self.scales.element_size() > 2:
            return self.scales
        return self.scales.float() * (2 * self.grid.half_width)

    @property
    def in_features(self) -> int:
        return self.codes.shape[1] * 8 // self.bits

    def multiplies(self, x: Tensor, block: int) -> bool:
        """Whether `product` takes ``x [..., K]``, the values being rotated back in ``block``s."""
        return (
            isinstance(self.grid, UniformGrid)
            and self.bits < 8
            and self.kept is None
            and self.scales.dtype != torch.float64
            and self.scales.shape[-1] == 1
            and multiplies_packed_floats(x, self.codes.shape[0], self.grid.levels, block)
        )

    def product(self, x: Tensor, block: int) -> Tensor:
        """``x [M, K] · H`` times the values, ``[M, N]`` in x's dtype, without making them."""
        assert isinstance(self.grid, UniformGrid)
        units = self.half_widths() / (self.grid.levels - 1)
        units = units.reshape(-1).expand(self.codes.shape[0]).contiguous()
        return packed_weight_linear(x, self.codes, units, self.grid.levels, block)

    def extra_repr(self) -> str:
        return f"codes={tuple(self.codes.shape)}, grid={self.grid}, sparse={self.kept is not None}"
