"""Rows of activations, rotated, scaled and quantized, alone or behind RMSNorm or SwiGLU.

The arithmetic is that of `questtrain.quant`: rotation and scale in fp32, ``s = α·rms``, and
``q = round((x_h/s)·(n-1)/2 + (n-1)/2)``, half to even, clamped to 0 … n-1. A NaN makes its row's
scale NaN, so that it stays visible; its codes mean nothing.

SiLU·mul is computed in fp32 and rounded once to the dtype. RMSNorm's factor is one number a row: it
changes the row's scale and no code. So ``x·weight`` is rotated, rounded once to bf16 or fp32 (fp16
has too little range for what is not normalized yet), and the factor goes into the scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from questtrain.kernels.checks import check_format, check_norm, check_operand, check_swiglu
from questtrain.kernels.formats import OFFSET_LEVELS, Quantized, container_bits, pack_bits
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.kernels.library import register

TINY = 1e-30
"""Smallest rms: an all-zero row quantizes to finite values."""

Four = tuple[Tensor, Tensor, Tensor, Tensor]
"""What makes a `Quantized`."""

_FORMAT = "int levels, float alpha, int block, bool packed, float? trust=None"
_QUANTIZED = "Tensor codes, Tensor scales, Tensor sums, Tensor mask"


def hadamard_quantize(
    x: Tensor,
    levels: int,
    alpha: float,
    block: int = 128,
    packed: bool = False,
    trust: float | None = None,
) -> Quantized:
    """Rotate, scale and quantize rows ``x [M, K]`` of bf16, fp16 or fp32.

    ``alpha`` is the grid's half-width in units of a row's rms. ``block`` 1 leaves out the Hadamard
    transform; ``packed`` gives packed codes instead of int8; ``trust``, the outer trust scale, adds
    the mask. Raises RuntimeError for what the kernels do not take.
    """
    return Quantized(*_hadamard_quantize(x, levels, alpha, block, packed, trust))


def rmsnorm_quantize(
    x: Tensor,
    weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    block: int = 128,
    packed: bool = False,
    trust: float | None = None,
) -> Quantized:
    """`hadamard_quantize` of RMSNorm(x), ``x·rsqrt(mean(x²) + eps)·weight``; ``weight [K]`` in fp32
    or x's dtype."""
    return Quantized(*_rmsnorm_quantize(x, weight, eps, levels, alpha, block, packed, trust))


def add_rmsnorm_quantize(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    block: int = 128,
    packed: bool = False,
    trust: float | None = None,
) -> tuple[Tensor, Quantized]:
    """``x + residual``, both ``[M, K]``, and `rmsnorm_quantize` of it."""
    hidden, *quantized = _add_rmsnorm_quantize(
        x, residual, weight, eps, levels, alpha, block, packed, trust
    )
    return hidden, Quantized(*quantized)


def swiglu_quantize(
    gate_up: Tensor,
    levels: int,
    alpha: float,
    block: int = 128,
    packed: bool = False,
    trust: float | None = None,
) -> Quantized:
    """`hadamard_quantize` of ``silu(gate)·up``; ``gate_up [M, 2K]`` holds gate, then up."""
    return Quantized(*_swiglu_quantize(gate_up, levels, alpha, block, packed, trust))


# ---- the references


@register(f"hadamard_quantize(Tensor x, {_FORMAT}) -> ({_QUANTIZED})")
def _hadamard_quantize(
    x: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    op = "hadamard_quantize"
    check_operand(op, "x", x)
    check_format(op, x.shape[1], levels, alpha, block, packed)
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


@register(f"rmsnorm_quantize(Tensor x, Tensor weight, float eps, {_FORMAT}) -> ({_QUANTIZED})")
def _rmsnorm_quantize(
    x: Tensor,
    weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    block: int,
    packed: bool,
    trust: float | None = None,
) -> Four:
    check_norm("rmsnorm_quantize", x, weight)
    check_format("rmsnorm_quantize", x.shape[1], levels, alpha, block, packed)
    return quantized_norm(x, weight, eps, levels, alpha, block, packed, trust)


@register(
    "add_rmsnorm_quantize(Tensor x, Tensor residual, Tensor weight, float eps,"
    f" {_FORMAT}) -> (Tensor hidden, {_QUANTIZED})"
)
def _add_rmsnorm_quantize(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    levels: int,
    alpha: float,
    block: int,
    packed: bool,
    trust: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check_norm("add_rmsnorm_quantize", x, weight, residual)
    check_format("add_rmsnorm_quantize", x.shape[1], levels, alpha, block, packed)
    hidden = added(x, residual)
    return hidden, *quantized_norm(hidden, weight, eps, levels, alpha, block, packed, trust)


@register(f"swiglu_quantize(Tensor gate_up, {_FORMAT}) -> ({_QUANTIZED})")
def _swiglu_quantize(
    gate_up: Tensor, levels: int, alpha: float, block: int, packed: bool, trust: float | None = None
) -> Four:
    width = check_swiglu("swiglu_quantize", gate_up)
    check_format("swiglu_quantize", width, levels, alpha, block, packed)
    return quantized_swiglu(gate_up, levels, alpha, block, packed, trust)


def added(x: Tensor, residual: Tensor) -> Tensor:
    """``x + residual``, rounded once to x's dtype."""
    return (x.float() + residual.float()).to(x.dtype)


def quantized_norm(x: Tensor, weight: Tensor, eps: float, *form: Any) -> Four:
    """`rmsnorm_quantize` unchecked, by the kernel of `hadamard_quantize` where there is one."""
    wide = x.float()
    product = wide * weight.float()
    if x.dtype == torch.bfloat16:
        product = product.to(x.dtype)
    codes, scales, sums, mask = _hadamard_quantize(product, *form)
    return codes, scales * torch.rsqrt(wide.square().mean(-1) + eps), sums, mask


def quantized_swiglu(gate_up: Tensor, *form: Any) -> Four:
    """`swiglu_quantize` unchecked, by the kernel of `hadamard_quantize` where there is one."""
    gate, up = gate_up.float().chunk(2, dim=1)
    product = (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
    return _hadamard_quantize(product, *form)


def row_rms(x: Tensor) -> Tensor:
    """Root mean square of rows, ``[..., K]`` → ``[..., 1]`` in x's dtype. On a CPU sum and root are
    taken in float64, so that every implementation gives the same bits: fp32 sums depend on their
    order, and torch's fp32 roots are not always the nearest number."""
    wide = x.double() if x.device.type == "cpu" else x
    mean = wide.square().mean(-1, keepdim=True).to(x.dtype)
    return mean.to(wide.dtype).sqrt().to(x.dtype)
