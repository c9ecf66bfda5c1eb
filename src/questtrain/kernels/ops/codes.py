"""Codes back to the numbers that they stand for: integers, or values."""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import (
    check_matrix,
    check_multiple,
    check_output,
    check_packed_levels,
    check_vector,
)
from questtrain.kernels.formats import integers_of, packed_integers
from questtrain.kernels.library import register


@register("unpack(Tensor packed, int levels) -> Tensor")
def unpack(packed: Tensor, levels: int) -> Tensor:
    """The int8 integers ``[N, K]`` of packed codes, uint8 ``[N, K·bits/8]`` of up to 16
    ``levels``; K is a multiple of 32. Raises RuntimeError for anything else."""
    _check_packed("unpack", packed, levels)
    return packed_integers(packed, levels)


@register("dequantize(Tensor codes, Tensor scales, int levels, ScalarType dtype) -> Tensor")
def dequantize(codes: Tensor, scales: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """The values of int8 ``[M, K]`` or packed codes in bf16, fp16 or fp32: integers times their
    row's scale, fp32 ``[M]``; K is a multiple of 32. Raises RuntimeError for anything else."""
    op = "dequantize"
    check_output(op, dtype)
    packed = codes.dtype == torch.uint8
    if packed:
        _check_packed(op, codes, levels)
    else:
        check_matrix(op, "codes", codes, None, None, (torch.int8,), codes)
        check_multiple(op, "the width", codes.shape[1], 32)
    check_vector(op, "scales", scales, codes.shape[0], (torch.float32,), codes)
    integers = packed_integers(codes, levels) if packed else integers_of(codes, levels)
    return (integers.float() * scales.unsqueeze(1)).to(dtype)


def _check_packed(op: str, packed: Tensor, levels: int) -> None:
    check_matrix(op, "packed", packed, None, None, (torch.uint8,), packed)
    width = packed.shape[1] * 8 // check_packed_levels(op, "levels", levels)
    check_multiple(op, "the unpacked width", width, 32)
