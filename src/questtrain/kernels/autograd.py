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
(`questtrain.kernels.ops.fp8`): another estimator of the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.kernels.dispatch import (
    add_rmsnorm_linear,
    hadamard_linear,
    quantized_linear,
    swiglu_linear,
)
from questtrain.kernels.formats import E4M3, Int8Matrix, Quantized, RowFormat
from questtrain.kernels.ops.backward import (
    all_pass,
    hadamard_backward,
    rmsnorm_backward,
    swiglu_backward,
)
from questtrain.kernels.ops.codes import dequantize, unpack
from questtrain.kernels.ops.fp8 import fp8_gradients, fp8_product, fp8_transpose
from questtrain.kernels.ops.quantize import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    swiglu_quantize,
)
from questtrain.kernels.ops.weight_gradient import add_weight_gradient_, weight_gradient


class StepFormat(NamedTuple):
    """How a step quantizes an activation and what is kept of it: ``trust`` is the outer trust
    scale, ``packed`` keeps codes of few bits instead of a byte each."""

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


class Rounding(NamedTuple):
    """How a weight became the values that 16-bit activations are multiplied with: quantized in
    blocks of ``block``, with ``mask [N, K/8]``, and, where it ``rotates_back``, rotated back."""

    mask: Tensor
    block: int
    rotates_back: bool


def train_hadamard_linear(
    x: Tensor, step: StepFormat, weight: StepWeight, gradient: Gradient
) -> Tensor:
    """``Q(x)·Q(w)ᵀ``: ``x [M, K]`` → ``[M, N]`` in x's dtype."""
    if not torch.is_grad_enabled():
        return hadamard_linear(x, step.form, _matrix(weight))
    y: Tensor = _HadamardLinear.apply(x, step, *weight, *gradient)  # type: ignore[no-untyped-call]
    return y


def train_add_rmsnorm_linear(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    step: StepFormat,
    weight: StepWeight,
    gradient: Gradient,
) -> tuple[Tensor, Tensor]:
    """``x + residual``, and ``Q(RMSNorm(x + residual))·Q(w)ᵀ``."""
    if not torch.is_grad_enabled():
        return add_rmsnorm_linear(x, residual, norm_weight, eps, step.form, _matrix(weight))
    hidden, y = _AddRMSNormLinear.apply(  # type: ignore[no-untyped-call]
        x, residual, norm_weight, eps, step, *weight, *gradient
    )
    return hidden, y


def train_swiglu_linear(
    gate_up: Tensor, step: StepFormat, weight: StepWeight, gradient: Gradient
) -> Tensor:
    """``Q(silu(gate)·up)·Q(w)ᵀ``; ``gate_up [M, 2K]``."""
    if not torch.is_grad_enabled():
        return swiglu_linear(gate_up, step.form, _matrix(weight))
    y: Tensor = _SwigluLinear.apply(  # type: ignore[no-untyped-call]
        gate_up, step, *weight, *gradient
    )
    return y


def train_dense_linear(
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
        grad = hadamard_backward(grad, all_pass(mask), block)
    return hadamard_backward(grad, mask, block)


# ---- `torch.autograd.Function.apply` looks for tensors in no tuple: the fields of a `StepWeight`
# and the parts of a `Gradient` are its last arguments


class _HadamardLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: StepFormat, *weight_and_gradient: Any) -> Tensor:
        fed = hadamard_quantize(x, *step.form, step.packed, step.trust)
        return _forward(ctx, (), fed, step, weight_and_gradient, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        mask, grad_values, rest = _backward(ctx, grad_y, *ctx.saved_tensors)
        return hadamard_backward(grad_values, mask, ctx.form.block), None, *rest


class _AddRMSNormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        norm_weight: Tensor,
        eps: float,
        step: StepFormat,
        *weight_and_gradient: Any,
    ) -> tuple[Tensor, Tensor]:
        hidden, fed = add_rmsnorm_quantize(
            x, residual, norm_weight, eps, *step.form, step.packed, step.trust
        )
        ctx.eps = eps
        kept = (hidden, norm_weight)
        return hidden, _forward(ctx, kept, fed, step, weight_and_gradient, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor, grad_y: Tensor) -> tuple[Any, ...]:
        hidden, norm_weight, *saved = ctx.saved_tensors
        mask, grad_values, rest = _backward(ctx, grad_y, *saved)
        block, added = ctx.form.block, grad_hidden.contiguous()
        grad_x, grad_norm = rmsnorm_backward(
            grad_values, mask, hidden, norm_weight, ctx.eps, block, added
        )
        return grad_x, grad_x, grad_norm.to(norm_weight.dtype), None, None, *rest


