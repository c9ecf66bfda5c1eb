"""The key/value cache of decoding: of fixed size, its position on the device.

Nothing about a decoding step is decided on the host, so that each is the same work and can be
replayed as a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from questtrain.config import ModelConfig, head_dim, num_kv_heads
from questtrain.kernels import decode_attention
from questtrain.kernels.checks import FLOATING
from questtrain.model.rotary import Rotary, rotary_angles

CAPACITY_MULTIPLE = 16
"""The mask's rows are aligned for the attention kernels."""


class CacheLayer(Protocol):
    """One layer's keys and values, as attention asks for them."""

    def attend_next(
        self, q_BD: Tensor, k_BE: Tensor, v_BE: Tensor, rotary: Rotary
    ) -> Tensor | None:
        """The attention of one new token a sequence, from rotary to heads joined: ``[B, D]``;
        E = G·K. None, and nothing is done, where `append` is to do it."""

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add ``T`` tokens; returns keys and values ``[B, G, S, K]`` to attend to, and a bool mask
        ``[T, S]``, None where the tokens attend to each other, causally."""


class Cache(Protocol):
    """What a model continues. In each forward pass it asks for the angles first, then for a layer
    after the other; at the end the cache advances."""

    def rotary(self, tokens: int) -> Rotary:
        """The angles of the next ``tokens`` tokens."""

    def layer(self, index: int) -> CacheLayer: ...

    def advance(self, tokens: int) -> None: ...


class StaticLayer(NamedTuple):
    """Keys and values ``[B, G, capacity, K]``, G heads of each, of which the first ``position`` are
    in use; ``empty`` tells the host when those are none."""

    keys: Tensor
    values: Tensor
    position: Tensor
    empty: bool

    def attend_next(
        self, q_BD: Tensor, k_BE: Tensor, v_BE: Tensor, rotary: Rotary
    ) -> Tensor | None:
        """The attention of one new token a sequence by `decode_attention`, from rotary to heads
        joined: ``[B, D]``; E = G·K. None, and nothing is done, in float64, which it does not take.
        """
        if self.keys.dtype not in FLOATING:
            return None
        cos, sin = rotary[0][0], rotary[1][0]
        return decode_attention(q_BD, k_BE, v_BE, self.keys, self.values, self.position, cos, sin)

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add ``T`` tokens; returns keys and values ``[B, G, S, K]`` to attend to. The first ones
        attend to each other, causally; later ones to the whole buffers, behind a bool mask
        ``[T, capacity]``."""
        tokens = k_BGTK.shape[2]
        if self.empty:
            self.keys[:, :, :tokens] = k_BGTK
            self.values[:, :, :tokens] = v_BGTK
            return k_BGTK, v_BGTK, None
        places_T = self.position + torch.arange(tokens, device=self.position.device)
        self.keys.index_copy_(2, places_T, k_BGTK)
        self.values.index_copy_(2, places_T, v_BGTK)
        seen = torch.arange(self.keys.shape[2], device=places_T.device)
        return self.keys, self.values, seen <= places_T.unsqueeze(-1)


class StaticCache:
    """The layers of one model, and ``position``, int64 scalar: how many tokens they hold.

    Layers differ in their tensors alone, so that what is compiled for one serves the others.

    The buffers have the dtype and device of ``like``, and stay where they are. It is for the caller
    to add no more than ``capacity`` tokens.
    """

    def __init__(self, config: ModelConfig, batch_size: int, capacity: int, like: Tensor) -> None:
        capacity = -(-capacity // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        shape = (batch_size, num_kv_heads(config), capacity, head_dim(config))
        self._keys = [like.new_zeros(shape) for _ in range(config.num_layers)]
        self._values = [like.new_zeros(shape) for _ in range(config.num_layers)]
        angles = rotary_angles(config, torch.arange(capacity, device=like.device))
        self._angles_S2K = torch.stack(angles, dim=1)
        self.position = torch.zeros((), dtype=torch.int64, device=like.device)
        self.empty = True

    def clear(self) -> None:
        """Forget everything."""
        self.position.zero_()
        self.empty = True

    def rotary(self, tokens: int) -> Rotary:
        """cos and sin, fp32 ``[T, K]``, at the positions of the next ``tokens`` tokens."""
        places_T = self.position.view(1)
        if tokens != 1:
            places_T = places_T + torch.arange(tokens, device=places_T.device)
        cos_TK, sin_TK = self._angles_S2K.index_select(0, places_T).unbind(1)
        return cos_TK.contiguous(), sin_TK.contiguous()

    def layer(self, index: int) -> StaticLayer:
        return StaticLayer(self._keys[index], self._values[index], self.position, self.empty)

    def advance(self, tokens: int) -> None:
        self.position += tokens
        self.empty = False
