"""Operands of a backward in FP8 (e4m3).

Of a gradient g ``[M, N]`` both products of a linear layer's backward are taken with integers of up
to 16 levels, which e4m3 holds exactly; what scales them row by row is multiplied into g:

    grad_y·ŵ = (g ⊙ s_w)·W        grad_yᵀ·x̂ = (g ⊙ s_x)ᵀ·X

Before rounding g is brought to a root mean square of 1 … 2 by a power of two for each product, from
a sample of its rows: values saturate at 448, and below 2⁻¹⁰ they vanish. Nothing is kept from step
to step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import (
    check_matrix,
    check_multiple,
    check_packed_levels,
    check_vector,
)
from questtrain.kernels.formats import E4M3, FP8_MULTIPLE, packed_integers
from questtrain.kernels.library import register

LARGEST = 448.0
"""Of e4m3's numbers."""

SAMPLED_ROWS = 127
"""A prime: rows at even distances then meet every place of sequences whose length is a power of
two."""

SMALLEST_EXPONENT, LARGEST_EXPONENT = -126, 126
"""Of the power of two: its inverse is a normal number, too."""


@register(
    "fp8_gradients(Tensor grad, Tensor weight_scales, Tensor x_scales) -> (Tensor rows,"
    " Tensor columns, Tensor unit_rows, Tensor unit_columns)"
)
def fp8_gradients(
    grad: Tensor, weight_scales: Tensor, x_scales: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``g ⊙ s_w [M, N]`` and ``(g ⊙ s_x)ᵀ [N, M]`` in e4m3, and what a 1 of each stands for, fp32
    ``[1]``. ``grad`` is bf16 ``[M, N]``, sizes that are multiples of 16; the scales are fp32
    ``[N]`` and ``[M]``. Infinities become NaN; other arguments raise RuntimeError."""
    op = "fp8_gradients"
    check_matrix(op, "grad", grad, None, None, (torch.bfloat16,), grad)
    _check_sizes(op, *grad.shape)
    check_vector(op, "weight_scales", weight_scales, grad.shape[1], (torch.float32,), grad)
    check_vector(op, "x_scales", x_scales, grad.shape[0], (torch.float32,), grad)
    rms = _sampled_rms(grad)
    rows_factor = _to_one(rms * weight_scales.mean())
    columns_factor = _to_one(rms * x_scales.mean())
    wide = grad.float()
    rows = _rounded(wide * (weight_scales * rows_factor), wide)
    columns = _rounded(wide * (x_scales * columns_factor).unsqueeze(1), wide)
    units = 1 / rows_factor.reshape(1), 1 / columns_factor.reshape(1)
    return rows, columns.t().contiguous(), *units


@register("fp8_transpose(Tensor codes, int levels) -> Tensor")
def fp8_transpose(codes: Tensor, levels: int) -> Tensor:
    """The integers of int8 ``[M, K]`` or packed codes in e4m3, transposed: ``[K, M]``; both sizes
    are multiples of 16. Raises RuntimeError for anything else."""
    op = "fp8_transpose"
    check_matrix(op, "codes", codes, None, None, (torch.int8, torch.uint8), codes)
    bits = check_packed_levels(op, "levels", levels)
    packed = codes.dtype == torch.uint8
    _check_sizes(op, codes.shape[0], codes.shape[1] * 8 // bits if packed else codes.shape[1])
    integers = packed_integers(codes, levels) if packed else codes
    return integers.t().float().to(E4M3).contiguous()


def fp8_product(
    a: Tensor, b: Tensor, unit: Tensor, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """``a·b·unit`` of e4m3 ``[M, K]``, row-major, and ``[K, N]``, column-major."""
    one = torch.ones_like(unit)
    product: Tensor = torch._scaled_mm(
        a, b, unit, one, out_dtype=dtype, use_fast_accum=False, out=out
    )
    return product


def _check_sizes(op: str, rows: int, width: int) -> None:
    if rows % FP8_MULTIPLE:
        raise RuntimeError(f"{op}: the number of rows {rows} must be a multiple of {FP8_MULTIPLE}")
    check_multiple(op, "the width", width, FP8_MULTIPLE)


def _sampled_rms(grad: Tensor) -> Tensor:
    rows = grad.shape[0]
    count = min(rows, SAMPLED_ROWS)
    sample = torch.arange(count, device=grad.device) * rows // max(count, 1)
    return grad[sample].float().square().mean().sqrt()


def _to_one(size: Tensor) -> Tensor:
    """The power of two that brings ``size`` to 1 … 2; 1 for what is zero or no number."""
    _, exponent = torch.frexp(size)  # of a mantissa from 1/2 to 1
    limited = (1 - exponent).clamp(SMALLEST_EXPONENT, LARGEST_EXPONENT)
    power = (limited + 127 << 23).view(torch.float32)
    return torch.where((size > 0) & size.isfinite(), power, 1.0)


def _rounded(values: Tensor, like: Tensor) -> Tensor:
    """To nearest even, at most ±448; NaN where ``like`` is not finite."""
    limited = values.clamp(-LARGEST, LARGEST)
    return torch.where(like.isfinite(), limited, torch.nan).to(E4M3)
