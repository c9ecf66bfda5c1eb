"""From a trained `QuantLinear` to a layer for use: packed codes instead of a float weight.

The codes are the ones that the layer's own quantizer gives, so that a packed layer is the trained
one. Where both operands are on uniform grids with a scale a row, the activation's Gaussian, and in
the same space, the product is one of integers and the kernels serve it (`PackedLinear`). Every
other format keeps its weight packed and multiplies the values (`PackedWeightLinear`): the same
outputs, less memory.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.errors import UserError
from questtrain.kernels import RowFormat, hadamard_linear, pack_bits
from questtrain.kernels.formats import (
    BLOCKS,
    INTEGER_LEVELS,
    LEVELS,
    MAX_WIDTH,
    Quantized,
    int8_codes,
)
from questtrain.quant.grid import UniformGrid
from questtrain.quant.linear import QuantLinear
from questtrain.quant.packed_weight import CodedWeight, IntegerWeight
from questtrain.quant.quantizer import QuantizedTensor, Quantizer, Unquantized
from questtrain.quant.rotation import HadamardRotation, NoRotation
from questtrain.quant.scale import GaussianScale, RoundedScale


def row_format(
    quantizer: nn.Module, may_rotate_back: bool = False, may_round_scale: bool = False
) -> RowFormat | None:
    """The kernels' format of an operand's quantizer, None for a quantizer that they do not have,
    for one that rotates back what it has quantized, unless it ``may_rotate_back``, and for one that
    rounds its scales, which the kernels do not, unless it ``may_round_scale``."""
    if not isinstance(quantizer, Quantizer) or (quantizer.rotate_back and not may_rotate_back):
        return None
    if any(each is not None for each in (quantizer.sparsity, quantizer.offset, quantizer.group)):
        return None
    grid, scale = quantizer.grid, quantizer.scale
    if not isinstance(grid, UniformGrid) or grid.levels not in LEVELS:
        return None
    block = rotation_block(quantizer.rotation)
    if isinstance(scale, RoundedScale) and may_round_scale:
        scale = scale.scale
    if not isinstance(scale, GaussianScale) or block not in BLOCKS:
        return None
    return RowFormat(grid.levels, scale.alpha, block)


def quantized_rows(quantizer: Quantizer, x: Tensor) -> Quantized:
    """What `hadamard_quantize` makes of rows ``x [N, K]``, with int8 codes and the mask, by a
    quantizer whose `row_format` is the kernels' but for rounded scales."""
    grid, stored = quantizer.grid, quantizer.quantize(x)
    assert isinstance(grid, UniformGrid)
    codes = int8_codes(stored.codes, grid.levels)
    mask = pack_bits(quantizer.mask(x).view(torch.uint8), 1)
    units = (stored.scale / (grid.levels - 1)).squeeze(1)
    return Quantized(codes, units, codes.sum(1, dtype=torch.int32), mask)


def has_kernel_sizes(layer: nn.Linear) -> bool:
    """Whether the quantizers take such rows and the integer products so many outputs."""
    return layer.in_features % 32 == 0 and layer.out_features % 8 == 0


