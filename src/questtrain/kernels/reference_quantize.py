"""The quantizing ops in plain torch: specification, and fallback without the CUDA kernels.

The arithmetic is that of `questtrain.quant`: rotation and scale in fp32, ``s = α·rms``, and
``q = round((x_h/s)·(n-1)/2 + (n-1)/2)``, half to even, clamped to 0 … n-1. A NaN makes its row's
scale NaN, so that it stays visible; its codes mean nothing.

SiLU·mul is computed in fp32 and rounded once to the dtype. RMSNorm's factor is one number a row: it
changes the row's scale and no code. So ``x·weight`` is rotated, rounded once to bf16 or fp32 (fp16
has too little range for what is not normalized yet), and the factor goes into the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import check_format, check_norm, check_operand, check_swiglu
from questtrain.kernels.formats import OFFSET_LEVELS, container_bits, pack_bits
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform

TINY = 1e-30
"""Smallest rms: an all-zero row quantizes to finite values."""

Four = tuple[Tensor, Tensor, Tensor, Tensor]
Five = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def row_rms(x: Tensor) -> Tensor:
    """Root mean square of rows, ``[..., K]`` → ``[..., 1]`` in x's dtype. On a CPU sum and root are
    taken in float64, so that every implementation gives the same bits: fp32 sums depend on their
    order, and torch's fp32 roots are not always the nearest number."""
    wide = x.double() if x.device.type == "cpu" else x
    mean = wide.square().mean(-1, keepdim=True).to(x.dtype)
    return mean.to(wide.dtype).sqrt().to(x.dtype)


def hadamard_quantize(
    x: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    """``x [M, K]`` bf16, fp16 or fp32 → codes, scales ``[M]``, sums ``[M]``, mask ``[M, K/8]``."""
    op = "hadamard_quantize"
    check_operand(op, "x", x)
    check_format(op, x.shape[1], levels, alpha, block, packed)
    return _quantize(x, levels, alpha, block, packed, trust)


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
    """`hadamard_quantize` of ``x·rsqrt(mean(x²) + eps)·weight``; weight ``[K]``."""
    op = "rmsnorm_quantize"
    check_norm(op, x, weight)
    check_format(op, x.shape[1], levels, alpha, block, packed)
    return _quantize_normalized(x, weight, eps, levels, alpha, block, packed, trust)


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
    """``hidden = x + residual``, and `rmsnorm_quantize` of it."""
    op = "add_rmsnorm_quantize"
    check_norm(op, x, weight, residual)
    check_format(op, x.shape[1], levels, alpha, block, packed)
    hidden = (x.float() + residual.float()).to(x.dtype)
    rest = (levels, alpha, block, packed, trust)
    return hidden, *_quantize_normalized(hidden, weight, eps, *rest)


def swiglu_quantize(
    gate_up: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    """`hadamard_quantize` of ``silu(gate)·up``; ``gate_up [M, 2K]`` holds gate, then up."""
    op = "swiglu_quantize"
    check_format(op, check_swiglu(op, gate_up), levels, alpha, block, packed)
    gate, up = gate_up.float().chunk(2, dim=1)
    product = (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
    return quantized(product, levels, alpha, block, packed, trust)


def _quantize_normalized(
    x: Tensor,
    weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    block: int,
    packed: bool,
    trust: float | None,
) -> Four:
    wide = x.float()
    product = wide * weight.float()
    if x.dtype == torch.bfloat16:
        product = product.to(x.dtype)
    codes, scales, sums, mask = quantized(product, levels, alpha, block, packed, trust)
    return codes, scales * torch.rsqrt(wide.square().mean(-1) + eps), sums, mask


def _quantize(
    x: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None
) -> Four:
    x_h = hadamard_transform(x, hadamard_signs(block, x.device)) if block > 1 else x.float()
    half_width = alpha * row_rms(x_h).clamp_min(TINY)
    steps = levels - 1
    place = (x_h / half_width).mul_(steps / 2).add_(steps / 2)
    place.round_().clamp_(0, steps).nan_to_num_(0.0)
    offset, factor = (levels // 2, 1) if levels == OFFSET_LEVELS else (steps, 2)
    sums = (factor * place.sum(1) - offset * x.shape[1]).to(torch.int32)  # exact: below 2^24
    if packed:
        codes = pack_bits(place.to(torch.uint8), container_bits(levels))
    else:
        codes = place.mul_(factor).sub_(offset).to(torch.int8)
    if trust is None:
        mask = codes.new_empty((x.shape[0], 0), dtype=torch.uint8)
    else:
        mask = pack_bits((x_h.abs() <= trust * half_width).view(torch.uint8), 1)
    scales = (half_width / steps).squeeze(1)
    return codes, scales, sums, mask


def quantized(
    x: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    """`hadamard_quantize` as the other references use it: by its kernel where there is one."""
    result: Four = torch.ops.questtrain.hadamard_quantize(x, levels, alpha, block, packed, trust)
    return result
