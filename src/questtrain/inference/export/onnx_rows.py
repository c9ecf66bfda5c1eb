"""Rows of activations as an ONNX graph quantizes them: rotation, scale, rounding, clipping.

The operators, their order and their constants are those of `questtrain.quant`: rotated in fp32 by a
product with ±1 and one multiplication, ``s = α·rms`` a row or a learned number, rounded half to
even.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from onnx import TensorProto
from torch import nn

from questtrain.inference.export.onnx_graph import Graph
from questtrain.kernels.hadamard import hadamard_signs
from questtrain.quant.grid import E2M1Grid, Grid, UniformGrid
from questtrain.quant.packing import rotation_block
from questtrain.quant.quantizer import Quantizer, Unquantized
from questtrain.quant.scale import TINY, GaussianScale

E2M1_SPAN = 12
"""FP4's values are integers of so many units on each side: twice 0, 0.5, 1, … 6."""

BYTE_LEVELS = 128
"""The integers of more levels do not fit into a byte: halved, they do."""


def span(grid: Grid) -> int:
    """The half-width of a grid in its units, of which its values are integers."""
    return grid.levels - 1 if isinstance(grid, UniformGrid) else E2M1_SPAN


@dataclass(frozen=True)
class Rows:
    """Quantized rows ``[B, T, K]``: the values are ``unit·(factor·(code - zero) + rest) + offset``.

    ``codes``, 0 … ``largest``, and ``unit`` (``[B, T, 1]`` or a scalar) are fp32 values of the
    graph, the others numbers.
    """

    codes: str
    largest: int
    unit: str
    zero: int
    factor: int
    rest: int
    offset: float


