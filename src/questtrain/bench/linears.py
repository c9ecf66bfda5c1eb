"""The quantized products under one signature, so that a benchmark can swap them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from questtrain.bench.operands import DTYPE
from questtrain.kernels.ops.linear import int8_linear, packed_linear

Linear = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""``(codes, scales, sums, weight, weight_scales) → [M, N]`` in bf16."""


def packed(levels: int) -> Linear:
    """Packed weights of ``levels``, by the kernel for few rows."""
    return partial(_packed, levels)


def int8(x: Tensor, x_scales: Tensor, x_sums: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """INT8 codes of both; the sums are not needed."""
    return int8_linear(x, x_scales, weight, scales, DTYPE)


def _packed(
    levels: int, x: Tensor, x_scales: Tensor, x_sums: Tensor, weight: Tensor, scales: Tensor
) -> Tensor:
    return packed_linear(x, x_scales, x_sums, weight, scales, levels, DTYPE)
