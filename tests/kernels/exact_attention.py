"""What `decode_attention` is compared with."""

import torch
import torch.nn.functional as F
from torch import Tensor


def exact_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation in fp32, a new cache, and attention in float64: y, keys, values."""
    batch, heads, _, width = keys.shape
    shape, of_q = (batch, heads, 1, width), (batch, q.shape[1] // width, 1, width)
    keys, values, place = keys.clone(), values.clone(), int(position)
    keys[:, :, place] = rotate(k.reshape(shape), cos, sin)[:, :, 0]
    values[:, :, place] = v.reshape(shape)[:, :, 0]
    seen = (
        cache[:, :, : place + 1].double().repeat_interleave(of_q[1] // heads, 1)
        for cache in (keys, values)
    )
    y = F.scaled_dot_product_attention(rotate(q.reshape(of_q), cos, sin).double(), *seen)
    return y.reshape(q.shape), keys, values


def exact_attention_of_each(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`exact_decode_attention` of each sequence by itself, at its position ``[B]``; NaN, and the
    cache as it is, where that is no place."""
    y, keys, values = torch.full(q.shape, torch.nan).double(), keys.clone(), values.clone()
    y = y.to(q.device)
    for index, place in enumerate(position.tolist()):
        if 0 <= place < keys.shape[2]:
            one = slice(index, index + 1)
            operands = (x[one] for x in (q, k, v, keys, values))
            results = exact_decode_attention(*operands, position[index], cos[index], sin[index])
            y[one], keys[one], values[one] = results
    return y, keys, values


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Of (first half, second half) pairs; products and sum are rounded one by one."""
    first, second = x.float().chunk(2, dim=-1)
    (cos_first, cos_second), (sin_first, sin_second) = cos.chunk(2), sin.chunk(2)
    halves = (first * cos_first - second * sin_first, second * cos_second + first * sin_second)
    return torch.cat(halves, -1).to(x.dtype)