class PackedLinear(nn.Module):
    """``x [..., K] → [..., N]`` in x's dtype: quantizes the rows and multiplies integers."""

    bias: Tensor | None

    def __init__(
        self, weight: IntegerWeight, activation: RowFormat, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.weight = weight
        self.activation = activation
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = hadamard_linear(rows, self.activation, self.weight.matrix(rows.shape[0]))
        if self.bias is not None:
            y = y + self.bias.to(x.dtype)
        return y.reshape(*x.shape[:-1], self.weight.out_features)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


class PackedWeightLinear(nn.Module):
    """``x [..., K] → [..., N]`` with a weight that is unpacked at each call: a few rows at a time
    where the kernels multiply it (`CodedWeight.multiplies`), else into a matrix of its values.

    ``back`` is the rotation that the values still need, ``block`` its block: 1 without one, None
    where it is no Hadamard transform."""

    bias: Tensor | None

    def __init__(
        self,
        weight: CodedWeight,
        back: nn.Module | None,
        activation_quantizer: nn.Module,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.back = back
        self.block = 1 if back is None else rotation_block(back)
        self.activation_quantizer = activation_quantizer
        self.register_buffer("bias", bias)

    def multiplies_as_stored(self, dtype: torch.dtype) -> bool:
        """Whether activations of this dtype are multiplied without making the weight's values."""
        x = self.weight.codes.new_empty((1, self.weight.in_features), dtype=dtype)
        return self.block is not None and self.weight.multiplies(x, self.block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation_quantizer(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if self.block is not None and self.weight.multiplies(x, self.block):
            y = self.weight.product(x.reshape(-1, x.shape[-1]).contiguous(), self.block)
            y = y if bias is None else y + bias
            return y.reshape(*x.shape[:-1], y.shape[-1])
        values = self.weight.values()
        if self.back is not None:
            values = self.back(values)
        return F.linear(x, values.to(x.dtype), bias)


@torch.no_grad()
def pack_linear(layer: QuantLinear, name: str = "layer") -> PackedLinear | PackedWeightLinear:
    """The packed form of a trained layer; ``name`` is what an error calls it.

    Raises UserError for a layer whose weight is not quantized, or no longer holds what its
    quantizer needs.
    """
    quantizer = layer.weight_quantizer
    if not isinstance(quantizer, Quantizer):
        raise UserError(_nothing_to_pack(layer, name))
    return packed_form(layer, quantizer.quantize(layer.weight))


def packed_form(layer: QuantLinear, stored: QuantizedTensor) -> PackedLinear | PackedWeightLinear:
    """The same of a layer whose weight is quantized already."""
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, Quantizer)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    activation = row_format(layer.activation_quantizer)
    if activation is not None and _has_integer_product(layer, quantizer):
        assert isinstance(quantizer.grid, UniformGrid)
        return PackedLinear(IntegerWeight.of(stored, quantizer.grid), activation, bias)
    back, activation_quantizer = copy.deepcopy((quantizer.rotation, layer.activation_quantizer))
    weight = CodedWeight(stored, quantizer.grid, quantizer.unit_dtype)
    return PackedWeightLinear(
        weight, back if quantizer.rotate_back else None, activation_quantizer, bias
    )


def _has_integer_product(layer: QuantLinear, quantizer: Quantizer) -> bool:
    """Whether the kernels multiply such a weight; whichever space it is in, the activation's
    format has shown to be in the same (`pair_rotations`). Codes of 256 levels have no 0 for what
    sparsity prunes."""
    return (
        isinstance(quantizer.grid, UniformGrid)
        and quantizer.grid.levels in (LEVELS if quantizer.sparsity is None else INTEGER_LEVELS)
        and not quantizer.rotate_back
        and quantizer.group is None
        and layer.weight.dtype != torch.float64
        and layer.in_features <= MAX_WIDTH
        and has_kernel_sizes(layer)
    )


def rotation_block(rotation: nn.Module) -> int | None:
    """1 without a rotation, None for one that is no Hadamard transform."""
    if isinstance(rotation, NoRotation):
        return 1
    return rotation.signs.shape[0] if isinstance(rotation, HadamardRotation) else None


def _nothing_to_pack(layer: QuantLinear, name: str) -> str:
    if layer.bits.weight.quantized and isinstance(layer.weight_quantizer, Unquantized):
        return (
            f"{name} ({layer.bits}) holds frozen values and no codes: pack a model before its"
            " weights are frozen; questtrain.load(run, packed=True) does."
        )
    return (
        f"{name} ({layer.bits}) has a 16-bit weight: there is nothing to pack. Weights of 1 to 8"
        " bits, fp4 and 2:4 sparse ones can be packed."
    )
