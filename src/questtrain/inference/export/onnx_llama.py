"""A Llama as an ONNX graph of plain operators: `questtrain.model.llama` with a growing cache.

Inputs, outputs and their names are those that optimum gives to models of text generation:

- ``input_ids`` int64 ``[B, T]``: the tokens that follow what the cache holds,
- ``attention_mask`` int64 ``[B, P + T]``: 0 where a sequence is padded, else 1,
- ``position_ids`` int64 ``[B, T]``: rotary positions,
- ``past_key_values.N.key`` and ``.value`` fp32 ``[B, G, P, K]`` of G heads, K wide; P may be 0,
- ``logits`` fp32 ``[B, T, V]``, ``present.N.key`` and ``.value`` ``[B, G, P + T, K]``.
"""

from __future__ import annotations

import torch
from onnx import TensorProto

from questtrain.config import head_dim, num_kv_heads
from questtrain.inference.export.onnx_graph import Graph
from questtrain.inference.export.onnx_linear import LinearWriter
from questtrain.inference.export.source import Source
from questtrain.model.rotary import rotary_frequencies

BATCH, LENGTH = "batch_size", "sequence_length"
PAST, TOTAL = "past_sequence_length", "past_sequence_length + sequence_length"

LOWEST = torch.finfo(torch.float32).min
"""What is added to scores of tokens that are not to be seen. Finite: a row of nothing else, as a
padded position has, stays a number."""

Pair = tuple[str, str]
"""Keys and values."""


