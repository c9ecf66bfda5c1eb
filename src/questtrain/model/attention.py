"""Causal attention with rotary positions, with a key/value cache or without: every model's.

Shape suffixes: B batch, T tokens, S tokens seen so far (cache included), D hidden size, H heads,
K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.config import ModelConfig
from questtrain.kernels.ops.rotary import rotate as rotate_by
from questtrain.model.cache import Cache, LayerCache

Rotary = tuple[Tensor, Tensor]


def causal_attention(
    q_BTD: Tensor,
    k_BTD: Tensor,
    v_BTD: Tensor,
    num_heads: int,
    rotary: Rotary,
    cache: LayerCache | None = None,
) -> Tensor:
    """Splits heads, rotates, attends to the tokens so far, joins heads again: ``[B, T, D]``.

    ``rotary`` is cos and sin, fp32 ``[T, K]``. Q, K and V may be column slices of one product. With
    a ``cache`` they continue what it holds, and are added to it.
    """
    if cache is not None and q_BTD.shape[1] == 1:
        y_BD = cache.attend_next(q_BTD[:, 0], k_BTD[:, 0], v_BTD[:, 0], rotary)
        if y_BD is not None:
            return y_BD.unsqueeze(1)
    q_BHTK = rotate(_split_heads(q_BTD, num_heads), rotary)
    k_BHSK = rotate(_split_heads(k_BTD, num_heads), rotary)
    v_BHSK, mask = _split_heads(v_BTD, num_heads), None
    if cache is not None:
        k_BHSK, v_BHSK, mask = cache.append(k_BHSK, v_BHSK)
    y_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=mask, is_causal=mask is None
    )
    return y_BHTK.transpose(1, 2).flatten(2)


def next_angles(config: ModelConfig, tokens_BT: Tensor, cache: Cache | None) -> Rotary:
    """`rotary_angles` of ``tokens_BT``: from position 0, or from where the ``cache`` ends."""
    length = tokens_BT.shape[1]
    if cache is not None:
        return cache.rotary(length)
    return rotary_angles(config, torch.arange(length, device=tokens_BT.device))


def rotary_angles(config: ModelConfig, positions_T: Tensor) -> Rotary:
    """cos and sin of the rotary angles, fp32 ``[T, K]``, halves repeated."""
    width = config.hidden_size // config.num_heads
    even = torch.arange(0, width, 2, device=positions_T.device, dtype=torch.float32)
    angles = torch.outer(positions_T.float(), config.rope_theta ** (-even / width))
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHTK: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding of queries or keys, at the positions of ``rotary``."""
    return rotate_by(x_BHTK, *rotary)


def _split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    return x_BTD.view(*x_BTD.shape[:2], num_heads, -1).transpose(1, 2)
