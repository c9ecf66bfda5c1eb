"""The key/value cache of incremental decoding."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What a model asks of a cache: in each forward pass positions first, then a layer after the
    other appends and asks for the mask, at the end the cache advances."""

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """Positions ``[T]`` of the next ``tokens`` tokens."""

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``[B, H, T, K]`` of one layer; returns what to attend to, ``[B, H, S, K]``."""

    def causal_mask(self, queries: int, seen: int, device: torch.device) -> Tensor | None:
        """bool ``[T, S]``; None where plain causal attention is meant."""

    def advance(self, tokens: int) -> None:
        """All layers have appended their ``tokens`` tokens."""


class KVCache:
    """Keys and values of everything a model has seen, up to ``capacity`` tokens.

    ``length`` is the number of tokens cached; the model advances it once a forward pass.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def positions(self, tokens: int, device: torch.device) -> Tensor:
        """int64 ``[T]``: the positions that follow what is cached."""
        return torch.arange(self.length, self.length + tokens, device=device)

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``[B, H, T, K]`` of one layer; returns all keys and values, ``[B, H, S, K]``."""
        end = self.length + keys.shape[2]
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.capacity}")
        for store, new in ((self._keys, keys), (self._values, values)):
            if layer not in store:
                batch, heads, _, width = new.shape
                store[layer] = new.new_empty(batch, heads, self.capacity, width)
            store[layer][:, :, self.length : end] = new
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def causal_mask(self, queries: int, seen: int, device: torch.device) -> Tensor | None:
        """bool ``[T, S]`` for queries at the end of what was seen; None if they are all of it."""
        if queries == seen:
            return None
        return torch.ones(queries, seen, dtype=torch.bool, device=device).tril(seen - queries)
