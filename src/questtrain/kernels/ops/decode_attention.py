"""Attention of one decoding step.

Shape suffixes: B batch, H heads of queries, G heads of keys and values, S places of the cache, K
head width, D = H·K.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.kernels import extension
from questtrain.kernels.checks import (
    check_cache,
    check_cached_operand,
    check_matrix,
    check_position,
    check_vector,
)
from questtrain.kernels.library import has_values, register
from questtrain.kernels.ops.rotary import rotate

HEAD_WIDTHS = (32, 64, 128, 256)
"""What the kernel has been compiled for."""


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

    ``q [B, D]``, ``k``, ``v [B, G·K]`` bf16, fp16 or fp32 may be column slices of one product; H
    is a multiple of G, and H/G heads of q that follow each other share one of k and v. ``keys`` and
    ``values [B, G, S, K]`` are updated; ``position`` is int64: how many tokens are cached; ``cos``,
    ``sin`` fp32 ``[K]`` are its rotary angles, halves repeated. What is rotated is rounded to its
    dtype, the rest is fp32. A position that is no place of the cache makes the result NaN and
    leaves the cache as it is. Raises RuntimeError for other arguments.

    A ``position [B]``, with angles ``[B, K]``, gives each sequence its own. A sequence's result is
    then the same bits in any batch: how its keys are shared out and in which order they are summed
    follows from its own position alone.
    """
    arguments = (q, k, v, keys, values, position, cos, sin)
    if keys.is_cuda and not attends_in_one_kernel(keys):
        return _reference(*arguments)
    return _op(*arguments)


def attends_in_one_kernel(keys: Tensor) -> bool:
    """Whether the kernel takes a cache of such ``keys [B, G, S, K]``."""
    return keys.is_cuda and keys.shape[-1] in HEAD_WIDTHS and extension.serves(keys.device)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    op = "decode_attention"
    for name, operand, like in (("q", q, q), ("k", k, k), ("v", v, k)):
        check_cached_operand(op, name, operand, like, q)
    for name, cache in (("keys", keys), ("values", values)):
        check_cache(op, name, cache, keys, q, k)
    check_position(op, "position", position, q.shape[0], q)
    for name, angles in (("cos", cos), ("sin", sin)):
        if position.dim():
            check_matrix(op, name, angles, q.shape[0], keys.shape[3], (torch.float32,), q)
        else:
            check_vector(op, name, angles, keys.shape[3], (torch.float32,), q)
    if position.dim():
        return _attend_each(q, k, v, keys, values, position, cos, sin)
    return _attend_all(q, k, v, keys, values, position, cos, sin)


def _attend_all(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """All sequences at one position."""
    batch, kv_heads, capacity, width = keys.shape
    q_BH1K = rotate(q.reshape(batch, q.shape[1] // width, 1, width), cos, sin).float()
    new_BG1K = (batch, kv_heads, 1, width)
    fits = (position >= 0) & (position < capacity)
    place = position.clamp(0, capacity - 1).reshape(1)
    for cache, new in ((keys, rotate(k.reshape(new_BG1K), cos, sin)), (values, v)):
        old = cache.index_select(2, place)
        cache.index_copy_(2, place, torch.where(fits, new.reshape(new_BG1K), old))
    seen_S = None
    if has_values(position):  # what lies beyond is not even read
        keys, values = (cache[:, :, : int(place) + 1] for cache in (keys, values))
    else:
        seen_S = torch.arange(capacity, device=keys.device) <= position
        keys, values = (torch.where(seen_S.unsqueeze(-1), cache, 0.0) for cache in (keys, values))
        seen_S = seen_S.unsqueeze(0)
    y_BH1K = _attention(q_BH1K, keys, values, seen_S)
    return torch.where(fits, y_BH1K, math.nan).to(q.dtype).reshape(q.shape)


def _attend_each(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> Tensor:
    """Each sequence at its own position."""
    batch, kv_heads, capacity, width = keys.shape
    cos_B1K, sin_B1K = cos.unsqueeze(1), sin.unsqueeze(1)
    q_BH1K = rotate(q.reshape(batch, q.shape[1] // width, width), cos_B1K, sin_B1K)
    q_BH1K = q_BH1K.float().unsqueeze(2)
    new_BGK = (batch, kv_heads, width)
    fits_B11 = ((position >= 0) & (position < capacity)).view(-1, 1, 1)
    places = torch.arange(batch, device=q.device), position.clamp(0, capacity - 1)
    for cache, new in ((keys, rotate(k.reshape(new_BGK), cos_B1K, sin_B1K)), (values, v)):
        old = cache[places[0], :, places[1]]
        cache[places[0], :, places[1]] = torch.where(fits_B11, new.reshape(new_BGK), old)
    if has_values(position):
        y_BH1K = torch.full_like(q_BH1K, math.nan)
        for index, place in enumerate(position.tolist()):
            if 0 <= place < capacity:
                of_one = slice(index, index + 1)
                of_keys, of_values = (cache[of_one, :, : place + 1] for cache in (keys, values))
                y_BH1K[of_one] = _attention(q_BH1K[of_one], of_keys, of_values, None)
        return y_BH1K.to(q.dtype).reshape(q.shape)
    seen_B11S = (torch.arange(capacity, device=q.device) <= position.unsqueeze(1))[:, None, None]
    seen_B1S1 = seen_B11S.transpose(2, 3)
    keys, values = (torch.where(seen_B1S1, cache, 0.0) for cache in (keys, values))
    y_BH1K = _attention(q_BH1K, keys, values, seen_B11S)
    return torch.where(fits_B11.unsqueeze(3), y_BH1K, math.nan).to(q.dtype).reshape(q.shape)


def _attention(q_BH1K: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """In fp32."""
    is_grouped = bool(q_BH1K.shape[1] != keys.shape[1])
    return F.scaled_dot_product_attention(
        q_BH1K, keys.float(), values.float(), attn_mask=mask, enable_gqa=is_grouped
    )


_op = register(
    "decode_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values,"
    " Tensor position, Tensor cos, Tensor sin) -> Tensor",
)(_reference)
