"""Products of what is quantized on the spot: one kernel where rows are few, two otherwise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from questtrain.kernels.dispatch import (
    multiplies_int4,
    quantized_linear,
    quantizes_on_the_way,
)
from questtrain.kernels.formats import OFFSET_LEVELS, Int8Matrix, PackedMatrix
from questtrain.kernels.ops import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    rmsnorm_quantize,
    swiglu_quantize,
)

_ops = torch.ops.questtrain
Matrix = PackedMatrix | Int8Matrix


class RowFormat(NamedTuple):
    """How an activation's rows are quantized: ``levels`` on ``[-α·rms, α·rms]`` after a Hadamard
    transform in blocks of ``block`` columns (1: none)."""

    levels: int
    alpha: float
    block: int


def hadamard_linear(x: Tensor, form: RowFormat, weight: Matrix) -> Tensor:
    """``Q(x)·wᵀ``: ``x [M, K]`` → ``[M, N]`` in x's dtype."""
    if isinstance(weight, PackedMatrix) and _fuses(x, x.shape[1], form, weight):
        y: Tensor = _ops.hadamard_quantize_linear(x, *form[:2], *_weight(weight))
        return y
    packed = _packs(x, x.shape[1], form, weight)
    return quantized_linear(hadamard_quantize(x, *form, packed), weight, x.dtype, form.levels)


def rmsnorm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, form: RowFormat, weight: Matrix
) -> Tensor:
    """``Q(RMSNorm(x))·wᵀ``."""
    if isinstance(weight, PackedMatrix) and _fuses(x, x.shape[1], form, weight):
        y: Tensor = _ops.rmsnorm_quantize_linear(x, norm_weight, eps, *form[:2], *_weight(weight))
        return y
    fed = rmsnorm_quantize(x, norm_weight, eps, *form, _packs(x, x.shape[1], form, weight))
    return quantized_linear(fed, weight, x.dtype, form.levels)


def add_rmsnorm_linear(
    x: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, form: RowFormat, weight: Matrix
) -> tuple[Tensor, Tensor]:
    """``x + residual``, and ``Q(RMSNorm(x + residual))·wᵀ``."""
    if isinstance(weight, PackedMatrix) and _fuses(x, x.shape[1], form, weight):
        hidden, y = _ops.add_rmsnorm_quantize_linear(
            x, residual, norm_weight, eps, *form[:2], *_weight(weight)
        )
        return hidden, y
    packed = _packs(x, x.shape[1], form, weight)
    hidden, fed = add_rmsnorm_quantize(x, residual, norm_weight, eps, *form, packed)
    return hidden, quantized_linear(fed, weight, x.dtype, form.levels)


def swiglu_linear(gate_up: Tensor, form: RowFormat, weight: Matrix) -> Tensor:
    """``Q(silu(gate)·up)·wᵀ``; ``gate_up [M, 2K]``."""
    width = gate_up.shape[1] // 2
    if isinstance(weight, PackedMatrix) and _fuses(gate_up, width, form, weight):
        y: Tensor = _ops.swiglu_quantize_linear(gate_up, *form[:2], *_weight(weight))
        return y
    packed = _packs(gate_up, width, form, weight)
    fed = swiglu_quantize(gate_up, *form, packed)
    return quantized_linear(fed, weight, gate_up.dtype, form.levels)


def _fuses(x: Tensor, width: int, form: RowFormat, weight: PackedMatrix) -> bool:
    return form.levels != OFFSET_LEVELS and quantizes_on_the_way(x, width, form.block, weight)


def _packs(x: Tensor, width: int, form: RowFormat, weight: Matrix) -> bool:
    """Whether x is to be quantized to packed codes."""
    return isinstance(weight, PackedMatrix) and multiplies_int4(
        x.device, x.shape[0], width, form.levels, weight
    )


def _weight(weight: PackedMatrix) -> tuple[Tensor, Tensor, int]:
    return weight.codes, weight.scales, weight.levels
