"""Linear layers with a backward, of operands that are quantized where they are made.

``y = Q(f(x))·Q(w)ᵀ`` with f the identity, RMSNorm of a sum, or SwiGLU. The forward's product is one
of integers. The backward's two products are of the operands' values, in the gradient's dtype; what
comes out is masked, rotated back and taken through f in one kernel (quest.md, "Backward"):

    grad_x = f'(M_x ⊙ (grad_y·ŵ)·H)        grad_w = (M_w ⊙ (grad_yᵀ·x̂))·H, in fp32

What the forward keeps of x̂ are its codes, scales and mask. The gradient of a weight goes to its
parameters; or, over several micro-batches, grad_yᵀ·x̂ is summed up by the products themselves, and
masked and rotated once for all (`GradientSum`). Activations are ``[M, K]``, weights ``[N, K]``, y
and its gradient ``[M, N]``. Where no gradients are wanted nothing is kept.

With `StepWeight.fp8` the backward's products are of FP8 operands, to which the gradient is rounded
(`questtrain.kernels.reference_fp8`): another estimator of the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.kernels import fused
from questtrain.kernels.dispatch import quantized_linear
from questtrain.kernels.formats import Int8Matrix, Quantized
from questtrain.kernels.fused import RowFormat
from questtrain.kernels.ops import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    swiglu_quantize,
    unpack,
)
from questtrain.kernels.reference_fp8 import E4M3, fp8_product
from questtrain.kernels.reference_training import weight_gradient

_ops = torch.ops.questtrain


class Operand(NamedTuple):
    """How an activation is quantized and what is kept of it: ``trust`` is the outer trust scale,
    ``packed`` keeps codes of few bits instead of a byte each."""

    form: RowFormat
    trust: float
    packed: bool = False


class GradientSum(NamedTuple):
    """Where grad_yᵀ·x̂ of several micro-batches is summed: ``total`` fp32 ``[N, K]``, which the
    ``first`` of them overwrites. Each backward has to come before the next forward."""

    total: Tensor
    first: bool


class StepWeight(NamedTuple):
    """A weight as one step uses it: int8 ``codes [N, K]``, ``scales [N]``, ``sums [N]``, ``mask
    [N, K/8]`` of ``levels`` levels, rotated in blocks of ``block``; ``values [N, K]`` in the dtype
    of the products, or, for an ``fp8`` backward, the codes in e4m3, transposed: ``[K, N]`` (None:
    made from the codes where they are needed)."""

    codes: Tensor
    scales: Tensor
    sums: Tensor
    mask: Tensor
    values: Tensor | None
    levels: int
    block: int
    fp8: bool = False


Gradient = Sequence[nn.Parameter] | GradientSum
"""Where the gradient of a weight goes: to the fp32 matrices that it was made of, one below the
other, or into a sum."""


def hadamard_linear(x: Tensor, operand: Operand, weight: StepWeight, gradient: Gradient) -> Tensor:
    """``Q(x)·Q(w)ᵀ``."""
    if not torch.is_grad_enabled():
        return fused.hadamard_linear(x, operand.form, _matrix(weight))
    y: Tensor = _HadamardLinear.apply(  # type: ignore[no-untyped-call]
        x, operand, *weight, *gradient
    )
    return y


def add_rmsnorm_linear(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    operand: Operand,
    weight: StepWeight,
    gradient: Gradient,
) -> tuple[Tensor, Tensor]:
    """``x + residual``, and ``Q(RMSNorm(x + residual))·Q(w)ᵀ``."""
    if not torch.is_grad_enabled():
        return fused.add_rmsnorm_linear(
            x, residual, norm_weight, eps, operand.form, _matrix(weight)
        )
    hidden, y = _AddRMSNormLinear.apply(  # type: ignore[no-untyped-call]
        x, residual, norm_weight, eps, operand, *weight, *gradient
    )
    return hidden, y


def swiglu_linear(
    gate_up: Tensor, operand: Operand, weight: StepWeight, gradient: Gradient
) -> Tensor:
    """``Q(silu(gate)·up)·Q(w)ᵀ``; ``gate_up [M, 2K]``."""
    if not torch.is_grad_enabled():
        return fused.swiglu_linear(gate_up, operand.form, _matrix(weight))
    y: Tensor = _SwigluLinear.apply(  # type: ignore[no-untyped-call]
        gate_up, operand, *weight, *gradient
    )
    return y


class Rounding(NamedTuple):
    """How a weight became the values that 16-bit activations are multiplied with: quantized in
    blocks of ``block``, with ``mask [N, K/8]``, and, where it ``rotates_back``, rotated back."""

    mask: Tensor
    block: int
    rotates_back: bool


def dense_linear(
    x: Tensor, values: Tensor, gradient: Gradient, rounding: Rounding | None = None
) -> Tensor:
    """``x·wᵀ`` of a weight's ``values`` in x's dtype, which are the weight itself or come of a
    ``rounding``; the gradient is fp32."""
    if not torch.is_grad_enabled():
        return F.linear(x, values)
    y: Tensor = _DenseLinear.apply(  # type: ignore[no-untyped-call]
        x, values, *(rounding or (None, 1, False)), *gradient
    )
    return y


def through_rounding(grad: Tensor, rounding: Rounding) -> Tensor:
    """The gradient of a weight from that of its values, both fp32 ``[N, K]``."""
    mask, block, rotates_back = rounding
    if rotates_back:
        grad = _ops.hadamard_backward(grad, mask.new_empty((mask.shape[0], 0)), block)
    through: Tensor = _ops.hadamard_backward(grad, mask, block)
    return through


class _HadamardLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operand: Operand, *weight_and_gradient: Any) -> Tensor:
        weight, gradient = _parts(weight_and_gradient)
        fed = hadamard_quantize(x, *operand.form, operand.packed, operand.trust)
        ctx.save_for_backward(*_kept(fed), *_backward_tensors(weight, gradient))
        ctx.plan = _plan(operand, weight, gradient)
        return _product(fed, operand, weight, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        codes, scales, mask, *weight = ctx.saved_tensors
        grad_values, grads = _linear_backward(grad_y, codes, scales, weight, ctx.plan)
        grad_x = _ops.hadamard_backward(grad_values, mask, ctx.plan.form.block)
        return grad_x, None, *(None,) * len(StepWeight._fields), *grads


class _AddRMSNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        eps: float,
        operand: Operand,
        *weight_and_gradient: Any,
    ) -> tuple[Tensor, Tensor]:
        weight, gradient = _parts(weight_and_gradient)
        hidden, fed = add_rmsnorm_quantize(
            x, residual, norm_weight, eps, *operand.form, operand.packed, operand.trust
        )
        ctx.save_for_backward(
            hidden, norm_weight, *_kept(fed), *_backward_tensors(weight, gradient)
        )
        ctx.plan, ctx.eps = _plan(operand, weight, gradient), eps
        return hidden, _product(fed, operand, weight, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor, grad_y: Tensor) -> tuple[Any, ...]:
        hidden, norm_weight, codes, scales, mask, *weight = ctx.saved_tensors
        grad_values, grads = _linear_backward(grad_y, codes, scales, weight, ctx.plan)
        grad_x, grad_norm = _ops.rmsnorm_backward(
            grad_values,
            mask,
            hidden,
            norm_weight,
            ctx.eps,
            ctx.plan.form.block,
            grad_hidden.contiguous(),
        )
        none = (None,) * (2 + len(StepWeight._fields))
        return grad_x, grad_x, grad_norm.to(norm_weight.dtype), *none, *grads


class _SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, operand: Operand, *weight_and_gradient: Any) -> Tensor:
        weight, gradient = _parts(weight_and_gradient)
        fed = swiglu_quantize(gate_up, *operand.form, operand.packed, operand.trust)
        ctx.save_for_backward(gate_up, *_kept(fed), *_backward_tensors(weight, gradient))
        ctx.plan = _plan(operand, weight, gradient)
        return _product(fed, operand, weight, gate_up.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        gate_up, codes, scales, mask, *weight = ctx.saved_tensors
        grad_values, grads = _linear_backward(grad_y, codes, scales, weight, ctx.plan)
        grad_gate_up = _ops.swiglu_backward(grad_values, mask, gate_up, ctx.plan.form.block)
        return grad_gate_up, None, *(None,) * len(StepWeight._fields), *grads


class _DenseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        mask: Tensor | None,
        block: int,
        rotates_back: bool,
        *gradient: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, values, mask, *gradient[:1])
        ctx.target, ctx.rounded = _target(gradient), (block, rotates_back)
        return F.linear(x, values)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        x, values, mask, total = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        rounding = None if mask is None else Rounding(mask, *ctx.rounded)
        grads = _weight_gradient(grad_y, x, total, ctx.target, rounding)
        return grad_y @ values, None, None, None, None, *grads


class _Target(NamedTuple):
    """Where a gradient goes, without the tensors: the parameters' ``rows``, or, of a sum, whether
    this is its ``first`` part."""

    rows: tuple[int, ...]
    first: bool | None


class _Plan(NamedTuple):
    """What a backward needs to know besides tensors."""

    form: RowFormat
    levels: int
    block: int
    fp8: bool
    target: _Target


def _plan(operand: Operand, weight: StepWeight, gradient: Sequence[Any]) -> _Plan:
    return _Plan(operand.form, weight.levels, weight.block, weight.fp8, _target(gradient))


def _target(gradient: Sequence[Any]) -> _Target:
    """Of a flattened `Gradient`."""
    if isinstance(gradient[-1], bool):
        return _Target((), gradient[-1])
    return _Target(tuple(parameter.shape[0] for parameter in gradient), None)


def _parts(weight_and_gradient: Sequence[Any]) -> tuple[StepWeight, Sequence[Any]]:
    """Apart again: `torch.autograd.Function.apply` looks for tensors in no tuple."""
    count = len(StepWeight._fields)
    return StepWeight(*weight_and_gradient[:count]), weight_and_gradient[count:]


def _kept(fed: Quantized) -> tuple[Tensor, Tensor, Tensor]:
    return fed.codes, fed.scales, fed.mask


def _backward_tensors(weight: StepWeight, gradient: Sequence[Any]) -> tuple[Tensor, ...]:
    """The first tensor of the gradient's target, the mask, and what is multiplied or made into
    that; FP8 needs the scales besides."""
    if weight.values is None:
        return gradient[0], weight.mask, weight.codes, weight.scales
    if weight.fp8:
        return gradient[0], weight.mask, weight.values, weight.scales
    return gradient[0], weight.mask, weight.values


def _product(fed: Quantized, operand: Operand, weight: StepWeight, dtype: torch.dtype) -> Tensor:
    levels = operand.form.levels
    if operand.packed:
        fed = fed._replace(codes=unpack(fed.codes, levels))
    return quantized_linear(fed, _matrix(weight), dtype, levels)


def _matrix(weight: StepWeight) -> Int8Matrix:
    return Int8Matrix(weight.codes, weight.scales, weight.sums, weight.levels)


def _linear_backward(
    grad_y: Tensor, codes: Tensor, scales: Tensor, weight: Sequence[Tensor], plan: _Plan
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The gradient of x̂, unmasked and in its own space, and those of the parameters."""
    total, mask, *rest = weight
    grad_y = grad_y.contiguous()
    if plan.fp8:
        return _fp8_backward(grad_y, codes, scales, weight, plan)
    values = rest[0] if len(rest) == 1 else _ops.dequantize(*rest, plan.levels, grad_y.dtype)
    fed = _ops.dequantize(codes, scales, plan.form.levels, grad_y.dtype)
    rounding = Rounding(mask, plan.block, False)
    grads = _weight_gradient(grad_y, fed, total, plan.target, rounding)
    return grad_y @ values, grads


