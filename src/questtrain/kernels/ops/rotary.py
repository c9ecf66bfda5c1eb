"""Rotary position embeddings of training: Q and K turned in place, their gradients turned back."""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import check_dense, check_matrix, check_multiple
from questtrain.kernels.library import register


@register("rotary_(Tensor(a!) qkv, Tensor cos, Tensor sin, int heads, int kv_heads) -> ()")
def rotary_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> None:
    """Q and K of one product, ``qkv [B, T, (H + 2·G)·K]`` in bf16, fp16 or fp32 for H heads of Q
    and G of K and of V, rotated in place by the angles of their positions, ``cos``, ``sin`` fp32
    ``[T, K]`` with halves repeated; K is a multiple of 16. Raises RuntimeError for anything else.
    """
    op, all_heads = "rotary_", heads + 2 * kv_heads
    if qkv.dim() != 3 or heads < 1 or kv_heads < 1 or qkv.shape[2] % all_heads:
        raise RuntimeError(
            f"{op}: qkv must be [batch, tokens, ({heads} + 2·{kv_heads})·width], not"
            f" {list(qkv.shape)}"
        )
    check_dense(op, "qkv", qkv, qkv)
    _check_angles(op, cos, sin, qkv, qkv.shape[2] // all_heads)
    turned = qkv.view(*qkv.shape[:2], all_heads, cos.shape[1])[:, :, : heads + kv_heads]
    turned.copy_(rotate(turned, cos[:, None], sin[:, None]))


@register("join_rotary(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin) -> Tensor")
def join_rotary(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The way back of gradients: those of Q ``[B, T, H, K]`` and K ``[B, T, G, K]`` turned back,
    beside V's in ``[B, T, (H + 2·G)·K]``. Raises RuntimeError as `rotary_` does."""
    op = "join_rotary"
    if q.dim() != 4:
        raise RuntimeError(f"{op}: q must be [batch, tokens, heads, width], not {list(q.shape)}")
    check_dense(op, "q", q, q)
    batch, tokens, _, width = q.shape
    for name, part in (("k", k), ("v", v)):
        if part.dim() != 4 or part.shape != (batch, tokens, k.shape[2], width):
            raise RuntimeError(
                f"{op}: {name} must be [{batch}, {tokens}, heads, {width}] with heads the same for"
                f" k and v, not {list(part.shape)}"
            )
        check_dense(op, name, part, q)
    _check_angles(op, cos, sin, q, width)
    cos, sin = cos.unsqueeze(1), -sin.unsqueeze(1)
    return torch.cat((rotate(q, cos, sin), rotate(k, cos, sin), v), dim=2).flatten(2)


def rotate(x_K: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on (first half, second half) pairs of the last dimension ``K``,
    computed in fp32; ``cos``, ``sin`` with halves repeated, of a shape that broadcasts."""
    x = x_K.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x_K.dtype)


def _check_angles(op: str, cos: Tensor, sin: Tensor, x: Tensor, width: int) -> None:
    """Of the positions of ``x [B, T, …]``; the kernel takes 16 elements of a head at once."""
    check_multiple(op, "the head width", width, 16)
    for name, angles in (("cos", cos), ("sin", sin)):
        check_matrix(op, name, angles, x.shape[1], width, (torch.float32,), x)
