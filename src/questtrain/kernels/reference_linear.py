"""The products in plain torch: specification, and fallback without the CUDA kernels.

``y[m, n] = x_scales[m] · weight_scales[n] · Σ_k v_x[m, k]·v_w[n, k]``: the sum is an exact integer,
the scaling is done in float64 and rounded once to ``dtype`` (bf16, fp16 or fp32).
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels import reference_quantize
from questtrain.kernels.checks import (
    check_format,
    check_levels,
    check_matrix,
    check_multiple,
    check_norm,
    check_operand,
    check_output,
    check_packed_levels,
    check_swiglu,
    check_vector,
)
from questtrain.kernels.formats import (
    INTEGER_LEVELS,
    MAX_PACKED_LEVELS,
    MAX_WIDTH,
    container_bits,
    integers_of,
    unpack_bits,
)

_INT8, _UINT8 = (torch.int8,), (torch.uint8,)
_FLOAT, _INT32 = (torch.float32,), (torch.int32,)

EXACT_IN_FP32 = 2**24
"""Integers up to this are fp32 numbers."""


def int8_linear(
    x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> Tensor:
    """int8 ``x [M, K]`` and ``weight [N, K]``; K is a multiple of 16, N of 8."""
    check_int8("int8_linear", x, x_scales, weight, weight_scales, dtype)
    return _scaled(_integer_product(x, weight), x_scales, weight_scales, dtype)


def int8_linear_tile(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype,
    tile: int,
) -> Tensor:
    """`int8_linear` by one numbered configuration of the CUDA kernel, for tuning."""
    check_int8("int8_linear_tile", x, x_scales, weight, weight_scales, dtype)
    return _scaled(_integer_product(x, weight), x_scales, weight_scales, dtype)


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
    sums = (x_sums, weight_sums)
    check_offset(x, x_scales, weight, weight_scales, sums, (x_levels, weight_levels), dtype)
    integers = integers_of(x, x_levels), integers_of(weight, weight_levels)
    return _scaled(_integer_product(*integers), x_scales, weight_scales, dtype)


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
    check_packed("packed_linear", x, x_scales, x_sums, weight, weight_scales, levels, dtype)
    values = unpack(weight, levels)
    return _scaled(_integer_product(x, values), x_scales, weight_scales, dtype)


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
    check_int4("int4_linear", x, x_scales, x_sums, weight, weight_scales, weight_sums, dtype)
    values = unpack(x, MAX_PACKED_LEVELS), unpack(weight, MAX_PACKED_LEVELS)
    return _scaled(_integer_product(*values), x_scales, weight_scales, dtype)


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
    check_sparse("int4_sparse_linear", x, x_scales, weight, metadata, weight_scales, dtype)
    kept = unpack(weight, MAX_PACKED_LEVELS).reshape(weight.shape[0], -1, 2, 2)
    pairs = unpack_bits(metadata, 2).reshape(weight.shape[0], -1, 2, 1).long()
    groups = kept.new_zeros(kept.shape[0], kept.shape[1], 4, 2)
    values = groups.scatter_(2, pairs.expand(-1, -1, -1, 2), kept).flatten(1)
    product = _integer_product(unpack(x, MAX_PACKED_LEVELS), values)
    return _scaled(product, x_scales, weight_scales, dtype)


def unpack(packed: Tensor, levels: int) -> Tensor:
    """The int8 integers ``[N, K]`` of packed codes."""
    check_unpack(packed, levels)
    return 2 * unpack_bits(packed, container_bits(levels)).to(torch.int8) - (levels - 1)


def hadamard_quantize_linear(
    x: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    """`packed_linear` of `hadamard_quantize` in blocks of 128; the result is in x's dtype."""
    check_operand("hadamard_quantize_linear", "x", x)
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    check_fused("hadamard_quantize_linear", x, x.shape[1], *rest)
    fed = reference_quantize.quantized(x, levels, alpha, 128, False)
    return packed_linear(*fed[:3], weight, weight_scales, weight_levels, x.dtype)


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
    """`packed_linear` of `rmsnorm_quantize`."""
    check_norm("rmsnorm_quantize_linear", x, norm_weight, name="norm_weight")
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    check_fused("rmsnorm_quantize_linear", x, x.shape[1], *rest)
    fed = reference_quantize.rmsnorm_quantize(x, norm_weight, eps, levels, alpha, 128, False)
    return packed_linear(*fed[:3], weight, weight_scales, weight_levels, x.dtype)


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
    """``hidden``, and `packed_linear` of `add_rmsnorm_quantize`."""
    check_norm("add_rmsnorm_quantize_linear", x, norm_weight, residual, "norm_weight")
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    check_fused("add_rmsnorm_quantize_linear", x, x.shape[1], *rest)
    hidden, *fed = reference_quantize.add_rmsnorm_quantize(
        x, residual, norm_weight, eps, levels, alpha, 128, False
    )
    y = packed_linear(fed[0], fed[1], fed[2], weight, weight_scales, weight_levels, x.dtype)
    return hidden, y


