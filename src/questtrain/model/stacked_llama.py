"""A Llama of four products a block, of any kind: what training, serving and benchmarks run.

Q, K and V are one product, gate and up another. A norm, with the residual addition before it, and
SwiGLU belong to the product that follows, which fuses what its kind can (`Product`); biases of Q, K
and V are added to their product; the residual addition after a product waits for the next norm:

    + residual, norm → qkv → rotary, attention → o
    + residual, norm → gate and up → SwiGLU → down

The function is that of `questtrain.model.llama.Llama`. Shape suffixes: B batch, T tokens, D hidden
size, V vocabulary, M = B·T rows, K and N a product's width and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from questtrain.model.attention import next_angles, product_attention
from questtrain.model.cache import Cache, CacheLayer
from questtrain.model.llama import Block, Llama
from questtrain.model.recompute import recomputed
from questtrain.model.rotary import Rotary


class Product(Protocol):
    """``x·wᵀ`` of layers that share their input: w ``[N, K]`` is their weights, one below the
    other; biases are no part of it. All tensors are in the dtype of the residual stream."""

    def plain(self, x_MK: Tensor) -> Tensor:
        """``x·wᵀ``, ``[M, N]``."""

    def after_norm(
        self, x_MK: Tensor, added_MK: Tensor | None, norm_K: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """``x + added``, x itself without ``added``, and its RMSNorm of weight ``norm_K`` times wᵀ:
        ``[M, K]`` and ``[M, N]``."""

    def after_swiglu(self, gate_up: Tensor) -> Tensor:
        """``silu(gate)·up`` of ``[M, 2K]`` times wᵀ: ``[M, N]``."""


ProductOf = Callable[[Sequence[nn.Linear]], Product | None]
"""Makes the product of layers that share their input; None where it cannot."""


class StackedBlock(nn.Module):
    """One transformer block of four products; the residual stream comes and goes as two summands
    ``[M, D]``, the second None where nothing waits to be added.

    The norms' weights are those of ``block``.
    """

    def __init__(self, block: Block, products: Mapping[str, Product]) -> None:
        super().__init__()
        assert block.mlp_norm.eps is not None
        self.heads, self.eps = block.attention.heads, block.mlp_norm.eps
        self.attention_norm, self.mlp_norm = block.attention_norm.weight, block.mlp_norm.weight
        self.head_norms = nn.ModuleList(block.attention.norms)
        biases = [linear.bias for linear in block.products()["qkv"] if linear.bias is not None]
        self.qkv_biases = _Biases(biases) if biases else None
        self.qkv, self.o = products["qkv"], products["o"]
        self.gate_up, self.down = products["gate_up"], products["down"]
        self.recomputes_gate_up = False

    @classmethod
    def of(cls, block: Block, product_of: ProductOf) -> StackedBlock | None:
        """None where one of the block's products cannot be made, or has a bias that none adds."""
        products = {}
        for name, linears in block.products().items():
            product = product_of(linears)
            biases = [linear.bias for linear in linears if linear.bias is not None]
            if product is None or len(biases) not in (0, len(linears) if name == "qkv" else 0):
                return None
            products[name] = product
        return cls(block, products)

    def forward(
        self,
        x_MD: Tensor,
        added_MD: Tensor | None,
        batch: int,
        rotary: Rotary,
        cache: CacheLayer | None = None,
    ) -> tuple[Tensor, Tensor]:
        x_MD, added_MD = self._attend(x_MD, added_MD, batch, rotary, cache)
        if self.recomputes_gate_up:
            return recomputed(self._feed_forward, x_MD, added_MD)
        return self._feed_forward(x_MD, added_MD)

    def compile_parts(self) -> None:
        """`torch.compile` the block, or the two parts of which the backward computes one again."""
        if not self.recomputes_gate_up:
            self.compile(fullgraph=True, dynamic=False)
            return
        for name in ("_attend", "_feed_forward"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True, dynamic=False))

    def _attend(
        self,
        x_MD: Tensor,
        added_MD: Tensor | None,
        batch: int,
        rotary: Rotary,
        cache: CacheLayer | None,
    ) -> tuple[Tensor, Tensor]:
        """Up to what the attention adds."""
        x_MD, qkv = self.qkv.after_norm(x_MD, added_MD, self.attention_norm, self.eps)
        if self.qkv_biases is not None:
            qkv = self.qkv_biases(qkv)
        qkv = qkv.view(batch, -1, qkv.shape[1])
        y_BTD = product_attention(qkv, self.heads, rotary, self.head_norms, cache)
        return x_MD, self.o.plain(y_BTD.flatten(0, 1))

    def _feed_forward(self, x_MD: Tensor, added_MD: Tensor) -> tuple[Tensor, Tensor]:
        x_MD, gate_up = self.gate_up.after_norm(x_MD, added_MD, self.mlp_norm, self.eps)
        return x_MD, self.down.after_swiglu(gate_up)


class _Biases(nn.Module):
    """Adds the biases of layers to the columns of their product ``[M, N]``. Those of packed layers
    are buffers, and stay such."""

    def __init__(self, biases: Sequence[Tensor]) -> None:
        super().__init__()
        for index, bias in enumerate(biases):
            if isinstance(bias, nn.Parameter):
                self.register_parameter(str(index), bias)
            else:
                self.register_buffer(str(index), bias)

    def forward(self, product_MN: Tensor) -> Tensor:
        biases = [*self.parameters(), *self.buffers()]
        return product_MN + torch.cat(biases).to(product_MN.dtype)


def stacked_blocks(model: Llama, product_of: ProductOf) -> list[StackedBlock] | None:
    """The blocks of ``model``, stacked; None where a product of one of them cannot be made."""
    blocks = [
        StackedBlock.of(block, product_of) for block in model.layers if isinstance(block, Block)
    ]
    complete = [block for block in blocks if block is not None]
    return complete if len(complete) == len(model.layers) else None


class StackedLlama(nn.Module):
    """Token ids ``[B, T]`` → logits ``[B, T, V]``, as `Llama`, by ``blocks`` that do not train.

    Embedding, last norm and head are those of ``model``; the residual stream is in the dtype of the
    embedding.
    """

    def __init__(self, model: Llama, blocks: Iterable[StackedBlock]) -> None:
        super().__init__()
        self.config = model.config
        self.embed_tokens = model.embed_tokens
        self.layers = nn.ModuleList(blocks)
        self.norm, self.lm_head = model.norm, model.lm_head

    def forward(
        self, tokens_BT: Tensor, cache: Cache | None = None, logits_to_keep: int = 0
    ) -> Tensor:
        """``cache`` and ``logits_to_keep`` as in `Llama`."""
        x_BTD = self.hidden(tokens_BT, cache)[:, -logits_to_keep:]
        logits_BTV: Tensor = self.lm_head(self.norm(x_BTD))
        return logits_BTV

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """What the last norm and the head are given: ``[B, T, D]``."""
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
        x_BTD: Tensor = x_MD.view(batch, length, -1)
        return x_BTD
