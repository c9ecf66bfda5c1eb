"""Float activations on a packed weight: an op that only the CPU's library has a kernel for.

``y[m, n] = scales[n] · Σ_k (x·H)[m, k]·v[n, k]``, summed in fp32 and rounded once to x's dtype. H
is the orthonormal Hadamard transform in blocks: a weight whose values are ``(v·scale)·H`` need not
be rotated back where x is rotated, for H is symmetric.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import (
    check_block,
    check_matrix,
    check_multiple,
    check_operand,
    check_packed_levels,
    check_vector,
)
from questtrain.kernels.formats import packed_integers
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.kernels.library import register


@register(
    "packed_weight_linear(Tensor x, Tensor weight, Tensor weight_scales, int levels, int block)"
    " -> Tensor"
)
def packed_weight_linear(
    x: Tensor, weight: Tensor, weight_scales: Tensor, levels: int, block: int
) -> Tensor:
    """``x [M, K]`` bf16, fp16 or fp32, packed ``weight``, ``weight_scales [N]`` of its integers →
    ``[M, N]`` in x's dtype; K is a multiple of 32 and of the block (1: no rotation), N of 8. Raises
    RuntimeError for anything else."""
    op = "packed_weight_linear"
    check_operand(op, "x", x)
    columns = x.shape[1] * check_packed_levels(op, "levels", levels) // 8
    check_matrix(op, "weight", weight, None, columns, (torch.uint8,), x)
    check_vector(op, "weight_scales", weight_scales, weight.shape[0], (torch.float32,), x)
    check_multiple(op, "the width", x.shape[1], 32)
    check_multiple(op, "the weight's rows", weight.shape[0], 8)
    check_block(op, x.shape[1], block)
    wide = hadamard_transform(x, hadamard_signs(block, x.device)) if block > 1 else x.float()
    values = packed_integers(weight, levels).float() * weight_scales.unsqueeze(1)
    return (wide @ values.t()).to(x.dtype)
