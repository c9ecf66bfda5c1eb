"""Decoding at the speed of the device: a cache of fixed size, one CUDA graph for each step.

The position is a tensor on the device, so that a step is the same work every time and can be
captured; nothing is decided on the host. `Llama` and `PackedLlama` are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from questtrain.inference.packed_llama import PackedLlama
from questtrain.model import Llama

CAPACITY_MULTIPLE = 16
"""The mask's rows are aligned for the attention kernels."""

WARM_UP_STEPS = 3


class StaticCache:
    """Keys and values ``[B, H, capacity, K]`` a layer, of which ``position`` are in use.

    ``position`` is an int64 scalar tensor. While ``empty`` is set, the tokens that come are the
    first ones, and attention needs none but them.
    """

    def __init__(self, model: Llama | PackedLlama, batch_size: int, capacity: int) -> None:
        config, like = model.config, model.embed_tokens.weight
        heads, width = config.num_heads, config.hidden_size // config.num_heads
        shape = (batch_size, heads, -(-capacity // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE, width)
        self.keys = [like.new_zeros(shape) for _ in range(config.num_layers)]
        self.values = [like.new_zeros(shape) for _ in range(config.num_layers)]
        self.position = torch.zeros((), dtype=torch.int64, device=like.device)
        self.empty = True

    def clear(self) -> None:
        """Forget everything; the buffers stay where they are."""
        self.position.zero_()
        self.empty = True

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """int64 ``[T]``: the positions that follow what is cached."""
        return self.position + torch.arange(tokens, device=device)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``[B, H, T, K]``; returns the whole buffers, or only what came if it is all."""
        index = self.positions(keys.shape[2], keys.device)
        self.keys[layer].index_copy_(2, index, keys)
        self.values[layer].index_copy_(2, index, values)
        return (keys, values) if self.empty else (self.keys[layer], self.values[layer])

    def causal_mask(self, queries: int, seen: int, device: torch.device) -> Tensor | None:
        """bool ``[T, capacity]``; None for the first tokens, which see each other only."""
        if self.empty:
            return None
        positions = self.positions(queries, device)
        return torch.arange(seen, device=device) <= positions.unsqueeze(-1)

    def advance(self, tokens: int) -> None:
        self.position += tokens


class Decoder:
    """Continues ``batch_size`` sequences together, up to ``capacity`` tokens each.

    On CUDA a step is captured into a graph when the first one is asked for; with ``compile`` it is
    compiled before. On a CPU steps run as they are.
    """

    def __init__(
        self, model: nn.Module, batch_size: int, capacity: int, compile: bool = True
    ) -> None:
        """TypeError for a model that is neither a `Llama` nor a `PackedLlama`."""
        if not isinstance(model, Llama | PackedLlama):
            raise TypeError(f"a Decoder takes a Llama or a PackedLlama, not {type(model).__name__}")
        self.model, self.capacity, self.length = model, capacity, 0
        self.cache = StaticCache(model, batch_size, capacity)
        self.device = self.cache.position.device
        self._tokens_B = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        self._logits_BV: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._run: Callable[[Tensor], Tensor] = self._next
        if compile and self.device.type == "cuda":
            self._run = torch.compile(self._next, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor) -> Tensor:
        """Start anew with ``tokens_BT``; the logits ``[B, V]`` of what follows their last."""
        self.length = 0
        self._reserve(tokens_BT.shape[1])
        self.cache.clear()
        logits_BTV: Tensor = self.model(tokens_BT, self.cache)
        self.cache.empty = False
        return logits_BTV[:, -1]

    @torch.no_grad()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Add one token to each sequence; the logits ``[B, V]`` of what follows, in a buffer that
        the next step overwrites. Raises ValueError when the cache is full."""
        self._reserve(1)
        self._tokens_B.copy_(tokens_B)
        if self.device.type != "cuda":
            self.cache.empty = False
            return self._run(self._tokens_B)
        if self._graph is None or self._logits_BV is None:
            self._capture()
        assert self._graph is not None
        assert self._logits_BV is not None
        self._graph.replay()
        return self._logits_BV

    def _next(self, tokens_B: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(tokens_B.unsqueeze(1), self.cache)
        return logits_BTV[:, -1]

    def _capture(self) -> None:
        """Record a step. The runs before it compile and warm up; each starts at the same position,
        whose cache entries the step itself writes again."""
        self.cache.empty = False
        start = self.cache.position.clone()
        with torch.cuda.device(self.device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._run(self._tokens_B)
                    self.cache.position.copy_(start)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._logits_BV = self._run(self._tokens_B)

    def _reserve(self, tokens: int) -> None:
        if self.length + tokens > self.capacity:
            raise ValueError(
                f"{self.length + tokens} tokens do not fit into a cache of {self.capacity}"
            )
        self.length += tokens
