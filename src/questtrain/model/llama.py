"""Llama as QuEST trains it: every variant, BF16 included, is this one code path.

Pre-norm blocks with RMSNorm, rotary attention and SwiGLU; by default no biases, and untied
embedding and head (quest.md, "Models and training"). The settings of `ModelConfig` make it any of
the family: fewer heads of keys and values, heads of another width, tied embeddings, biases of Q, K
and V, norms of Q and K, scaled rotary frequencies. The blocks' seven linear layers are
`QuantLinear`; embedding, norms and LM head are never quantized.

Shape suffixes: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from questtrain.config import (
    ModelConfig,
    QuantConfig,
    intermediate_size,
    is_skipped,
    kv_size,
    parse_bits,
    query_size,
)
from questtrain.model.attention import (
    HeadNorm,
    HeadNorms,
    Heads,
    causal_attention,
    next_angles,
)
from questtrain.model.cache import Cache, CacheLayer
from questtrain.model.recompute import recomputed
from questtrain.model.rotary import Rotary
from questtrain.quant import QuantLinear


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions; heads of queries may share keys and
    values."""

    def __init__(self, config: ModelConfig, layer: int, linear: LinearFactory) -> None:
        super().__init__()
        size, prefix = config.hidden_size, f"layers.{layer}.attention"
        of_query, of_kv, bias = query_size(config), kv_size(config), config.qkv_bias
        self.heads = Heads.of(config)
        self.q_proj = linear(size, of_query, f"{prefix}.q_proj", bias)
        self.k_proj = linear(size, of_kv, f"{prefix}.k_proj", bias)
        self.v_proj = linear(size, of_kv, f"{prefix}.v_proj", bias)
        self.o_proj = linear(of_query, size, f"{prefix}.o_proj")
        if config.qk_norm:
            self.q_norm = HeadNorm(self.heads.width, eps=config.norm_eps)
            self.k_norm = HeadNorm(self.heads.width, eps=config.norm_eps)
        self.has_norms = config.qk_norm

    @property
    def norms(self) -> HeadNorms:
        """Of the heads of Q and K, where they have some."""
        return (self.q_norm, self.k_norm) if self.has_norms else ()

    def forward(self, x_BTD: Tensor, rotary: Rotary, cache: CacheLayer | None) -> Tensor:
        qkv = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        out: Tensor = self.o_proj(causal_attention(qkv, self.heads, rotary, cache, self.norms))
        return out


class FeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) · up(x))``."""

    def __init__(self, config: ModelConfig, layer: int, linear: LinearFactory) -> None:
        super().__init__()
        size, width, prefix = config.hidden_size, intermediate_size(config), f"layers.{layer}.mlp"
        self.gate_proj = linear(size, width, f"{prefix}.gate_proj")
        self.up_proj = linear(size, width, f"{prefix}.up_proj")
        self.down_proj = linear(width, size, f"{prefix}.down_proj")

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out


class Block(nn.Module):
    """One transformer block; the residual stream stays in the embedding's dtype (fp32)."""

    def __init__(self, config: ModelConfig, layer: int, linear: LinearFactory) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, layer, linear)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = FeedForward(config, layer, linear)
        self.recomputes_gate_up = False

    def products(self) -> dict[str, tuple[nn.Linear, ...]]:
        """The linear layers by product: those that share an input can be one."""
        attention, mlp = self.attention, self.mlp
        return {
            "qkv": (attention.q_proj, attention.k_proj, attention.v_proj),
            "o": (attention.o_proj,),
            "gate_up": (mlp.gate_proj, mlp.up_proj),
            "down": (mlp.down_proj,),
        }

    def forward(self, x_BTD: Tensor, rotary: Rotary, cache: CacheLayer | None) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, cache)
        if self.recomputes_gate_up:
            return x_BTD + recomputed(self._feed_forward, x_BTD)
        return x_BTD + self._feed_forward(x_BTD)

    def _feed_forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.mlp_norm(x_BTD))
        return out


class LinearFactory:
    """Makes the blocks' linear layers: quantized, unless ``quant.skip`` names the layer."""

    def __init__(self, bits: str, quant: QuantConfig) -> None:
        self.bits = parse_bits(bits)
        self.quant = quant

    def __call__(
        self, in_features: int, out_features: int, name: str, bias: bool = False
    ) -> nn.Linear:
        bits = parse_bits("bf16") if is_skipped(name, self.quant.skip) else self.bits
        return QuantLinear(in_features, out_features, bias, bits=bits, method=self.quant)


class TiedHead(nn.Module):
    """A head whose weight is the embedding's: it has none of its own, to save or to train."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple it is no submodule: its weight has one name

    @property
    def weight(self) -> Tensor:
        return self._embedding[0].weight

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.linear(x_BTD, self.weight)


class Llama(nn.Module):
    """Token ids ``[B, T]`` → logits ``[B, T, V]``."""

    def __init__(self, config: ModelConfig, bits: str, quant: QuantConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size must be known when the model is built")
        self.config = config
        self._recomputes = False
        linear = LinearFactory(bits, quant)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i, linear) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = (
            TiedHead(self.embed_tokens)
            if config.tie_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    def forward(
        self, tokens_BT: Tensor, cache: Cache | None = None, logits_to_keep: int = 0
    ) -> Tensor:
        """With a ``cache``, ``tokens_BT`` continue what the cache holds, and are added to it.

        ``logits_to_keep``: of the last so many positions only, 0 for all.
        """
        x_BTD = self.hidden(tokens_BT, cache)[:, -logits_to_keep:]
        logits_BTV: Tensor = self.lm_head(self.norm(x_BTD))
        return logits_BTV

    def hidden(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """What the last norm and the head are given: ``[B, T, D]``."""
        rotary = next_angles(self.config, tokens_BT, cache)
        x_BTD: Tensor = self.embed_tokens(tokens_BT)
        for layer, block in enumerate(self.layers):
            given = (x_BTD, rotary, None if cache is None else cache.layer(layer))
            x_BTD = recomputed(block, *given) if self._recomputes else block(*given)
        if cache is not None:
            cache.advance(tokens_BT.shape[1])
        return x_BTD

    def recompute(self, what: str) -> None:
        """Let backwards compute ``blocks`` again, ``gate_up`` (all that follows a block's
        attention), or ``none``."""
        self._recomputes = what == "blocks"
        for block in self.layers:
            assert isinstance(block, Block)
            block.recomputes_gate_up = what == "gate_up"

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """N(0, init_std), with the blocks' output projections scaled down by √(2·layers); norms
        are one, biases zero. Learned scales are left alone: the first operands initialise them."""
        std = self.config.init_std
        output_std = std / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith(".bias"):
                parameter.zero_()
            elif name.endswith(".weight"):
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, output_std if is_output else std, generator=generator)
