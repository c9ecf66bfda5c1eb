"""Attention of one decoding step in plain torch: specification, and fallback without the kernel.

Shape suffixes: B batch, H heads, S places of the cache, K head width, D = H·K.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.kernels.checks import (
    check_cache,
    check_cached_operand,
    check_dense,
    check_matrix,
    check_multiple,
    check_scalar,
    check_vector,
)


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
    """Rotate ``q`` and ``k``, write k and v to the cache's place ``position``, attend to it and all
    before: ``[B, D]`` in q's dtype.

    ``q``, ``k``, ``v [B, D]`` bf16, fp16 or fp32, may be column slices; ``keys``, ``values
    [B, H, S, K]`` are updated; ``position`` int64 scalar; ``cos``, ``sin`` fp32 ``[K]`` with halves
    repeated. What is rotated is rounded to its dtype, the rest is fp32. Without a place
    ``position`` the result is NaN and the cache stays as it is.
    """
    check_decode("decode_attention", q, k, v, keys, values, position, cos, sin)
    heads_BH1K = (q.shape[0], keys.shape[1], 1, keys.shape[3])
    q_BH1K = rotate(q.reshape(heads_BH1K), cos, sin).float()
    capacity = keys.shape[2]
    fits = (position >= 0) & (position < capacity)
    place = position.clamp(0, capacity - 1).reshape(1)
    for cache, new in ((keys, rotate(k.reshape(heads_BH1K), cos, sin)), (values, v)):
        old = cache.index_select(2, place)
        cache.index_copy_(2, place, torch.where(fits, new.reshape(heads_BH1K), old))
    seen_S = None
    if position.device.type == "cpu":  # the host knows it: what lies beyond is not even read
        keys, values = (cache[:, :, : int(place) + 1] for cache in (keys, values))
    else:
        seen_S = torch.arange(capacity, device=keys.device) <= position
        keys, values = (torch.where(seen_S.unsqueeze(-1), cache, 0.0) for cache in (keys, values))
        seen_S = seen_S.unsqueeze(0)
    y_BH1K = F.scaled_dot_product_attention(q_BH1K, keys.float(), values.float(), attn_mask=seen_S)
    return torch.where(fits, y_BH1K, math.nan).to(q.dtype).reshape(q.shape)


def rotary_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """Q and K of one product, ``qkv [B, T, 3·H·K]``, rotated in place by the angles of their
    positions, ``cos``, ``sin`` fp32 ``[T, K]`` with halves repeated."""
    check_rotary("rotary_", qkv, cos, sin, heads)
    turned = qkv.view(*qkv.shape[:2], 3, heads, cos.shape[1])[:, :, :2]
    turned.copy_(rotate(turned, cos[:, None, None], sin[:, None, None]))


def join_rotary(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The way back of gradients: those of Q and K ``[B, T, H, K]`` turned back, beside V's in ``[B,
    T, 3·H·K]``."""
    check_join("join_rotary", q, k, v, cos, sin)
    cos, sin = cos.unsqueeze(1), -sin.unsqueeze(1)
    return torch.stack((rotate(q, cos, sin), rotate(k, cos, sin), v), dim=2).flatten(2)


def check_rotary(op: str, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    if qkv.dim() != 3 or heads < 1 or qkv.shape[2] % (3 * heads):
        raise ValueError(
            f"{op}: qkv must be [batch, tokens, 3·{heads}·width], not {list(qkv.shape)}"
        )
    check_dense(op, "qkv", qkv, qkv)
    _check_angles(op, cos, sin, qkv, qkv.shape[2] // (3 * heads))


def check_join(op: str, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> None:
    for name, part in (("q", q), ("k", k), ("v", v)):
        if part.dim() != 4 or part.shape != q.shape:
            raise ValueError(
                f"{op}: {name} must be [batch, tokens, heads, width] like q, not {list(part.shape)}"
            )
        check_dense(op, name, part, q)
    _check_angles(op, cos, sin, q, q.shape[3])


def _check_angles(op: str, cos: Tensor, sin: Tensor, x: Tensor, width: int) -> None:
    """Of the positions of ``x [B, T, …]``; the kernel takes 16 elements of a head at once."""
    check_multiple(op, "the head width", width, 16)
    for name, angles in (("cos", cos), ("sin", sin)):
        check_matrix(op, name, angles, x.shape[1], width, (torch.float32,), x)


def check_decode(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> None:
    for name, operand in (("q", q), ("k", k), ("v", v)):
        check_cached_operand(op, name, operand, q)
    for name, cache in (("keys", keys), ("values", values)):
        check_cache(op, name, cache, keys, q)
    check_scalar(op, "position", position, torch.int64, q)
    for name, angles in (("cos", cos), ("sin", sin)):
        check_vector(op, name, angles, keys.shape[3], (torch.float32,), q)


def rotate(x_K: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on (first half, second half) pairs of the last dimension ``K``,
    computed in fp32; ``cos``, ``sin`` with halves repeated, of a shape that broadcasts."""
    x = x_K.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x_K.dtype)
