"""Shapes and dtypes of the ops' results, for tracing; the same checks as the reference's."""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels import reference_linear
from questtrain.kernels.checks import FLOATING, check_format, check_matrix, check_vector
from questtrain.kernels.formats import container_bits
from questtrain.kernels.reference_quantize import Five, Four


def hadamard_quantize(
    x: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
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
    check_vector("rmsnorm_quantize", "weight", weight, x.shape[1], (torch.float32, x.dtype), x)
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
    check_matrix(op, "residual", residual, x.shape[0], x.shape[1], (x.dtype,), x)
    check_vector(op, "weight", weight, x.shape[1], (torch.float32, x.dtype), x)
    quantized = _quantized(op, x, x.shape[1], levels, alpha, block, packed, trust)
    return torch.empty_like(x), *quantized


def swiglu_quantize(
    gate_up: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    width = gate_up.shape[1] // 2
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
    x_sums: Tensor,
    weight: Tensor,
    metadata: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    arguments = (x, x_scales, x_sums, weight, metadata, weight_scales, dtype)
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
    return torch.empty_like(x), x.new_empty((x.shape[0], weight.shape[0]))


def swiglu_quantize_linear(
    gate_up: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], weight.shape[0]))


def unpack(packed: Tensor, levels: int) -> Tensor:
    width = packed.shape[1] * 8 // container_bits(levels)
    return packed.new_empty((packed.shape[0], width), dtype=torch.int8)


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
    check_matrix(op, "x", x, None, None, FLOATING, x)
    check_format(op, width, levels, alpha, block, packed)
    rows = x.shape[0]
    columns = width * container_bits(levels) // 8 if packed else width
    return (
        x.new_empty((rows, columns), dtype=torch.uint8 if packed else torch.int8),
        x.new_empty((rows,), dtype=torch.float32),
        x.new_empty((rows,), dtype=torch.int32),
        x.new_empty((rows, 0 if trust is None else width // 8), dtype=torch.uint8),
    )