class _SwigluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, step: StepFormat, *weight_and_gradient: Any) -> Tensor:
        fed = swiglu_quantize(gate_up, *step.form, step.packed, step.trust)
        return _forward(ctx, (gate_up,), fed, step, weight_and_gradient, gate_up.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        gate_up, *saved = ctx.saved_tensors
        mask, grad_values, rest = _backward(ctx, grad_y, *saved)
        return swiglu_backward(grad_values, mask, gate_up, ctx.form.block), None, *rest


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
        ctx.save_for_backward(x, values, mask, gradient[0])
        ctx.target, ctx.rounded = _target(gradient), (block, rotates_back)
        return F.linear(x, values)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
        x, values, mask, total = ctx.saved_tensors
        grad_y = grad_y.contiguous()
        rounding = None if mask is None else Rounding(mask, *ctx.rounded)
        grads = _weight_gradient(total, ctx.target, rounding, grad_y, x)
        return grad_y @ values, None, None, None, None, *grads


class _Target(NamedTuple):
    """Where a gradient goes, without the tensors: the parameters' ``rows``, or, of a sum, whether
    this is its ``first`` part."""

    rows: tuple[int, ...]
    first: bool | None


def _target(gradient: Sequence[Any]) -> _Target:
    """Of a flattened `Gradient`."""
    if isinstance(gradient[-1], bool):
        return _Target((), gradient[-1])
    return _Target(tuple(parameter.shape[0] for parameter in gradient), None)


def _matrix(weight: StepWeight) -> Int8Matrix:
    return Int8Matrix(weight.codes, weight.scales, weight.sums, weight.levels)


def _forward(
    ctx: Any,
    kept: tuple[Tensor, ...],
    fed: Quantized,
    step: StepFormat,
    weight_and_gradient: Sequence[Any],
    dtype: torch.dtype,
) -> Tensor:
    """The product; saves ``kept`` and what `_backward` takes: x̂, the first tensor of the gradient's
    target, the weight's mask, and what is multiplied or made into that (FP8 needs the scales
    besides)."""
    count = len(StepWeight._fields)
    weight, gradient = StepWeight(*weight_and_gradient[:count]), weight_and_gradient[count:]
    values = weight.codes if weight.values is None else weight.values
    scales = (weight.scales,) if weight.fp8 or weight.values is None else ()
    operand = (fed.codes, fed.scales, fed.mask)
    ctx.save_for_backward(*kept, *operand, gradient[0], weight.mask, values, *scales)
    ctx.form, ctx.target = step.form, _target(gradient)
    ctx.levels, ctx.block, ctx.fp8 = weight.levels, weight.block, weight.fp8
    if step.packed:
        fed = fed._replace(codes=unpack(fed.codes, step.form.levels))
    return quantized_linear(fed, _matrix(weight), dtype, step.form.levels)


def _backward(
    ctx: Any,
    grad_y: Tensor,
    codes: Tensor,
    scales: Tensor,
    mask: Tensor,
    total: Tensor,
    weight_mask: Tensor,
    *weight: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    """The mask of x̂, the gradient of x̂, unmasked and in its own space, and those of a flattened
    weight and its gradient's target."""
    grad_y = grad_y.contiguous()
    rounding = Rounding(weight_mask, ctx.block, False)
    if ctx.fp8:
        grad_values, *operands = _fp8_backward(ctx, grad_y, codes, scales, *weight)
        grads = _weight_gradient(total, ctx.target, rounding, *operands)
    else:
        values = weight[0]
        if len(weight) > 1:
            values = dequantize(values, weight[1], ctx.levels, grad_y.dtype)
        fed = dequantize(codes, scales, ctx.form.levels, grad_y.dtype)
        grads = _weight_gradient(total, ctx.target, rounding, grad_y, fed)
        grad_values = grad_y @ values
    return mask, grad_values, (*(None,) * len(StepWeight._fields), *grads)


def _fp8_backward(
    ctx: Any,
    grad_y: Tensor,
    codes: Tensor,
    scales: Tensor,
    weight_codes: Tensor,
    weight_scales: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient of x̂ by an FP8 product, and the operands and the unit of the weight's; the
    weight's codes are transposed already or not."""
    rows, columns, unit_rows, unit_columns = fp8_gradients(grad_y, weight_scales, scales)
    if weight_codes.dtype != E4M3:
        weight_codes = fp8_transpose(weight_codes, ctx.levels)
    fed = fp8_transpose(codes, ctx.form.levels)
    grad_values = fp8_product(rows, weight_codes.t(), unit_rows, grad_y.dtype)
    return grad_values, columns.t(), fed.t(), unit_columns


def _weight_gradient(
    total: Tensor,
    target: _Target,
    rounding: Rounding | None,
    grad_y: Tensor,
    fed: Tensor,
    unit: Tensor | None = None,
) -> Sequence[Tensor | None]:
    """For each of a flattened `Gradient`, of the operands as `add_weight_gradient_` takes them."""
    if target.first is not None:
        add_weight_gradient_(total, grad_y, fed, target.first, unit)
        return None, None
    grad_weight = weight_gradient(grad_y, fed, unit)
    if rounding is not None:
        grad_weight = through_rounding(grad_weight, rounding)
    return torch.split(grad_weight, list(target.rows))
