"""Rows quantized and multiplied with a packed weight, in one op.

`questtrain.kernels.ops.linear.packed_linear` of the quantizers in blocks of 128. ``weight`` are
packed codes ``[N, K·bits/8]`` of ``weight_levels`` levels, ``weight_scales`` fp32 ``[N]``; N is a
multiple of 16; the result ``[M, N]`` is in x's dtype. Each raises RuntimeError for what the kernels
do not take: in CUDA up to 8 rows, quantized on the way, or up to 1024 where tiles multiply
(`questtrain.kernels.dispatch`), by a kernel that quantizes and one that multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import (
    check_format,
    check_matrix,
    check_multiple,
    check_norm,
    check_operand,
    check_packed_levels,
    check_swiglu,
    check_vector,
)
from questtrain.kernels.formats import INTEGER_LEVELS, packed_integers
from questtrain.kernels.library import register
from questtrain.kernels.ops.linear import scaled_product
from questtrain.kernels.ops.quantize import (
    added,
    hadamard_quantize,
    quantized_norm,
    quantized_swiglu,
)

_FORMAT = "int levels, float alpha"
_WEIGHT = "Tensor weight, Tensor weight_scales, int weight_levels"


@register(f"hadamard_quantize_linear(Tensor x, {_FORMAT}, {_WEIGHT}) -> Tensor")
def hadamard_quantize_linear(
    x: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    """The product of `hadamard_quantize` of ``x [M, K]``."""
    matrix = (weight, weight_scales, weight_levels)
    return _plain("hadamard_quantize_linear", x, levels, alpha, *matrix)


@register(f"hadamard_quantize_linear_tile(Tensor x, {_FORMAT}, {_WEIGHT}, int tile) -> Tensor")
def hadamard_quantize_linear_tile(
    x: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
    tile: int,
) -> Tensor:
    """`hadamard_quantize_linear` by one numbered tile of the CUDA kernel, for tuning."""
    matrix = (weight, weight_scales, weight_levels)
    return _plain("hadamard_quantize_linear_tile", x, levels, alpha, *matrix)


@register(
    "rmsnorm_quantize_linear(Tensor x, Tensor norm_weight, float eps,"
    f" {_FORMAT}, {_WEIGHT}) -> Tensor"
)
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
    """The product of `rmsnorm_quantize` of ``x [M, K]``."""
    op, matrix = "rmsnorm_quantize_linear", (weight, weight_scales, weight_levels)
    check_norm(op, x, norm_weight, name="norm_weight")
    _check_product(op, x, x.shape[1], levels, alpha, *matrix)
    fed = quantized_norm(x, norm_weight, eps, levels, alpha, 128, False)
    return _product(fed, *matrix, x.dtype)


@register(
    "add_rmsnorm_quantize_linear(Tensor x, Tensor residual, Tensor norm_weight, float eps,"
    f" {_FORMAT}, {_WEIGHT}) -> (Tensor hidden, Tensor y)"
)
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
    """``x + residual``, both ``[M, K]``, and the product of `rmsnorm_quantize` of it."""
    op, matrix = "add_rmsnorm_quantize_linear", (weight, weight_scales, weight_levels)
    check_norm(op, x, norm_weight, residual, "norm_weight")
    _check_product(op, x, x.shape[1], levels, alpha, *matrix)
    hidden = added(x, residual)
    fed = quantized_norm(hidden, norm_weight, eps, levels, alpha, 128, False)
    return hidden, _product(fed, *matrix, x.dtype)


@register(f"swiglu_quantize_linear(Tensor gate_up, {_FORMAT}, {_WEIGHT}) -> Tensor")
def swiglu_quantize_linear(
    gate_up: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    """The product of `swiglu_quantize` of ``gate_up [M, 2K]``."""
    op, matrix = "swiglu_quantize_linear", (weight, weight_scales, weight_levels)
    width = check_swiglu(op, gate_up)
    _check_product(op, gate_up, width, levels, alpha, *matrix)
    return _product(quantized_swiglu(gate_up, levels, alpha, 128, False), *matrix, gate_up.dtype)


def _plain(
    op: str, x: Tensor, levels: int, alpha: float, weight: Tensor, scales: Tensor, of_weight: int
) -> Tensor:
    check_operand(op, "x", x)
    _check_product(op, x, x.shape[1], levels, alpha, weight, scales, of_weight)
    return _product(hadamard_quantize(x, levels, alpha), weight, scales, of_weight, x.dtype)


def _check_product(
    op: str,
    x: Tensor,
    width: int,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> None:
    """What operands of ``width`` columns, quantized on the way, are multiplied with."""
    check_format(op, width, levels, alpha, 128, among=INTEGER_LEVELS)
    bits = check_packed_levels(op, "weight_levels", weight_levels)
    check_matrix(op, "weight", weight, None, width * bits // 8, (torch.uint8,), x)
    check_multiple(op, "the weight's rows", weight.shape[0], 16)
    check_vector(op, "weight_scales", weight_scales, weight.shape[0], (torch.float32,), x)


def _product(
    fed: tuple[Tensor, Tensor, Tensor, Tensor],
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
    dtype: torch.dtype,
) -> Tensor:
    codes, scales, *_ = fed
    return scaled_product(
        codes, packed_integers(weight, weight_levels), scales, weight_scales, dtype
    )