class RowQuantizers:
    """The operands of a graph's linear layers; those that quantize the same rows alike share
    one."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._rotated: dict[tuple[str, int], str] = {}
        self._rows: dict[tuple[object, ...], Rows] = {}
        self._bytes: dict[str, str] = {}
        self._sums: dict[str, str] = {}

    def rotated(self, x: str, rotation: nn.Module | None) -> str:
        """``x [B, T, K]·H``, x itself without a rotation."""
        block = 1 if rotation is None else rotation_block(rotation)
        assert block is not None  # build_quantizer makes no other rotations
        if block == 1:
            return x
        if (x, block) not in self._rotated:
            self._rotated[x, block] = self._rotate(x, block)
        return self._rotated[x, block]

    def _rotate(self, x: str, block: int) -> str:
        graph = self._graph
        signs = graph.constant(hadamard_signs(block))
        blocks = graph.op("Reshape", x, graph.sizes(0, 0, -1, block))
        rotated = graph.op("MatMul", blocks, signs)
        scaled = graph.op("Mul", rotated, graph.number(block**-0.5))
        return graph.op("Reshape", scaled, graph.op("Shape", x))

    def values(self, x: str, quantizer: nn.Module) -> str:
        """What the quantizer gives, fp32: rounded, and rotated back where it does so."""
        if isinstance(quantizer, Unquantized):
            return self.rotated(x, quantizer.rotation)
        assert isinstance(quantizer, Quantizer)
        graph, rows = self._graph, self.quantized(x, quantizer)
        values = graph.op("Sub", rows.codes, graph.number(rows.zero))
        if rows.factor != 1:
            values = graph.op("Mul", values, graph.number(rows.factor))
        if rows.rest:
            values = graph.op("Add", values, graph.number(rows.rest))
        values = graph.op("Mul", values, rows.unit)
        if rows.offset:
            values = graph.op("Add", values, graph.number(rows.offset))
        return self.rotated(values, quantizer.rotation if quantizer.rotate_back else None)

    def quantized(self, x: str, quantizer: Quantizer) -> Rows:
        """The rows on the quantizer's grid, in the space that it quantizes in."""
        assert quantizer.sparsity is None  # a format of weights alone
        probe = torch.ones(1, 1)
        offset = 0.0 if quantizer.offset is None else float(quantizer.offset(probe))
        scale = quantizer.scale
        gaussian = isinstance(scale, GaussianScale)
        size = scale.alpha if isinstance(scale, GaussianScale) else float(scale(probe))
        rotated = self.rotated(x, quantizer.rotation)
        key = (rotated, quantizer.grid, gaussian, size, offset)
        if key not in self._rows:
            if offset:
                rotated = self._graph.op("Sub", rotated, self._graph.number(offset))
            half_width = self._row_scale(rotated, size) if gaussian else self._graph.number(size)
            self._rows[key] = self._round(rotated, half_width, quantizer.grid, offset)
        return self._rows[key]

    def bytes(self, rows: Rows) -> str:
        """The codes as uint8."""
        if rows.codes not in self._bytes:
            self._bytes[rows.codes] = self._graph.op("Cast", rows.codes, to=TensorProto.UINT8)
        return self._bytes[rows.codes]

    def sums(self, rows: Rows) -> str:
        """Of ``code - zero`` in each row, int32 ``[B, T, 1]``."""
        graph, codes = self._graph, self.bytes(rows)
        if codes not in self._sums:
            whole = graph.op("Cast", codes, to=TensorProto.INT32)
            shifted = graph.op("Sub", whole, graph.number(rows.zero, torch.int32))
            self._sums[codes] = graph.op("ReduceSum", shifted, graph.sizes(-1), keepdims=1)
        return self._sums[codes]

    def group_sums(self, x: str, groups: int) -> str:
        """Of so many groups of columns of a value fp32, ``[B, T, groups]``."""
        graph, key = self._graph, f"{x} in {groups}"
        if key not in self._sums:
            parts = graph.op("Reshape", x, graph.sizes(0, 0, groups, -1))
            self._sums[key] = graph.op("ReduceSum", parts, graph.sizes(-1), keepdims=0)
        return self._sums[key]

    def _row_scale(self, x: str, alpha: float) -> str:
        """``α·rms [B, T, 1]``."""
        graph = self._graph
        mean = graph.op("ReduceMean", graph.op("Mul", x, x), graph.sizes(-1), keepdims=1)
        rms = graph.op("Max", graph.op("Sqrt", mean), graph.number(TINY))
        return graph.op("Mul", rms, graph.number(alpha))

    def _round(self, x: str, half_width: str, grid: Grid, offset: float) -> Rows:
        graph = self._graph
        unit = graph.op("Div", half_width, graph.number(span(grid)))
        relative = graph.op("Div", x, half_width)
        if isinstance(grid, E2M1Grid):
            codes = graph.op("Add", self._e2m1(relative), graph.number(E2M1_SPAN))
            return Rows(codes, 2 * E2M1_SPAN, unit, E2M1_SPAN, 1, 0, offset)
        assert isinstance(grid, UniformGrid)
        half, last = graph.number(grid.half_width), grid.levels - 1
        place = graph.op("Add", graph.op("Mul", relative, half), half)
        rounded = graph.op("Round", place)
        codes = graph.op("Clip", rounded, graph.number(0.0), graph.number(last))
        if grid.levels > BYTE_LEVELS:
            return Rows(codes, last, unit, grid.levels // 2, 2, 1 - grid.levels % 2, offset)
        doubled = graph.op("Mul", codes, graph.number(2.0))
        return Rows(doubled, 2 * last, unit, last, 1, 0, offset)

    def _e2m1(self, relative: str) -> str:
        """FP4's integers, from values in half-widths. Between 0, 2, 4 and 6 the format is uniform,
        with steps of 0.5, 1 and 2: a magnitude is rounded as the part of each that it fills."""
        graph = self._graph
        magnitude = graph.op("Mul", graph.op("Abs", relative), graph.number(6.0))
        total = ""
        for start, steps in ((0.0, 2.0), (2.0, 1.0), (4.0, 0.5)):
            above = graph.op("Sub", magnitude, graph.number(start)) if start else magnitude
            part = graph.op("Clip", above, graph.number(0.0), graph.number(2.0))
            rounded = graph.op("Round", graph.op("Mul", part, graph.number(steps)))
            units = graph.op("Mul", rounded, graph.number(2.0 / steps))
            total = graph.op("Add", total, units) if total else units
        return graph.op("Mul", total, graph.op("Sign", relative))
