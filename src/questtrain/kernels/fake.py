"""Shapes and dtypes of the ops' results, for tracing; the same checks as the reference's."""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels import (
    cross_entropy,
    reference_adamw,
    reference_attention,
    reference_fp8,
    reference_linear,
    reference_packed_weight,
    reference_training,
)
from questtrain.kernels.checks import check_format, check_norm, check_operand, check_swiglu
from questtrain.kernels.formats import container_bits
from questtrain.kernels.reference_quantize import Five, Four


def hadamard_quantize(
    x: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    check_operand("hadamard_quantize", "x", x)
    return _quantized("hadamard_quantize", x, x.shape[1], levels, alpha, block, packed, trust)


def rmsnorm_quantize(
    x: Tensor,
    weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    block: int,
    packed: bool,
    trust: float | None = None,
) -> Four:
    check_norm("rmsnorm_quantize", x, weight)
    return _quantized("rmsnorm_quantize", x, x.shape[1], levels, alpha, block, packed, trust)


def add_rmsnorm_quantize(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    block: int,
    packed: bool,
    trust: float | None = None,
) -> Five:
    op = "add_rmsnorm_quantize"
    check_norm(op, x, weight, residual)
    quantized = _quantized(op, x, x.shape[1], levels, alpha, block, packed, trust)
    return torch.empty_like(x), *quantized


def swiglu_quantize(
    gate_up: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    width = check_swiglu("swiglu_quantize", gate_up)
    return _quantized("swiglu_quantize", gate_up, width, levels, alpha, block, packed, trust)


def int8_linear(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    reference_linear.check_int8("int8_linear", x, x_scales, weight, weight_scales, dtype)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def int8_linear_tile(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype,
    tile: int,
) -> Tensor:
    reference_linear.check_int8("int8_linear_tile", x, x_scales, weight, weight_scales, dtype)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def int8_offset_linear(
    x: Tensor,
    x_scales: Tensor,
    x_sums: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_sums: Tensor,
    x_levels: int,
    weight_levels: int,
    dtype: torch.dtype,
) -> Tensor:
    sums, levels = (x_sums, weight_sums), (x_levels, weight_levels)
    reference_linear.check_offset(x, x_scales, weight, weight_scales, sums, levels, dtype)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def packed_linear(
    x: Tensor,
    x_scales: Tensor,
    x_sums: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    levels: int,
    dtype: torch.dtype,
) -> Tensor:
    arguments = (x, x_scales, x_sums, weight, weight_scales, levels, dtype)
    reference_linear.check_packed("packed_linear", *arguments)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def packed_weight_linear(
    x: Tensor, weight: Tensor, weight_scales: Tensor, levels: int, block: int
) -> Tensor:
    reference_packed_weight.check_packed_weight(x, weight, weight_scales, levels, block)
    return x.new_empty((x.shape[0], weight.shape[0]))


def int4_linear(
    x: Tensor,
    x_scales: Tensor,
    x_sums: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_sums: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    arguments = (x, x_scales, x_sums, weight, weight_scales, weight_sums, dtype)
    reference_linear.check_int4("int4_linear", *arguments)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def int4_sparse_linear(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    metadata: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    arguments = (x, x_scales, weight, metadata, weight_scales, dtype)
    reference_linear.check_sparse("int4_sparse_linear", *arguments)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def hadamard_quantize_linear(
    x: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    check_operand("hadamard_quantize_linear", "x", x)
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    reference_linear.check_fused("hadamard_quantize_linear", x, x.shape[1], *rest)
    return x.new_empty((x.shape[0], weight.shape[0]))


def rmsnorm_quantize_linear(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    check_norm("rmsnorm_quantize_linear", x, norm_weight, name="norm_weight")
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    reference_linear.check_fused("rmsnorm_quantize_linear", x, x.shape[1], *rest)
    return x.new_empty((x.shape[0], weight.shape[0]))


def add_rmsnorm_quantize_linear(
    x: Tensor,
    residual: Tensor,
    norm_weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> tuple[Tensor, Tensor]:
    check_norm("add_rmsnorm_quantize_linear", x, norm_weight, residual, "norm_weight")
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    reference_linear.check_fused("add_rmsnorm_quantize_linear", x, x.shape[1], *rest)
    return torch.empty_like(x), x.new_empty((x.shape[0], weight.shape[0]))


def swiglu_quantize_linear(
    gate_up: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    width = check_swiglu("swiglu_quantize_linear", gate_up)
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    reference_linear.check_fused("swiglu_quantize_linear", gate_up, width, *rest)
    return gate_up.new_empty((gate_up.shape[0], weight.shape[0]))


def unpack(packed: Tensor, levels: int) -> Tensor:
    width = reference_linear.check_unpack(packed, levels)
    return packed.new_empty((packed.shape[0], width), dtype=torch.int8)


def dequantize(codes: Tensor, scales: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    width = reference_training.check_dequantize(codes, scales, levels, dtype)
    return codes.new_empty((codes.shape[0], width), dtype=dtype)


def add_weight_gradient_(
    total: Tensor, grad: Tensor, x: Tensor, first: bool, unit: Tensor | None = None
) -> None:
    reference_training.check_weight_gradient(total, grad, x, unit)


def hadamard_backward(grad: Tensor, mask: Tensor, block: int) -> Tensor:
    width = grad.shape[-1]
    reference_training.check_backward("hadamard_backward", grad, mask, width, block)
    return torch.empty_like(grad)


def rmsnorm_backward(
    grad: Tensor,
    mask: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    block: int,
    residual_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    reference_training.check_rmsnorm_backward(grad, mask, x, weight, block, residual_grad)
    return torch.empty_like(x), x.new_empty((x.shape[1],), dtype=torch.float32)


def swiglu_backward(grad: Tensor, mask: Tensor, gate_up: Tensor, block: int) -> Tensor:
    reference_training.check_swiglu_backward(grad, mask, gate_up, block)
    return torch.empty_like(gate_up)


def fp8_gradients(
    grad: Tensor, weight_scales: Tensor, x_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    reference_fp8.check_fp8_gradients(grad, weight_scales, x_scales)
    rows, width = grad.shape
    unit_rows, unit_columns = (grad.new_empty((1,), dtype=torch.float32) for _ in range(2))
    by_rows = grad.new_empty((rows, width), dtype=reference_fp8.E4M3)
    by_columns = grad.new_empty((width, rows), dtype=reference_fp8.E4M3)
    return by_rows, by_columns, unit_rows, unit_columns


def fp8_transpose(codes: Tensor, levels: int) -> Tensor:
    width = reference_fp8.check_fp8_transpose(codes, levels)
    return codes.new_empty((width, codes.shape[0]), dtype=reference_fp8.E4M3)


def adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    divisor: Tensor | None,
    *hyperparameters: float,
) -> None:
    reference_adamw.check_adamw(weights, grads, means, squares, steps, divisor)


def cross_entropy_(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    cross_entropy.check_cross_entropy(logits, targets)
    return logits.new_empty((logits.shape[0],), dtype=torch.float32)


def rotary_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    reference_attention.check_rotary("rotary_", qkv, cos, sin, heads)


def join_rotary(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    reference_attention.check_join("join_rotary", q, k, v, cos, sin)
    return q.new_empty((*q.shape[:2], 3 * q.shape[2] * q.shape[3]))


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    arguments = (q, k, v, keys, values, position, cos, sin)
    reference_attention.check_decode("decode_attention", *arguments)
    return q.new_empty(tuple(q.shape))


def _quantized(
    op: str,
    x: Tensor,
    width: int,
    levels: int,
    alpha: float,
    block: int,
    packed: bool,
    trust: float | None,
) -> Four:
    check_format(op, width, levels, alpha, block, packed)
    rows = x.shape[0]
    columns = width * container_bits(levels) // 8 if packed else width
    return (
        x.new_empty((rows, columns), dtype=torch.uint8 if packed else torch.int8),
        x.new_empty((rows,), dtype=torch.float32),
        x.new_empty((rows,), dtype=torch.int32),
        x.new_empty((rows, 0 if trust is None else width // 8), dtype=torch.uint8),
    )
