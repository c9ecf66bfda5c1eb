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
    shape = (q.shape[0], keys.shape[1], 1, keys.shape[3])
    keys, values, place = keys.clone(), values.clone(), int(position)
    keys[:, :, place] = rotate(k.reshape(shape), cos, sin)[:, :, 0]
    values[:, :, place] = v.reshape(shape)[:, :, 0]
    seen = (cache[:, :, : place + 1].double() for cache in (keys, values))
    y = F.scaled_dot_product_attention(rotate(q.reshape(shape), cos, sin).double(), *seen)
    return y.reshape(q.shape), keys, values


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Of (first half, second half) pairs; products and sum are rounded one by one."""
    first, second = x.float().chunk(2, dim=-1)
    (cos_first, cos_second), (sin_first, sin_second) = cos.chunk(2), sin.chunk(2)
    halves = (first * cos_first - second * sin_first, second * cos_second + first * sin_second)
    return torch.cat(halves, -1).to(x.dtype)
