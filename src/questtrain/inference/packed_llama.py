"""A Llama whose blocks run on integers, with as few kernels a block as the operations allow.

The structure is `questtrain.model.Llama`'s; three things are fused. Each norm (with the residual
addition before it), and SiLU·up, quantizes what it makes; Q, K and V are one product, gate and up
another; and the residual addition after a product waits for the next norm:

    + residual, norm, quantize → qkv → rotary, attention → quantize → o
    + residual, norm, quantize → gate and up → SiLU·up, quantize → down

Shape suffixes: B batch, T tokens, D hidden size, V vocabulary, M = B·T rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from questtrain.kernels import (
    RowFormat,
    add_rmsnorm_linear,
    hadamard_linear,
    rmsnorm_linear,
    swiglu_linear,
)
from questtrain.model import Cache, LayerCache, Llama, Rotary, causal_attention
from questtrain.model.attention import next_angles
from questtrain.model.llama import Block
from questtrain.quant import PackedLinear
from questtrain.quant.packed_weight import IntegerWeight

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")

Linear = TypeVar("Linear", bound=nn.Module)


class PackedBlock(nn.Module):
    """One transformer block on packed weights.

    The residual stream is passed on as two summands, ``x [M, D]`` and what the block before added
    to it, so that their sum is made inside the next norm's kernel.
    """

    attention_norm: Tensor
    mlp_norm: Tensor

    def __init__(self, block: Block, linears: Mapping[str, PackedLinear]) -> None:
        super().__init__()
        self.num_heads = block.attention.num_heads
        self.attention_eps, self.mlp_eps = _eps(block.attention_norm), _eps(block.mlp_norm)
        self.register_buffer("attention_norm", block.attention_norm.weight.detach().clone())
        self.register_buffer("mlp_norm", block.mlp_norm.weight.detach().clone())
        self.qkv = IntegerWeight.stacked([linears[name].weight for name in ATTENTION[:3]])
        self.o = linears["o_proj"].weight
        self.gate_up = IntegerWeight.stacked([linears[name].weight for name in MLP[:2]])
        self.down = linears["down_proj"].weight
        self.qkv_format = linears["q_proj"].activation
        self.o_format = linears["o_proj"].activation
        self.gate_up_format = linears["gate_proj"].activation
        self.down_format = linears["down_proj"].activation

    def forward(
        self,
        x_MD: Tensor,
        added_MD: Tensor | None,
        batch: int,
        rotary: Rotary,
        cache: LayerCache | None,
    ) -> tuple[Tensor, Tensor]:
        rows = x_MD.shape[0]
        qkv, o = self.qkv.matrix(rows), self.o.matrix(rows)
        gate_up, down = self.gate_up.matrix(rows), self.down.matrix(rows)
        norm = (self.attention_norm, self.attention_eps)
        if added_MD is None:
            y = rmsnorm_linear(x_MD, *norm, self.qkv_format, qkv)
        else:
            x_MD, y = add_rmsnorm_linear(added_MD, x_MD, *norm, self.qkv_format, qkv)
        q_BTD, k_BTD, v_BTD = y.view(batch, rows // batch, 3, -1).unbind(2)
        y_BTD = causal_attention(q_BTD, k_BTD, v_BTD, self.num_heads, rotary, cache)
        added_MD = hadamard_linear(y_BTD.flatten(0, 1), self.o_format, o)

        norm = (self.mlp_norm, self.mlp_eps)
        x_MD, y = add_rmsnorm_linear(added_MD, x_MD, *norm, self.gate_up_format, gate_up)
        return x_MD, swiglu_linear(y, self.down_format, down)


class StackedLlama(nn.Module):
    """Token ids ``[B, T]`` → logits ``[B, T, V]``, as `Llama`, by other blocks: they take and give
    the residual stream as two summands, and the batch size beside them.

    Embedding, norms, head and the residual stream are in one dtype, the embedding's.
    """

    def __init__(self, model: Llama, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.config = model.config
        self.embed_tokens = copy.deepcopy(model.embed_tokens)
        self.layers = nn.ModuleList(blocks)
        self.norm = copy.deepcopy(model.norm)
        self.lm_head = copy.deepcopy(model.lm_head)

    def forward(
        self, tokens_BT: Tensor, cache: Cache | None = None, logits_to_keep: int = 0
    ) -> Tensor:
        """``cache`` and ``logits_to_keep`` as in `Llama`."""
        batch, length = tokens_BT.shape
        rotary = next_angles(self.config, tokens_BT, cache)
        x_MD, added_MD = self.embed_tokens(tokens_BT).flatten(0, 1), None
        for layer, block in enumerate(self.layers):
            of_layer = None if cache is None else cache.layer(layer)
            x_MD, added_MD = block(x_MD, added_MD, batch, rotary, of_layer)
        if cache is not None:
            cache.advance(length)
        if added_MD is not None:
            x_MD = x_MD + added_MD
        x_BTD = x_MD.view(batch, length, -1)[:, -logits_to_keep:]
        logits_BTV: Tensor = self.lm_head(self.norm(x_BTD))
        return logits_BTV


class PackedLlama(StackedLlama):
    """A `Llama` on packed weights."""

    def __init__(self, model: Llama, linears: Mapping[str, PackedLinear]) -> None:
        """``linears`` holds every block's seven layers, by their names in ``model``."""
        super().__init__(
            model,
            (
                PackedBlock(block, _of_block(linears, layer))
                for layer, block in enumerate(model.layers)
                if isinstance(block, Block)
            ),
        )


def can_fuse(model: Llama, linears: Mapping[str, nn.Module]) -> bool:
    """Whether every block's layers are integer products that share their inputs' format."""
    for layer in range(len(model.layers)):
        try:
            block = _of_block(linears, layer)
        except KeyError:
            return False
        integer = {name: each for name, each in block.items() if isinstance(each, PackedLinear)}
        if len(integer) < len(block):
            return False
        for names in (ATTENTION[:3], MLP[:2]):
            if len({_kind(integer[name]) for name in names}) > 1:
                return False
    return True


def _kind(linear: PackedLinear) -> tuple[RowFormat, int, bool]:
    return linear.activation, linear.weight.levels, linear.weight.is_packed


def _of_block(linears: Mapping[str, Linear], layer: int) -> dict[str, Linear]:
    """A block's layers by their last name; KeyError where one is missing."""
    groups: Sequence[tuple[str, Sequence[str]]] = (("attention", ATTENTION), ("mlp", MLP))
    return {
        name: linears[f"layers.{layer}.{group}.{name}"] for group, names in groups for name in names
    }


def _eps(norm: nn.RMSNorm) -> float:
    assert norm.eps is not None
    return norm.eps