def swiglu_quantize_linear(
    gate_up: Tensor,
    levels: int,
    alpha: float,
    weight: Tensor,
    weight_scales: Tensor,
    weight_levels: int,
) -> Tensor:
    """`packed_linear` of `swiglu_quantize`."""
    width = check_swiglu("swiglu_quantize_linear", gate_up)
    rest = (levels, alpha, weight, weight_scales, weight_levels)
    check_fused("swiglu_quantize_linear", gate_up, width, *rest)
    fed = reference_quantize.swiglu_quantize(gate_up, levels, alpha, 128, False)
    return packed_linear(*fed[:3], weight, weight_scales, weight_levels, gate_up.dtype)


def check_int8(
    op: str, x: Tensor, x_scales: Tensor, weight: Tensor, weight_scales: Tensor, dtype: torch.dtype
) -> None:
    check_matrix(op, "x", x, None, None, _INT8, x)
    check_matrix(op, "weight", weight, None, x.shape[1], _INT8, x)
    check_multiple(op, "the width", x.shape[1], 16)
    check_multiple(op, "the weight's rows", weight.shape[0], 8)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)


def check_offset(
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    sums: tuple[Tensor, Tensor],
    levels: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    """``sums`` and ``levels`` are x's, then the weight's."""
    op = "int8_offset_linear"
    check_int8(op, x, x_scales, weight, weight_scales, dtype)
    check_vector(op, "x_sums", sums[0], x.shape[0], _INT32, x)
    check_vector(op, "weight_sums", sums[1], weight.shape[0], _INT32, x)
    check_levels(op, "x_levels", levels[0])
    check_levels(op, "weight_levels", levels[1])
    if x.shape[1] > MAX_WIDTH:
        raise ValueError(f"{op}: the width {x.shape[1]} exceeds {MAX_WIDTH}")


def check_packed(
    op: str,
    x: Tensor,
    x_scales: Tensor,
    x_sums: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    levels: int,
    dtype: torch.dtype,
) -> None:
    check_matrix(op, "x", x, None, None, _INT8, x)
    columns = x.shape[1] * check_packed_levels(op, "levels", levels) // 8
    check_matrix(op, "weight", weight, None, columns, _UINT8, x)
    check_multiple(op, "the width", x.shape[1], 128)
    check_multiple(op, "the weight's rows", weight.shape[0], 16)
    check_vector(op, "x_sums", x_sums, x.shape[0], _INT32, x)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)


def check_fused(
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
    check_matrix(op, "weight", weight, None, width * bits // 8, _UINT8, x)
    check_multiple(op, "the weight's rows", weight.shape[0], 16)
    check_vector(op, "weight_scales", weight_scales, weight.shape[0], _FLOAT, x)


def check_unpack(packed: Tensor, levels: int, op: str = "unpack") -> int:
    """The unpacked width."""
    check_matrix(op, "packed", packed, None, None, _UINT8, packed)
    width = packed.shape[1] * 8 // check_packed_levels(op, "levels", levels)
    check_multiple(op, "the unpacked width", width, 32)
    return width


def check_int4(
    op: str,
    x: Tensor,
    x_scales: Tensor,
    x_sums: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    weight_sums: Tensor,
    dtype: torch.dtype,
) -> None:
    check_matrix(op, "x", x, None, None, _UINT8, x)
    check_matrix(op, "weight", weight, None, x.shape[1], _UINT8, x)
    check_multiple(op, "the width", 2 * x.shape[1], 64)
    check_multiple(op, "the weight's rows", weight.shape[0], 8)
    check_vector(op, "x_sums", x_sums, x.shape[0], _INT32, x)
    check_vector(op, "weight_sums", weight_sums, weight.shape[0], _INT32, x)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)


def check_sparse(
    op: str,
    x: Tensor,
    x_scales: Tensor,
    weight: Tensor,
    metadata: Tensor,
    weight_scales: Tensor,
    dtype: torch.dtype,
) -> None:
    check_matrix(op, "x", x, None, None, _UINT8, x)
    check_multiple(op, "the width", 2 * x.shape[1], 128)
    check_matrix(op, "weight", weight, None, x.shape[1] // 2, _UINT8, x)
    check_multiple(op, "the weight's rows", weight.shape[0], 16)
    check_matrix(op, "metadata", metadata, weight.shape[0], x.shape[1] // 8, _UINT8, x)
    _check_scales(op, x, x_scales, weight, weight_scales, dtype)


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
    if x.device.type == "cpu" and _largest(x) * _largest(weight) * x.shape[1] <= EXACT_IN_FP32:
        dtype = torch.float32
    return x.to(dtype) @ weight.to(dtype).t()


def _largest(integers: Tensor) -> int:
    """The largest absolute value."""
    if not integers.numel():
        return 0
    low, high = integers.aminmax()
    return max(-int(low), int(high))


def _scaled(product: Tensor, x_scales: Tensor, weight_scales: Tensor, dtype: torch.dtype) -> Tensor:
    scales = x_scales.double().unsqueeze(1) * weight_scales.double()
    return (product.double() * scales).to(dtype)
