"""Products of integer matrices that are quantized already.

``y[m, n] = x_scales[m] · weight_scales[n] · Σ_k v_x[m, k]·v_w[n, k]``: the sum is an exact integer,
the scaling is done in float64 and rounded once to ``dtype`` (bf16, fp16 or fp32). Scales are fp32
``[M]`` and ``[N]``, sums int32 ``[M]`` and ``[N]`` (`questtrain.kernels.formats`). Each raises
RuntimeError for what the kernels do not take.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import (
    check_levels,
    check_matrix,
    check_multiple,
    check_output,
    check_packed_levels,
    check_vector,
)
from questtrain.kernels.formats import (
    MAX_PACKED_LEVELS,
    MAX_WIDTH,
    integers_of,
    packed_integers,
    unpack_bits,
)
from questtrain.kernels.library import has_values, register

_INT8, _UINT8 = (torch.int8,), (torch.uint8,)
_FLOAT, _INT32 = (torch.float32,), (torch.int32,)

EXACT_IN_FP32 = 2**24
"""Integers up to this are fp32 numbers."""

_X = "Tensor x, Tensor x_scales"
_INT8_OPERANDS = f"{_X}, Tensor weight, Tensor weight_scales, ScalarType dtype"
_SUMMED_OPERANDS = f"{_X}, Tensor x_sums, Tensor weight, Tensor weight_scales"


@register(f"int8_linear({_INT8_OPERANDS}) -> Tensor")
def int8_linear(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """int8 ``x [M, K]`` and ``weight [N, K]``; K is a multiple of 16, N of 8."""
    _check_int8("int8_linear", x, x_scales, weight, weight_scales, dtype)
    return scaled_product(x, weight, x_scales, weight_scales, dtype)


@register(f"int8_linear_tile({_INT8_OPERANDS}, int tile) -> Tensor")
def int8_linear_tile(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype,
    tile: int,
) -> Tensor:
    """`int8_linear` by one numbered configuration of the CUDA kernel, for tuning."""
    _check_int8("int8_linear_tile", x, x_scales, weight, weight_scales, dtype)
    return scaled_product(x, weight, x_scales, weight_scales, dtype)


@register(
    f"int8_offset_linear({_SUMMED_OPERANDS}, Tensor weight_sums, int x_levels,"
    " int weight_levels, ScalarType dtype) -> Tensor"
)
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
    """`int8_linear` where codes of 256 levels stand for ``2c + 1``; K is at most 32768.

    The kernel multiplies codes. Where both sides have 256 levels, ``Σ v_x·v_w = 4·Σ c_x·c_w +
    2·(Σ c_x + Σ c_w) + K``; where x alone has, ``2·Σ c_x·v_w + Σ v_w``.
    """
    op = "int8_offset_linear"
    _check_int8(op, x, x_scales, weight, weight_scales, dtype)
    _check_sums(op, x, x_sums, weight, weight_sums)
    check_levels(op, "x_levels", x_levels)
    check_levels(op, "weight_levels", weight_levels)
    if x.shape[1] > MAX_WIDTH:
        raise RuntimeError(f"{op}: the width {x.shape[1]} exceeds {MAX_WIDTH}")
    integers = integers_of(x, x_levels), integers_of(weight, weight_levels)
    return scaled_product(*integers, x_scales, weight_scales, dtype)


@register(f"packed_linear({_SUMMED_OPERANDS}, int levels, ScalarType dtype) -> Tensor")
def packed_linear(
    x: Tensor,
    x_scales: Tensor,
    x_sums: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    levels: int,
    dtype: torch.dtype,
) -> Tensor:
    """int8 ``x [M, K]``, weight of packed codes; K is a multiple of 128, N of 16. The CUDA kernel
    takes up to 64 rows."""
    op = "packed_linear"
    check_matrix(op, "x", x, None, None, _INT8, x)
    columns = x.shape[1] * check_packed_levels(op, "levels", levels) // 8
    check_matrix(op, "weight", weight, None, columns, _UINT8, x)
    check_multiple(op, "the width", x.shape[1], 128)
    check_multiple(op, "the weight's rows", weight.shape[0], 16)
    check_vector(op, "x_sums", x_sums, x.shape[0], _INT32, x)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)
    values = packed_integers(weight, levels)
    return scaled_product(x, values, x_scales, weight_scales, dtype)


@register(f"int4_linear({_SUMMED_OPERANDS}, Tensor weight_sums, ScalarType dtype) -> Tensor")
def int4_linear(
    x: Tensor,
    x_scales: Tensor,
    x_sums: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_sums: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Both operands of 16 levels in packed codes; K is a multiple of 64, N of 8. The kernel
    multiplies indices: ``Σ v_x·v_w = 4·Σ q_x·q_w - 15·(Σ v_x + Σ v_w) - 225·K``."""
    op = "int4_linear"
    check_matrix(op, "x", x, None, None, _UINT8, x)
    check_matrix(op, "weight", weight, None, x.shape[1], _UINT8, x)
    check_multiple(op, "the width", 2 * x.shape[1], 64)
    check_multiple(op, "the weight's rows", weight.shape[0], 8)
    _check_sums(op, x, x_sums, weight, weight_sums)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)
    fed, values = (packed_integers(codes, MAX_PACKED_LEVELS) for codes in (x, weight))
    return scaled_product(fed, values, x_scales, weight_scales, dtype)


