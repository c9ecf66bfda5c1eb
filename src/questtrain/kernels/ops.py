"""The ops as Python functions; importing this module registers references, fakes and kernels.

Where CUDA's library is loaded, its kernels serve every CUDA device; where the CPU's is, its
products serve every CPU; the references serve the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from questtrain.kernels import (
    cpu_library,
    cross_entropy,
    extension,
    fake,
    reference_adamw,
    reference_attention,
    reference_fp8,
    reference_linear,
    reference_packed_weight,
    reference_quantize,
    reference_training,
)
from questtrain.kernels.dispatch import attends_in_one_kernel
from questtrain.kernels.formats import Quantized
from questtrain.kernels.schema import LIBRARY, OPS

HOMES = (
    reference_quantize,
    reference_linear,
    reference_packed_weight,
    reference_training,
    reference_fp8,
    reference_adamw,
    cross_entropy,
    reference_attention,
)

TORCHS_OWN = ("add_weight_gradient_",)
"""Ops that are served by torch's kernels on every device."""

CPUS_OWN = ("packed_weight_linear",)
"""Ops that only the CPU's library has kernels for."""


def _register() -> None:
    for op in OPS:
        reference = next(getattr(home, op) for home in HOMES if op in vars(home))
        run = reference if op in TORCHS_OWN else _admitted(op, reference)
        LIBRARY.impl(op, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"questtrain::{op}", getattr(fake, op), lib=LIBRARY)
    extension.load_with_cuda()
    cpu_library.load()


def _admitted(op: str, reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference, which runs where the chosen backend allows it. Each op's first argument is a
    tensor, or a list of some."""

    @wraps(reference)
    def run(*arguments: Any) -> Any:
        first = arguments[0]
        for tensor in first[:1] if isinstance(first, list) else (first,):
            extension.admit_reference(op, tensor.device)
            if tensor.device.type == "cpu":
                cpu_library.check_isa()
        return reference(*arguments)

    return run


_register()
_ops = torch.ops.questtrain


def hadamard_quantize(
    x: Tensor,
    levels: int,
    alpha: float,
    block: int = 128,
    packed: bool = False,
    trust: float | None = None,
) -> Quantized:
    """Rotate, scale and quantize rows ``[M, K]`` of bf16, fp16 or fp32.

    ``alpha`` is the grid's half-width in units of a row's rms. ``block`` 1 leaves out the Hadamard
    transform; ``packed`` gives packed codes instead of int8; ``trust``, the outer trust scale, adds
    the mask. Raises ValueError (RuntimeError on CUDA) for what the kernels do not take.
    """
    return Quantized(*_ops.hadamard_quantize(x, levels, alpha, block, packed, trust))


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
    """`hadamard_quantize` of RMSNorm(x); ``weight [K]`` in fp32 or x's dtype."""
    return Quantized(*_ops.rmsnorm_quantize(x, weight, eps, levels, alpha, block, packed, trust))


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
    """``x + residual``, and `rmsnorm_quantize` of it."""
    hidden, *quantized = _ops.add_rmsnorm_quantize(
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
    """`hadamard_quantize` of ``silu(gate)·up``; ``gate_up [M, 2K]``."""
    return Quantized(*_ops.swiglu_quantize(gate_up, levels, alpha, block, packed, trust))


def unpack(packed: Tensor, levels: int) -> Tensor:
    """The int8 integers ``[N, K]`` of packed codes."""
    values: Tensor = _ops.unpack(packed, levels)
    return values


def packed_weight_linear(
    x: Tensor, weight: Tensor, weight_scales: Tensor, levels: int, block: int = 1
) -> Tensor:
    """``x [M, K]`` times the values of packed codes ``[N, K]``ᵀ, in x's dtype; with ``block``, of
    ``x·H``: the product with a weight that would be rotated back."""
    y: Tensor = _ops.packed_weight_linear(x, weight, weight_scales, levels, block)
    return y


def adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    divisor: Tensor | None,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update fp32 weights and AdamW's moments in place, by gradients over ``divisor``.

    ``steps``, fp32 scalars, count the updates with this one. The gradients are used up: they may
    come back divided. Raises ValueError (RuntimeError on CUDA) for anything that is not contiguous,
    not fp32 or not of its weight's size.
    """
    _ops.adamw_(weights, grads, means, squares, steps, divisor, lr, *betas, eps, weight_decay)


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """Attention of one new token a sequence: rotary embedding, cache update, softmax: ``[B, H·K]``.

    ``q``, ``k``, ``v [B, H·K]`` of bf16, fp16 or fp32 may be column slices of one product; ``keys``
    and ``values [B, H, capacity, K]`` are updated at ``position``, an int64 scalar: how many tokens
    are cached; ``cos``, ``sin`` fp32 ``[K]`` are its rotary angles. A position that is no place of
    the cache makes the result NaN. Raises ValueError (RuntimeError on CUDA) for other arguments.
    """
    arguments = (q, k, v, keys, values, position, cos, sin)
    if keys.is_cuda and not attends_in_one_kernel(keys):
        return reference_attention.decode_attention(*arguments)
    y: Tensor = _ops.decode_attention(*arguments)
    return y