class LlamaWriter:
    """Writes the model of a run, block by block. Embedding, head and values are stored in
    ``dtype``; what ``packs`` says is `LinearWriter`'s."""

    def __init__(self, graph: Graph, source: Source, dtype: torch.dtype, packs: bool) -> None:
        self._graph, self._source = graph, source
        self._config = source.config.model
        self._dtype = dtype
        self._linear = LinearWriter(graph, source, dtype, packs)
        self._heads, self._kv_heads = self._config.num_heads, num_kv_heads(self._config)
        self._width = head_dim(self._config)

    def write(self) -> None:
        """All nodes, from inputs to outputs."""
        graph = self._graph
        tokens = graph.input("input_ids", torch.int64, (BATCH, LENGTH))
        mask = graph.input("attention_mask", torch.int64, (BATCH, TOTAL))
        positions = graph.input("position_ids", torch.int64, (BATCH, LENGTH))
        pasts = [self._past(layer) for layer in range(self._config.num_layers)]
        rotary = self._rotary(positions)
        unseen = self._unseen(tokens, mask, pasts[0][0])
        presents = []
        x = self._embedding(tokens)
        for layer, past in enumerate(pasts):
            name = f"layers.{layer}"
            x, present = self._block(name, x, rotary, unseen, past)
            presents.append(present)
        logits = self._head(self._norm("norm", x))
        graph.output("logits", logits, (BATCH, LENGTH, int(self._config.vocab_size or 0)))
        shape = (BATCH, self._kv_heads, TOTAL, self._width)
        for layer, present in enumerate(presents):
            for what, value in zip(("key", "value"), present, strict=True):
                graph.output(f"present.{layer}.{what}", value, shape)

    def _past(self, layer: int) -> Pair:
        shape = (BATCH, self._kv_heads, PAST, self._width)
        key, value = (f"past_key_values.{layer}.{what}" for what in ("key", "value"))
        graph = self._graph
        return graph.input(key, torch.float32, shape), graph.input(value, torch.float32, shape)

    def _rotary(self, positions: str) -> Pair:
        """cos and sin ``[B, 1, T, K]`` of the positions' angles, halves repeated."""
        graph = self._graph
        places = graph.op("Cast", positions, to=TensorProto.FLOAT)
        places = graph.op("Unsqueeze", places, graph.sizes(1, 3))
        angles = graph.op("Mul", places, graph.constant(rotary_frequencies(self._config)))
        angles = graph.op("Concat", angles, angles, axis=-1)
        return graph.op("Cos", angles), graph.op("Sin", angles)

    def _unseen(self, tokens: str, mask: str, past: str) -> str:
        """What is added to scores ``[B, 1, T, P + T]``: 0 for tokens so far that are no padding,
        else `LOWEST`."""
        graph = self._graph
        start, length = self._size(past, 2), self._size(tokens, 1)
        end, zero = graph.op("Add", start, length), graph.number(0, torch.int64)
        one = graph.number(1, torch.int64)
        queries = graph.op("Unsqueeze", graph.op("Range", start, end, one), graph.sizes(1))
        causal = graph.op("LessOrEqual", graph.op("Range", zero, end, one), queries)
        not_padded = graph.op("Cast", mask, to=TensorProto.BOOL)
        seen = graph.op("And", graph.op("Unsqueeze", not_padded, graph.sizes(1, 2)), causal)
        return graph.op("Where", seen, graph.number(0.0), graph.number(LOWEST))

    def _size(self, value: str, axis: int) -> str:
        """One of the sizes of a value, as a scalar."""
        graph = self._graph
        return graph.op("Gather", graph.op("Shape", value), graph.number(axis, torch.int64))

    def _embedding(self, tokens: str) -> str:
        graph = self._graph
        values = self._source.tensor("embed_tokens.weight").to(self._dtype)
        x = graph.op("Gather", graph.tensor("embed_tokens.weight", values), tokens)
        return x if values.dtype == torch.float32 else graph.op("Cast", x, to=TensorProto.FLOAT)

    def _block(self, name: str, x: str, rotary: Pair, unseen: str, past: Pair) -> tuple[str, Pair]:
        graph = self._graph
        with graph.scope(f"{name}.attention"):
            normed = self._norm(f"{name}.attention_norm", x)
            y, present = self._attention(f"{name}.attention", normed, rotary, unseen, past)
            x = graph.op("Add", x, y)
        with graph.scope(f"{name}.mlp"):
            normed = self._norm(f"{name}.mlp_norm", x)
            x = graph.op("Add", x, self._feed_forward(f"{name}.mlp", normed))
        return x, present

    def _norm(self, name: str, x: str) -> str:
        """RMSNorm of the last dimension."""
        graph = self._graph
        mean = graph.op("ReduceMean", graph.op("Mul", x, x), graph.sizes(-1), keepdims=1)
        root = graph.op("Sqrt", graph.op("Add", mean, graph.number(self._config.norm_eps)))
        weight = graph.tensor(f"{name}.weight", self._source.tensor(f"{name}.weight"))
        return graph.op("Mul", graph.op("Div", x, root), weight)

    def _attention(
        self, name: str, x: str, rotary: Pair, unseen: str, past: Pair
    ) -> tuple[str, Pair]:
        graph = self._graph
        q, k, v = (self._linear(f"{name}.{which}_proj", x) for which in "qkv")
        q, k, v = self._split(q, self._heads), self._split(k, self._kv_heads), self._split(v, -1)
        if self._config.qk_norm:
            q, k = self._norm(f"{name}.q_norm", q), self._norm(f"{name}.k_norm", k)
        q, k = self._rotated(q, rotary), self._rotated(k, rotary)
        key = graph.op("Concat", past[0], k, axis=2)
        value = graph.op("Concat", past[1], v, axis=2)
        y = self._attend(q, key, value, unseen)
        joined = graph.op("Transpose", y, perm=[0, 2, 1, 3])
        joined = graph.op("Reshape", joined, graph.sizes(0, 0, self._heads * self._width))
        return self._linear(f"{name}.o_proj", joined), (key, value)

    def _split(self, x: str, heads: int) -> str:
        """``[B, T, heads·K] → [B, heads, T, K]``; -1: as many as there are."""
        graph = self._graph
        split = graph.op("Reshape", x, graph.sizes(0, 0, heads, self._width))
        return graph.op("Transpose", split, perm=[0, 2, 1, 3])

    def _rotated(self, x: str, rotary: Pair) -> str:
        graph, half = self._graph, self._width // 2
        low, high = graph.ops("Split", (x, graph.sizes(half, half)), 2, axis=-1)
        turned = graph.op("Concat", graph.op("Neg", high), low, axis=-1)
        cos, sin = rotary
        return graph.op("Add", graph.op("Mul", x, cos), graph.op("Mul", turned, sin))

    def _attend(self, q: str, key: str, value: str, unseen: str) -> str:
        """``[B, H, T, K]``. Heads of queries that share keys and values are rows of one head."""
        graph = self._graph
        q = graph.op("Mul", q, graph.number(self._width**-0.5))
        keys = graph.op("Transpose", key, perm=[0, 1, 3, 2])
        scores = graph.op("MatMul", self._regrouped(q, self._kv_heads), keys)
        scores = graph.op("Add", self._regrouped(scores, self._heads), unseen)
        shares = graph.op("Softmax", scores, axis=-1)
        y = graph.op("MatMul", self._regrouped(shares, self._kv_heads), value)
        return self._regrouped(y, self._heads)

    def _regrouped(self, x: str, heads: int) -> str:
        """``[B, heads of one kind, rows, ·] → [B, heads of the other, rows, ·]``."""
        if self._heads == self._kv_heads:
            return x
        return self._graph.op("Reshape", x, self._graph.sizes(0, heads, -1, 0))

    def _feed_forward(self, name: str, x: str) -> str:
        graph = self._graph
        gate, up = self._linear(f"{name}.gate_proj", x), self._linear(f"{name}.up_proj", x)
        silu = graph.op("Mul", gate, graph.op("Sigmoid", gate))
        return self._linear(f"{name}.down_proj", graph.op("Mul", silu, up))

    def _head(self, x: str) -> str:
        graph = self._graph
        if self._config.tie_embeddings:
            weight = graph.op("Transpose", "embed_tokens.weight", perm=[1, 0])
            if self._dtype != torch.float32:
                weight = graph.op("Cast", weight, to=TensorProto.FLOAT)
        else:
            values = self._source.tensor("lm_head.weight").t().to(self._dtype)
            weight = self._linear.float_tensor("lm_head.weight", values)
        return graph.op("MatMul", x, weight)
