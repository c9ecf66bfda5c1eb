"""The products of a block by kind: of integers, or of values that need not be integers.

`stacked_matrix` chooses. `QuantizedMatrix` is of operands that both are on uniform grids with a
Gaussian scale, which the kernels quantize and multiply. `DenseMatrix` is of all the others whose
scales are not learned: the values of the weight are made once a step, those of an activation once
for all layers that share it, each by its own quantizer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.errors import UserError
from questtrain.kernels import hadamard_quantize, pack_bits
from questtrain.kernels.autograd import (
    Rounding,
    StepFormat,
    StepWeight,
    through_rounding,
    train_add_rmsnorm_linear,
    train_dense_linear,
    train_hadamard_linear,
    train_swiglu_linear,
)
from questtrain.kernels.elementwise import swiglu
from questtrain.kernels.formats import BLOCKS, FP8_MULTIPLE, MAX_PACKED_LEVELS, Quantized
from questtrain.kernels.ops.backward import hadamard_backward
from questtrain.kernels.ops.codes import dequantize
from questtrain.kernels.ops.fp8 import fp8_transpose
from questtrain.quant.estimator import OuterTrust
from questtrain.quant.linear import QuantLinear
from questtrain.quant.packing import grid_format, has_kernel_sizes, rotation_block, row_format
from questtrain.quant.quantizer import Quantizer, Unquantized
from questtrain.quant.scale import GaussianScale
from questtrain.quant.step_weights import Matrix


class DenseMatrix(Matrix):
    """The values of the weight in the products' dtype, times those of the activation."""

    values: Tensor
    mask: Tensor | None

    def __init__(self, linears: Sequence[QuantLinear], dtype: torch.dtype) -> None:
        super().__init__(linears, dtype)
        self.weight_quantizer = linears[0].weight_quantizer
        self.activation_quantizer = linears[0].activation_quantizer
        self.block = _block_of(self.weight_quantizer)
        quantizer = self.weight_quantizer
        self.rotates_back = isinstance(quantizer, Quantizer) and quantizer.rotate_back

    def derive(self, stacked: Tensor) -> None:
        values, mask = self._rounded(stacked)
        self._replace_buffers(values=values.to(self.dtype), mask=mask)

    def _rounded(self, stacked: Tensor) -> tuple[Tensor, Tensor | None]:
        """The values, and M as bits: of no columns where all of a rotated weight passes, None where
        the values are the weight."""
        quantizer = self.weight_quantizer
        all_pass = stacked.new_empty((stacked.shape[0], 0), dtype=torch.uint8)
        if not isinstance(quantizer, Quantizer):
            return quantizer(stacked), all_pass if self.block > 1 else None
        operand = _on_the_grid(quantizer)
        if operand is None:
            mask = pack_bits(quantizer.mask(stacked).view(torch.uint8), 1)
            return quantizer(stacked), mask
        form = operand.form
        quantized = hadamard_quantize(stacked, *form, trust=operand.trust)
        values = dequantize(*quantized[:2], form.levels, torch.float32)
        if self.rotates_back:
            values = hadamard_backward(values, all_pass, form.block)
        return values, quantized.mask

    def gradient_of(self, total: Tensor) -> Tensor:
        rounding = self._rounding()
        return total if rounding is None else through_rounding(total, rounding)

    def plain(self, x_MK: Tensor) -> Tensor:
        fed = self.activation_quantizer(x_MK)
        return train_dense_linear(fed, self.values, self.gradient, self._rounding())

    def after_norm(self, x_MK: Tensor, added_MK: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        hidden = x_MK + added_MK
        normalized = F.rms_norm(hidden.float(), norm.normalized_shape, norm.weight, norm.eps)
        return hidden, self.plain(normalized.to(self.dtype))

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        return self.plain(swiglu(gate_up))

    def _rounding(self) -> Rounding | None:
        return None if self.mask is None else Rounding(self.mask, self.block, self.rotates_back)


class QuantizedMatrix(Matrix):
    """Codes, and what the backward multiplies: their values, or with ``backward`` fp8 the codes in
    FP8.

    ``save`` is what a step keeps of quantized operands for its backward: ``codes``, a byte a value,
    or ``packed``, their own few bits; then the weight's values are made anew in the backward, too.
    """

    codes: Tensor
    scales: Tensor
    sums: Tensor
    mask: Tensor
    values: Tensor | None

    def __init__(
        self, linears: Sequence[QuantLinear], dtype: torch.dtype, save: str, backward: str
    ) -> None:
        super().__init__(linears, dtype)
        weight = operand_of(linears[0].weight_quantizer)
        activation = operand_of(linears[0].activation_quantizer)
        assert weight is not None
        assert activation is not None
        self.weight_operand = weight
        self.fp8 = backward == "fp8"
        if self.fp8:
            _check_fp8(linears, max(weight.form.levels, activation.form.levels))
        self.packed = save == "packed"
        packs = self.packed and activation.form.levels <= MAX_PACKED_LEVELS
        self.operand = activation._replace(packed=packs)

    def derive(self, stacked: Tensor) -> None:
        form, trust = self.weight_operand.form, self.weight_operand.trust
        quantized = hadamard_quantize(stacked, *form, trust=trust)
        values = None if self.packed else self._multiplied(quantized)
        self._replace_buffers(**quantized._asdict(), values=values)

    def _multiplied(self, quantized: Quantized) -> Tensor:
        """By the backward."""
        levels = self.weight_operand.form.levels
        if self.fp8:
            return fp8_transpose(quantized.codes, levels)
        return dequantize(*quantized[:2], levels, self.dtype)

    def gradient_of(self, total: Tensor) -> Tensor:
        block = self.weight_operand.form.block
        return hadamard_backward(total, self.mask, block)

    def plain(self, x_MK: Tensor) -> Tensor:
        return train_hadamard_linear(x_MK, self.operand, self._weight(), self.gradient)

    def after_norm(self, x_MK: Tensor, added_MK: Tensor, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        assert norm.eps is not None
        return train_add_rmsnorm_linear(
            x_MK, added_MK, norm.weight, norm.eps, self.operand, self._weight(), self.gradient
        )

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        return train_swiglu_linear(gate_up, self.operand, self._weight(), self.gradient)

    def _weight(self) -> StepWeight:
        form = self.weight_operand.form
        tensors = (self.codes, self.scales, self.sums, self.mask, self.values)
        return StepWeight(*tensors, form.levels, form.block, self.fp8)


def operand_of(quantizer: nn.Module) -> StepFormat | None:
    """How the kernels quantize such an operand, None if they do not."""
    return None if row_format(quantizer) is None else _on_the_grid(quantizer)


def stacked_matrix(
    linears: Sequence[nn.Module], dtype: torch.dtype, save: str, backward: str = "exact"
) -> Matrix | None:
    """One matrix of layers that share their input, None where they cannot be one.

    UserError where they can, but not with such a ``backward``.
    """
    layers = [linear for linear in linears if isinstance(linear, QuantLinear)]
    if len(layers) < len(linears) or any(layer.bias is not None for layer in layers):
        return None
    if not all(has_kernel_sizes(layer) for layer in layers):
        return None
    pairs = [(layer.weight_quantizer, layer.activation_quantizer) for layer in layers]
    kinds = {tuple(map(_kind, pair)) for pair in pairs}
    if len(kinds) > 1 or None in kinds.pop():
        return None
    if all(operand_of(quantizer) is not None for quantizer in pairs[0]):
        return QuantizedMatrix(layers, dtype, save, backward)
    if backward == "fp8" and layers[0].bits.quantized:
        return None
    return DenseMatrix(layers, dtype)


def _check_fp8(linears: Sequence[QuantLinear], levels: int) -> None:
    rows, width = sum(linear.out_features for linear in linears), linears[0].in_features
    if levels > MAX_PACKED_LEVELS:
        raise UserError(
            f"train.backward=fp8 multiplies integers of up to {MAX_PACKED_LEVELS} levels, which FP8"
            f" holds exactly, and bits={linears[0].bits} has {levels}: choose at most 4 bits, or"
            " train.backward=exact."
        )
    if rows % FP8_MULTIPLE or width % FP8_MULTIPLE:
        raise UserError(
            f"train.backward=fp8 needs sizes that are multiples of {FP8_MULTIPLE}, and a product"
            f" of the blocks is {rows} × {width}: choose train.backward=exact."
        )


def _on_the_grid(quantizer: nn.Module) -> StepFormat | None:
    """`operand_of` a quantizer that may rotate back."""
    form = grid_format(quantizer) if isinstance(quantizer, Quantizer) else None
    if form is None or not isinstance(quantizer.estimator, OuterTrust):
        return None
    return StepFormat(form, quantizer.estimator.outer_trust_scale)


def _kind(quantizer: nn.Module) -> Hashable | None:
    """What tells two quantizers apart, None for one with a state of its own or another block."""
    block = _block_of(quantizer)
    if block not in BLOCKS:
        return None
    if isinstance(quantizer, Unquantized):
        return block, None
    if not isinstance(quantizer, Quantizer) or not isinstance(quantizer.scale, GaussianScale):
        return None
    if quantizer.offset is not None:
        return None
    pieces = (quantizer.grid, quantizer.estimator, quantizer.sparsity, quantizer.rotate_back)
    return block, quantizer.scale.alpha, *pieces


def _block_of(quantizer: nn.Module) -> int:
    """Of its rotation: 1 without one, 0 for another kind of rotation."""
    rotation = getattr(quantizer, "rotation", None)
    return 1 if rotation is None else rotation_block(rotation) or 0
