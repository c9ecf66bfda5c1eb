"""Causal attention with rotary positions: with a key/value cache, without, and with a backward.

Shape suffixes: B batch, T tokens, S tokens seen so far (cache included), H heads of queries, G of
keys and values (H is a multiple of G: H/G heads that follow each other share one), K head width,
D = H·K, E = G·K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.config import ModelConfig, head_dim, num_kv_heads
from questtrain.kernels.checks import FLOATING
from questtrain.kernels.elementwise import split_rotary
from questtrain.kernels.ops.rotary import rotate
from questtrain.model.cache import Cache, CacheLayer
from questtrain.model.rotary import Rotary, rotary_angles


class Heads(NamedTuple):
    """How one product's columns are heads."""

    queries: int
    keys: int
    width: int

    @classmethod
    def of(cls, config: ModelConfig) -> Heads:
        return cls(config.num_heads, num_kv_heads(config), head_dim(config))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Columns of Q, K and V."""
        return self.queries * self.width, self.keys * self.width, self.keys * self.width


class HeadNorm(nn.RMSNorm):
    """RMSNorm of each head by itself, in the weight's dtype, rounded once to that of the heads."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        heads = x_BTD.view(*x_BTD.shape[:-1], -1, self.weight.shape[0])
        return super().forward(heads.to(self.weight.dtype)).to(x_BTD.dtype).flatten(-2)


HeadNorms = tuple[nn.Module, ...] | nn.ModuleList
"""`HeadNorm` of Q and of K, or none."""


def causal_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    heads: Heads,
    rotary: Rotary,
    cache: CacheLayer | None = None,
    norms: HeadNorms = (),
) -> Tensor:
    """Splits heads, rotates, attends to the tokens so far, joins heads again: ``[B, T, D]``.

    Q ``[B, T, D]``, K and V ``[B, T, E]`` may be column slices of one product; ``norms`` are of
    the heads of Q and K, before they are rotated. With a ``cache`` they continue what it holds, and
    are added to it.
    """
    q_BTD, k_BTE, v_BTE = qkv
    if len(norms):
        q_BTD, k_BTE = norms[0](q_BTD), norms[1](k_BTE)
    if cache is not None and q_BTD.shape[1] == 1:
        y_BD = cache.attend_next(q_BTD[:, 0], k_BTE[:, 0], v_BTE[:, 0], rotary)
        if y_BD is not None:
            return y_BD.unsqueeze(1)
    q_BHTK = rotate(_split_heads(q_BTD, heads.queries), *rotary)
    k_BGSK = rotate(_split_heads(k_BTE, heads.keys), *rotary)
    return _attend(q_BHTK, k_BGSK, _split_heads(v_BTE, heads.keys), cache)


def product_attention(
    qkv_BTN: Tensor,
    heads: Heads,
    rotary: Rotary,
    norms: HeadNorms = (),
    cache: CacheLayer | None = None,
) -> Tensor:
    """`causal_attention` of one product ``[B, T, D + 2·E]`` that nobody else reads: the rotation,
    in the product's place, and its backward are a kernel each, but where heads are normalized
    before it, or are of a width or dtype that the kernel does not take. A step of one token, and a
    compiler, have one kernel for the rotation and what fills the ``cache`` as it is."""
    rotates = heads.width % 16 == 0 and qkv_BTN.dtype in FLOATING
    fuses = cache is not None and (qkv_BTN.shape[1] == 1 or torch.compiler.is_compiling())
    if len(norms) or fuses or not rotates:
        return causal_attention(split_columns(qkv_BTN, heads), heads, rotary, cache, norms)
    parts = split_rotary(qkv_BTN, *rotary, heads.queries, heads.keys)
    q_BHTK, k_BGSK, v_BGSK = (part.transpose(1, 2) for part in parts)
    return _attend(q_BHTK, k_BGSK, v_BGSK, cache)


def split_columns(qkv_BTN: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Q ``[B, T, D]``, K and V ``[B, T, E]`` of one product."""
    q_BTD, k_BTE, v_BTE = torch.split(qkv_BTN, list(heads.sizes), dim=-1)
    return q_BTD, k_BTE, v_BTE


def _attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, cache: CacheLayer | None) -> Tensor:
    """Attention, causal and to what the ``cache`` holds, heads joined: ``[B, T, D]``."""
    mask = None
    if cache is not None:
        k_BGSK, v_BGSK, mask = cache.append(k_BGSK, v_BGSK)
    shared_by = q_BHTK.shape[1] // k_BGSK.shape[1]
    if shared_by > 1 and not _shares_heads(q_BHTK, mask):
        k_BGSK, v_BGSK = (x.repeat_interleave(shared_by, 1) for x in (k_BGSK, v_BGSK))
        shared_by = 1
    y_BHTK = F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, mask, is_causal=mask is None, enable_gqa=shared_by > 1
    )
    return y_BHTK.transpose(1, 2).flatten(2)


def _shares_heads(q_BHTK: Tensor, mask: Tensor | None) -> bool:
    """Whether torch has a fused kernel for fewer heads of keys: on GPUs flash attention alone,
    which takes 16 bits and no mask. Its other form would hold all scores at once."""
    return not q_BHTK.is_cuda or (mask is None and q_BHTK.element_size() == 2)


def next_angles(config: ModelConfig, tokens_BT: Tensor, cache: Cache | None = None) -> Rotary:
    """`rotary_angles` of ``tokens_BT``: from position 0, or from where the ``cache`` ends."""
    length = tokens_BT.shape[1]
    if cache is not None:
        return cache.rotary(length)
    return rotary_angles(config, torch.arange(length, device=tokens_BT.device))


def _split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    return x_BTD.view(*x_BTD.shape[:2], num_heads, -1).transpose(1, 2)