@register(
    f"int4_sparse_linear({_X}, Tensor weight, Tensor metadata, Tensor weight_scales,"
    " ScalarType dtype) -> Tensor"
)
def int4_sparse_linear(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    metadata: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """`int4_linear` with 2 of each 4 consecutive pairs of the weight pruned to 0.

    ``weight [N, K/4]`` holds the kept indices in order, ``metadata [N, K/16]`` which pairs they
    are: 4 bits a group of 8 values, the first kept pair's number in the lower 2, the second's in
    the upper 2. K is a multiple of 128, N of 16.
    """
    op = "int4_sparse_linear"
    check_matrix(op, "x", x, None, None, _UINT8, x)
    check_multiple(op, "the width", 2 * x.shape[1], 128)
    check_matrix(op, "weight", weight, None, x.shape[1] // 2, _UINT8, x)
    check_multiple(op, "the weight's rows", weight.shape[0], 16)
    check_matrix(op, "metadata", metadata, weight.shape[0], x.shape[1] // 8, _UINT8, x)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)
    kept = packed_integers(weight, MAX_PACKED_LEVELS).reshape(weight.shape[0], -1, 2, 2)
    pairs = unpack_bits(metadata, 2).reshape(weight.shape[0], -1, 2, 1).long()
    groups = kept.new_zeros(kept.shape[0], kept.shape[1], 4, 2)
    values = groups.scatter_(2, pairs.expand(-1, -1, -1, 2), kept).flatten(1)
    fed = packed_integers(x, MAX_PACKED_LEVELS)
    return scaled_product(fed, values, x_scales, weight_scales, dtype)


def scaled_product(
    x: Tensor, weight: Tensor, x_scales: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """The product of integers ``[M, K]`` and ``[N, K]`` with their scales, in ``dtype``."""
    scales = x_scales.double().unsqueeze(1) * weight_scales.double()
    return (_integer_product(x, weight).double() * scales).to(dtype)


def _check_int8(
    op: str, x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> None:
    check_matrix(op, "x", x, None, None, _INT8, x)
    check_matrix(op, "weight", weight, None, x.shape[1], _INT8, x)
    check_multiple(op, "the width", x.shape[1], 16)
    check_multiple(op, "the weight's rows", weight.shape[0], 8)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)


def _check_sums(op: str, x: Tensor, x_sums: Tensor, weight: Tensor, weight_sums: Tensor) -> None:
    check_vector(op, "x_sums", x_sums, x.shape[0], _INT32, x)
    check_vector(op, "weight_sums", weight_sums, weight.shape[0], _INT32, x)


def _check_scales(
    op: str, x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> None:
    check_vector(op, "x_scales", x_scales, x.shape[0], _FLOAT, x)
    check_vector(op, "weight_scales", weight_scales, weight.shape[0], _FLOAT, x)
    check_output(op, dtype)


def _integer_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x·weightᵀ`` of integer matrices, exact, in fp32 or float64.

    fp32 holds every sum up to 2²⁴ exactly, whatever the order; on a CPU the matrices' largest
    values tell whether all are. (Without VNNI `torch._int_mm` is 20 times slower than that.)
    """
    dtype = torch.float64
    if has_values(x) and _largest(x) * _largest(weight) * x.shape[1] <= EXACT_IN_FP32:
        dtype = torch.float32
    return x.to(dtype) @ weight.to(dtype).t()


def _largest(integers: Tensor) -> int:
    """The largest absolute value."""
    if not integers.numel():
        return 0
    low, high = integers.aminmax()
    return max(-int(low), int(high))
