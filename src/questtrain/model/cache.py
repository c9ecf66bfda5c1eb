"""What a model asks of a key/value cache; `questtrain.inference.cache.StaticCache` is one."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class LayerCache(Protocol):
    """Keys and values of one layer."""

    def attend_next(
        self, q_BD: Tensor, k_BD: Tensor, v_BD: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> Tensor | None:
        """The attention of one new token a sequence, from rotary to heads joined: ``[B, D]``.
        None, and nothing is done, where no single operation does that."""

    def append(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add ``T`` tokens; returns keys and values ``[B, H, S, K]`` to attend to, and the mask,
        bool ``[T, S]``, or None where plain causal attention is meant."""


class Cache(Protocol):
    """In each forward pass a model asks for the angles first, then for a layer after the other; at
    the end the cache advances."""

    def rotary(self, tokens: int) -> tuple[Tensor, Tensor]:
        """cos and sin, fp32 ``[T, K]``, at the positions of the next ``tokens`` tokens."""

    def layer(self, index: int) -> LayerCache:
        """The part of one layer. Parts differ in their tensors alone, so that what is compiled for
        one layer serves the others."""

    def advance(self, tokens: int) -> None:
        """All layers have added their ``tokens`` tokens."""
