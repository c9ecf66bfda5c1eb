"""Decoding at the speed of the device: on a GPU each step is the replay of one CUDA graph."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from questtrain.cuda_graph import GraphedCall
from questtrain.model import Llama, StackedLlama, StaticCache


class Decoder:
    """Continues ``batch_size`` sequences together, up to ``capacity`` tokens each.

    On CUDA the first step runs as it is, and warms up what it calls; the second is captured into a
    graph, which serves that step and all that follow, after a new `prefill` too. On a CPU steps run
    as they are.
    """

    def __init__(self, model: nn.Module, batch_size: int, capacity: int) -> None:
        """TypeError for a model that is neither a `Llama` nor a `PackedLlama`."""
        if not isinstance(model, Llama | StackedLlama):
            raise TypeError(f"a Decoder takes a Llama or a PackedLlama, not {type(model).__name__}")
        self.model, self.capacity, self.length = model, capacity, 0
        self.cache = StaticCache(model.config, batch_size, capacity, model.embed_tokens.weight)
        self._tokens_B = self.cache.position.new_zeros(batch_size)
        # A method of self would be a cycle: the cache's memory would wait for the collector.
        work = partial(_next_logits, model, self.cache)
        self._graph = GraphedCall(work, self._tokens_B, warm_calls=1)

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor) -> Tensor:
        """Start anew with ``tokens_BT``; the logits ``[B, V]`` of what follows their last."""
        self.length = 0
        self._reserve(tokens_BT.shape[1])
        self.cache.clear()
        logits_BTV: Tensor = self.model(tokens_BT, self.cache, logits_to_keep=1)
        return logits_BTV[:, -1]

    @torch.no_grad()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Add one token to each sequence; the logits ``[B, V]`` of what follows, in a buffer that
        the next step overwrites. Raises ValueError when the cache is full."""
        self._reserve(1)
        return self._graph(tokens_B.expand_as(self._tokens_B))

    def _reserve(self, tokens: int) -> None:
        if self.length + tokens > self.capacity:
            raise ValueError(
                f"{self.length + tokens} tokens do not fit into a cache of {self.capacity}"
            )
        self.length += tokens


def _next_logits(model: nn.Module, cache: StaticCache, tokens_B: Tensor) -> Tensor:
    logits_BTV: Tensor = model(tokens_B.unsqueeze(1), cache)
    return logits_BTV[:, -1]