def _weight_gradient(
    grad_y: Tensor, fed: Tensor, total: Tensor, target: _Target, rounding: Rounding | None
) -> Sequence[Tensor | None]:
    """For each of a flattened `Gradient`."""
    if target.first is not None:
        _ops.add_weight_gradient_(total, grad_y, fed, target.first)
        return None, None
    return _placed(weight_gradient(grad_y, fed), target, rounding)


def _fp8_backward(
    grad_y: Tensor, codes: Tensor, scales: Tensor, weight: Sequence[Tensor], plan: _Plan
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """`_linear_backward` by FP8 products; the weight's codes are transposed already or not."""
    total, mask, weight_codes, weight_scales = weight
    rows, columns, unit_rows, unit_columns = _ops.fp8_gradients(grad_y, weight_scales, scales)
    if weight_codes.dtype != E4M3:
        weight_codes = _ops.fp8_transpose(weight_codes, plan.levels)
    fed = _ops.fp8_transpose(codes, plan.form.levels)
    grad_values = fp8_product(rows, weight_codes.t(), unit_rows, grad_y.dtype)
    if plan.target.first is not None:
        operands = (columns.t(), fed.t(), plan.target.first, unit_columns)
        _ops.add_weight_gradient_(total, *operands)
        return grad_values, (None, None)
    product = fp8_product(columns, fed.t(), unit_columns, torch.float32)
    return grad_values, _placed(product, plan.target, Rounding(mask, plan.block, False))


def _placed(
    grad_weight: Tensor, target: _Target, rounding: Rounding | None
) -> Sequence[Tensor | None]:
    """For each of the parameters, from grad_yᵀ·x̂."""
    if rounding is not None:
        grad_weight = through_rounding(grad_weight, rounding)
    return torch.split(grad_weight, list(target.rows))
