"""Causal attention with rotary positions: with a key/value cache, without, and with a backward.

Shape suffixes: B batch, T tokens, S tokens seen so far (cache included), D hidden size, H heads,
K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.config import ModelConfig
from questtrain.kernels.elementwise import split_rotary
from questtrain.kernels.ops.rotary import rotate
from questtrain.model.cache import StaticCache, StaticLayer
from questtrain.model.rotary import Rotary, rotary_angles


def causal_attention(
    q_BTD: Tensor,
    k_BTD: Tensor,
    v_BTD: Tensor,
    num_heads: int,
    rotary: Rotary,
    cache: StaticLayer | None = None,
) -> Tensor:
    """Splits heads, rotates, attends to the tokens so far, joins heads again: ``[B, T, D]``.

    Q, K and V may be column slices of one product. With a ``cache`` they continue what it holds,
    and are added to it.
    """
    if cache is not None and q_BTD.shape[1] == 1:
        y_BD = cache.attend_next(q_BTD[:, 0], k_BTD[:, 0], v_BTD[:, 0], rotary)
        if y_BD is not None:
            return y_BD.unsqueeze(1)
    q_BHTK = rotate(_split_heads(q_BTD, num_heads), *rotary)
    k_BHSK = rotate(_split_heads(k_BTD, num_heads), *rotary)
    v_BHSK, mask = _split_heads(v_BTD, num_heads), None
    if cache is not None:
        k_BHSK, v_BHSK, mask = cache.append(k_BHSK, v_BHSK)
    y_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=mask is None
    )
    return y_BHTK.transpose(1, 2).flatten(2)


def trained_attention(qkv_BT3D: Tensor, num_heads: int, rotary: Rotary) -> Tensor:
    """`causal_attention` of one product, without a cache: the rotation, in the product's place, and
    its backward are a kernel each. Heads are a multiple of 16 wide."""
    q, k, v = (part.transpose(1, 2) for part in split_rotary(qkv_BT3D, *rotary, num_heads))
    y_BHTK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y_BHTK.transpose(1, 2).flatten(2)


def next_angles(config: ModelConfig, tokens_BT: Tensor, cache: StaticCache | None = None) -> Rotary:
    """`rotary_angles` of ``tokens_BT``: from position 0, or from where the ``cache`` ends."""
    length = tokens_BT.shape[1]
    if cache is not None:
        return cache.rotary(length)
    return rotary_angles(config, torch.arange(length, device=tokens_BT.device))


def _split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    return x_BTD.view(*x_BTD.shape[:2], num_heads, -1).transpose(1, 2)
