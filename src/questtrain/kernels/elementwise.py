"""SwiGLU, rotary positions and the rotation, with a backward in one kernel each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.kernels.ops.backward import all_pass, hadamard_backward, swiglu_backward
from questtrain.kernels.ops.rotary import join_rotary, rotary_


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate)·up`` of ``[M, 2K]``, rounded once."""
    if not torch.is_grad_enabled():
        return _gated(gate_up)
    y: Tensor = _Swiglu.apply(gate_up)  # type: ignore[no-untyped-call]
    return y


def hadamard_rows(x: Tensor, block: int) -> Tensor:
    """`hadamard_transform` of ``x [..., K]`` in fp32, by `hadamard_backward`'s kernel: H is its own
    inverse."""
    rows = x.float().reshape(-1, x.shape[-1]).contiguous()
    rotated: Tensor = _HadamardRows.apply(rows, block)  # type: ignore[no-untyped-call]
    return rotated.view(x.shape)


def split_rotary(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``qkv [B, T, (H + 2·G)·K]`` → rotated Q ``[B, T, H, K]`` and K ``[B, T, G, K]``, and V like
    K, in the place of ``qkv``, which nobody else may read or have kept; ``cos``, ``sin`` fp32
    ``[T, K]``, halves repeated. K is a multiple of 16."""
    if not torch.is_grad_enabled():
        return _rotated(qkv, cos, sin, heads, kv_heads)
    q, k, v = _SplitRotary.apply(qkv, cos, sin, heads, kv_heads)  # type: ignore[no-untyped-call]
    return q, k, v


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return swiglu_backward(grad.contiguous(), all_pass(gate_up), gate_up, 1)


class _HadamardRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int) -> Tensor:
        ctx.block = block
        return hadamard_backward(x, all_pass(x), block)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return hadamard_rows(grad, ctx.block), None


class _SplitRotary(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotated(qkv, cos, sin, heads, kv_heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = (grad.contiguous() for grad in grads)
        return join_rotary(q, k, v, *ctx.saved_tensors), None, None, None, None


def _rotated(
    qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    rotary_(qkv, cos, sin, heads, kv_heads)
    of_all = qkv.view(*qkv.shape[:2], heads + 2 * kv_heads, cos.shape[1])
    q, k, v = torch.split(of_all, [heads, kv_heads, kv_heads], dim=2)
    return q, k, v


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)
