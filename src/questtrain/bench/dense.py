"""The BF16 rival of decoding: a Llama in as few products as the packed one has.

Q, K and V are one product, gate and up another; the residual addition waits for the next norm, so
that compiled the two are one kernel. Attention, embedding and head are the packed Llama's own.

Shape suffixes: B batch, T tokens, D hidden size, M = B·T rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.inference.packed_llama import StackedLlama
from questtrain.model import LayerCache, Llama, Rotary, causal_attention
from questtrain.model.llama import Block


class DenseBlock(nn.Module):
    """One transformer block of four products, with the weights of ``block``."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.num_heads = block.attention.num_heads
        self.attention_norm, self.mlp_norm = block.attention_norm, block.mlp_norm
        products = block.products()
        self.qkv, self.o = _stacked(products["qkv"]), block.attention.o_proj.weight
        self.gate_up, self.down = _stacked(products["gate_up"]), block.mlp.down_proj.weight

    def forward(
        self,
        x_MD: Tensor,
        added_MD: Tensor | None,
        batch: int,
        rotary: Rotary,
        cache: LayerCache | None,
    ) -> tuple[Tensor, Tensor]:
        x_BTD = x_MD if added_MD is None else x_MD + added_MD
        x_BTD = x_BTD.view(batch, x_MD.shape[0] // batch, -1)
        qkv = F.linear(self.attention_norm(x_BTD), self.qkv)
        q_BTD, k_BTD, v_BTD = qkv.chunk(3, dim=-1)
        y_BTD = causal_attention(q_BTD, k_BTD, v_BTD, self.num_heads, rotary, cache)
        x_BTD = x_BTD + F.linear(y_BTD, self.o)
        gate, up = F.linear(self.mlp_norm(x_BTD), self.gate_up).chunk(2, dim=-1)
        return x_BTD.flatten(0, 1), F.linear(F.silu(gate) * up, self.down).flatten(0, 1)


def stacked(model: Llama) -> StackedLlama:
    """The same Llama, of 16-bit weights, with `DenseBlock` as its blocks."""
    blocks = (DenseBlock(block) for block in model.layers if isinstance(block, Block))
    return StackedLlama(model, blocks)


def _stacked(linears: Sequence[nn.Linear]) -> nn.Parameter:
    weight = torch.cat([linear.weight.detach() for linear in linears])
    return nn.Parameter(weight, requires_grad=False)
