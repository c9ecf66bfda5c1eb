"""Linear layers as ONNX operators, ``[B, T, K] → [B, T, N]``, in three forms.

- values: MatMul of fp32 values; of weight-only layers they are folded (rotated back), so that they
  are those of an ordinary linear layer.
- integers: MatMulInteger of bytes, exact in int32, where both operands are integers times a scale.
- codes: com.microsoft's MatMulNBits of 2 or 4 bits a weight, for layers whose activations are not
  quantized. Its values are ``step·(code - 2^(bits-1))``. The middle of a grid with an even number
  of levels is half a step away: ``½·step·Σx`` is added.

The tensors of a layer have its name: ``NAME.weight [K, N]``; or ``NAME.codes`` and ``NAME.units
[N]`` or ``NAME.steps``. `stored_values` reads them back.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor

from questtrain.inference.export.onnx_graph import Graph, read_tensor
from questtrain.inference.export.onnx_rows import RowQuantizers, Rows, span
from questtrain.inference.export.source import Source, WeightCodes, weight_codes
from questtrain.kernels import pack_bits, unpack_bits
from questtrain.quant import QuantLinear
from questtrain.quant.grid import UniformGrid
from questtrain.quant.quantizer import Quantizer, Unquantized

CONTRIB = "com.microsoft"
INT32_LIMIT = 2**31
BLOCKS = (256, 128, 64, 32, 16)
"""Columns with one scale in MatMulNBits, the fewest scales first."""

PAIR_LIMIT = 2**15 - 1
"""Kernels for x86 without VNNI add two products of an unsigned and a signed byte in 16 bits, and
saturate there; two unsigned bytes are multiplied in 32."""


class LinearWriter:
    """Writes the layers of a run into a graph, one at a time: values in ``dtype``, and codes where
    it ``packs`` and a layer has them (`stores_codes`)."""

    def __init__(self, graph: Graph, source: Source, dtype: torch.dtype, packs: bool) -> None:
        self._graph, self._source = graph, source
        self._dtype, self._packs = dtype, packs
        self._rows = RowQuantizers(graph)

    def __call__(self, name: str, x: str) -> str:
        """The layer called ``name``, of the value ``x [B, T, K]``."""
        layer = self._source.linear(name)
        with self._graph.scope(name):
            y = self._product(name, layer, x)
            if layer.bias is None:
                return y
            return self._graph.op("Add", y, self._graph.tensor(f"{name}.bias", layer.bias))

    def _product(self, name: str, layer: QuantLinear, x: str) -> str:
        codes, activation = weight_codes(layer), layer.activation_quantizer
        if codes is not None and has_integer_product(layer, codes):
            assert isinstance(activation, Quantizer)
            return self._integers(name, codes, self._rows.quantized(x, activation))
        values = x  # what is only rotated needs not be: folded values are those of x as given
        if isinstance(activation, Quantizer):
            back = None if codes is not None else layer.weight_quantizer.rotation
            values = self._rows.rotated(self._rows.values(x, activation), back)
        if codes is not None and self._packs and stores_codes(layer, codes):
            return self._codes(name, codes, self._rows.rotated(values, codes.rotation))
        folded = layer.weight if codes is None else codes.folded()
        weight = folded.t().to(self._dtype)
        return self._graph.op("MatMul", values, self.float_tensor(f"{name}.weight", weight))

    def float_tensor(self, name: str, value: Tensor) -> str:
        """A tensor of floating-point numbers in its own dtype, as an fp32 value."""
        held = self._graph.tensor(name, value)
        if value.dtype == torch.float32:
            return held
        return self._graph.op("Cast", held, to=onnx.TensorProto.FLOAT)

    def _integers(self, name: str, codes: WeightCodes, rows: Rows) -> str:
        """``unit·(Σ rows·integers)·units``, the sum in int32."""
        graph = self._graph
        integers, factor, rest = integers_of(codes)
        sums = (factor * integers.long() + rest).sum(1)
        stored = integers.to(torch.int8)
        zero = 0
        if 2 * rows.largest * int(integers.abs().max()) > PAIR_LIMIT:
            stored, zero = (integers + 128).to(torch.uint8), 128
        product = graph.op(
            "MatMulInteger",
            self._rows.bytes(rows),
            graph.tensor(f"{name}.codes", stored.t()),
            graph.number(rows.zero, torch.uint8),
            graph.tensor(f"{name}.zero", torch.tensor(zero, dtype=stored.dtype)),
        )
        if factor != 1:
            held = graph.tensor(f"{name}.factor", torch.tensor(factor, dtype=torch.int32))
            product = graph.op("Mul", product, held)
        if rest:
            held = graph.tensor(f"{name}.rest", torch.tensor(rest, dtype=torch.int32))
            product = graph.op("Add", product, graph.op("Mul", self._rows.sums(rows), held))
        if rows.factor != 1:
            product = graph.op("Mul", product, graph.number(rows.factor, torch.int32))
        if rows.rest:
            of_weights = graph.tensor(f"{name}.sums", (rows.rest * sums).int())
            product = graph.op("Add", product, of_weights)
        units = row_units(codes)
        floats = graph.op("Mul", graph.op("Cast", product, to=onnx.TensorProto.FLOAT), rows.unit)
        scaled = graph.op("Mul", floats, graph.tensor(f"{name}.units", units))
        if not rows.offset:
            return scaled
        of_offset = (rows.offset * units.double() * sums).float()
        return graph.op("Add", scaled, graph.tensor(f"{name}.offset", of_offset))

    def _codes(self, name: str, codes: WeightCodes, x: str) -> str:
        """``Σ x·codes`` in blocks of columns, and the middle's part."""
        graph, (rows, width), levels = self._graph, codes.codes.shape, _levels(codes)
        block, bits = block_of(codes), 2 if levels <= 4 else 4
        assert block is not None
        groups = codes.half_widths.shape[-1]
        steps = (2 * codes.half_widths / span(codes.grid)).expand(rows, groups)
        shifted = codes.codes + (2 ** (bits - 1) - levels // 2)
        packed = pack_bits(shifted, bits).view(rows, width // block, -1)
        product = graph.op(
            "MatMulNBits",
            x,
            graph.tensor(f"{name}.codes", packed),
            graph.tensor(
                f"{name}.steps", steps.repeat_interleave(width // block // groups, 1).flatten()
            ),
            domain=CONTRIB,
            K=width,
            N=rows,
            bits=bits,
            block_size=block,
            accuracy_level=1,  # fp32: level 4 would round the activations to 8 bits
        )
        graph.shape(product, ("batch_size", "sequence_length", rows))
        if levels % 2:
            return product
        half_steps = graph.tensor(f"{name}.half_steps", steps.t() / 2)
        middle = graph.op("MatMul", self._rows.group_sums(x, groups), half_steps)
        return graph.op("Add", product, middle)


def has_integer_product(layer: QuantLinear, codes: WeightCodes) -> bool:
    """Whether both operands are integers times a scale, in the same space, whose products fit into
    int32. 256 levels have no integer in a byte for what sparsity prunes."""
    activation = layer.activation_quantizer
    if not isinstance(activation, Quantizer) or activation.rotate_back or codes.rotates_back:
        return False
    if not _has_row_scales(codes) or (codes.kept is not None and span(codes.grid) > 127):
        return False
    return span(activation.grid) * span(codes.grid) * layer.in_features < INT32_LIMIT


def stores_codes(layer: QuantLinear, codes: WeightCodes | None = None) -> bool:
    """Whether MatMulNBits holds the weight, whose ``codes`` are made where they are not given: of a
    uniform grid of at most 16 levels, not sparse, of a width with a block; the activations are not
    quantized."""
    if not isinstance(layer.activation_quantizer, Unquantized):
        return False
    codes = codes or weight_codes(layer)
    if codes is None or codes.kept is not None or not isinstance(codes.grid, UniformGrid):
        return False
    return codes.grid.levels <= 16 and block_of(codes) is not None


def block_of(codes: WeightCodes) -> int | None:
    """Columns of MatMulNBits' blocks: a group of the scales', else the most that divide a row. None
    where it has no such block."""
    width = codes.codes.shape[1]
    group = width // codes.half_widths.shape[-1]
    if group < width:
        return group if group in BLOCKS else None
    return next((size for size in BLOCKS if width % size == 0), None)


def _has_row_scales(codes: WeightCodes) -> bool:
    return codes.half_widths.shape[-1] == 1


def _levels(codes: WeightCodes) -> int:
    assert isinstance(codes.grid, UniformGrid)
    return codes.grid.levels


def row_units(codes: WeightCodes) -> Tensor:
    """What one integer of each row stands for, fp32 ``[N]``."""
    units = (codes.half_widths.float() / span(codes.grid)).reshape(-1)
    return units.expand(codes.codes.shape[0]).contiguous()


def integers_of(codes: WeightCodes) -> tuple[Tensor, int, int]:
    """int16 ``[N, K]`` from -128 to 127, with the factor and the rest that make them the grid's
    integers."""
    if isinstance(codes.grid, UniformGrid) and codes.grid.levels > 128:
        return codes.codes.short() - codes.grid.levels // 2, 2, 1 - codes.grid.levels % 2
    integers = codes.grid.decode(codes.codes.float(), torch.tensor(float(span(codes.grid))))
    if codes.kept is not None:
        integers = torch.where(codes.kept, integers, 0.0)
    return integers.short(), 1, 0


def stored_values(folder: Path, model: onnx.ModelProto, name: str) -> tuple[Tensor, bool]:
    """What the files hold of a layer's weight: fp32 ``[N, K]``, and whether it is folded."""
    weight = read_tensor(model, folder, f"{name}.weight")
    if weight is not None:
        return weight.t().float(), True
    codes = read_tensor(model, folder, f"{name}.codes")
    assert codes is not None
    node = next(node for node in model.graph.node if f"{name}.codes" in node.input)
    if node.op_type == "MatMulNBits":
        return _unpacked(folder, model, name, node, codes), False
    zero, factor, rest = (
        int(_or(read_tensor(model, folder, f"{name}.{what}"), default))
        for what, default in (("zero", 0), ("factor", 1), ("rest", 0))
    )
    units = read_tensor(model, folder, f"{name}.units")
    assert units is not None
    integers: Tensor = factor * (codes.int() - zero) + rest
    return (integers * units).t(), False


def _or(value: Tensor | None, default: int) -> Tensor | int:
    return default if value is None else value


def _unpacked(
    folder: Path, model: onnx.ModelProto, name: str, node: onnx.NodeProto, packed: Tensor
) -> Tensor:
    bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
    codes = unpack_bits(packed.flatten(1), bits).int() - 2 ** (bits - 1)
    steps = read_tensor(model, folder, f"{name}.steps")
    assert steps is not None
    blocks = codes.view(*packed.shape[:2], -1)
    values: Tensor = (blocks * steps.view(*packed.shape[:2], 1)).flatten(1)
    half_steps = read_tensor(model, folder, f"{name}.half_steps")
    if half_steps is None:
        return values
    return values + half_steps.t().repeat_interleave(values.shape[1] // len(half_steps), 1)
