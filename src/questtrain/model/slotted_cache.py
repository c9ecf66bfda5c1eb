"""The key/value cache of serving: each sequence has a slot and a position of its own, so that one
can come, be read in and go while others decode.

Positions stay on the device, so that a decoding step of the first few slots is the same work each
time and can be replayed as a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from questtrain.config import ModelConfig, head_dim, num_kv_heads
from questtrain.kernels import decode_attention
from questtrain.model.cache import CAPACITY_MULTIPLE
from questtrain.model.rotary import Rotary, rotary_angles

FREE = -1
"""The position of a slot in which nothing decodes."""


class SlottedCache:
    """Keys and values of ``slots`` sequences, ``capacity`` tokens each, and ``position``, int64
    ``[slots]``: how many tokens of each are cached; `FREE` where a step is to leave the slot alone.

    The buffers have the dtype and device of ``like``, one that `decode_attention` takes, and stay
    where they are. It is for the caller to add no more than ``capacity`` tokens to a slot.
    """

    def __init__(self, config: ModelConfig, slots: int, capacity: int, like: Tensor) -> None:
        capacity = _whole(capacity)
        shape = (slots, num_kv_heads(config), capacity, head_dim(config))
        # Each in memory of its own: what is written to through views of one tensor is that whole
        # tensor to torch.compile.
        self.keys, self.values = (
            [like.new_zeros(shape) for _ in range(config.num_layers)] for _ in range(2)
        )
        self.capacity = capacity
        self.places = torch.arange(capacity, device=like.device)
        self.cos_SK, self.sin_SK = rotary_angles(config, self.places)
        self.position = torch.full((slots,), FREE, dtype=torch.int64, device=like.device)

    def decoding(self, slots: int) -> DecodingSlots:
        """The first ``slots``, for a step that adds one token to each whose position is set."""
        return DecodingSlots(self, slots)

    def filling(self, slot: int, start: int) -> FillingSlot:
        """One slot, whose first ``start`` tokens are there, for the prompt's next ones."""
        return FillingSlot(self, slot, start)

    def beginning(self, slot_1: Tensor) -> BeginningSlot:
        """The slot that ``slot_1``, int64 ``[1]``, says on the device, for a prompt's first
        tokens."""
        return BeginningSlot(self, slot_1)


def slotted_cache_bytes(config: ModelConfig, slots: int, capacity: int, item: int) -> int:
    """What a `SlottedCache` takes whose numbers have ``item`` bytes: keys and values, and cos and
    sin in fp32."""
    places = _whole(capacity)
    of_place = 2 * config.num_layers * num_kv_heads(config) * head_dim(config) * item
    return places * (slots * of_place + 2 * head_dim(config) * torch.float32.itemsize)


def _whole(capacity: int) -> int:
    """The number of places for so many tokens."""
    return -(-capacity // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE


class DecodingSlots:
    """A cache for a model's step of tokens ``[slots, 1]``. The rows of free slots come out as NaN,
    and nothing is written for them."""

    def __init__(self, cache: SlottedCache, slots: int) -> None:
        self._cache, self._slots = cache, slots
        self._position = cache.position[:slots]

    def rotary(self, tokens: int) -> Rotary:
        """cos and sin, fp32 ``[slots, K]``, each at its own position."""
        assert tokens == 1
        places = self._position.clamp(0, self._cache.cos_SK.shape[0] - 1)
        return self._cache.cos_SK.index_select(0, places), self._cache.sin_SK.index_select(
            0, places
        )

    def layer(self, index: int) -> DecodingLayer:
        cache, slots = self._cache, self._slots
        return DecodingLayer(cache.keys[index][:slots], cache.values[index][:slots], self._position)

    def advance(self, tokens: int) -> None:
        self._position += tokens * (self._position >= 0)


class DecodingLayer(NamedTuple):
    """Keys and values ``[B, G, capacity, K]`` and how many of each sequence are in use."""

    keys: Tensor
    values: Tensor
    position: Tensor

    def attend_next(self, q_BD: Tensor, k_BE: Tensor, v_BE: Tensor, rotary: Rotary) -> Tensor:
        return decode_attention(q_BD, k_BE, v_BE, self.keys, self.values, self.position, *rotary)

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        raise AssertionError("a step adds one token, by attend_next")


class FillingSlot:
    """A cache for a piece of one prompt, ``[1, T]``, whose place is known to the host."""

    def __init__(self, cache: SlottedCache, slot: int, start: int) -> None:
        self._cache, self._slot, self._start = cache, slot, start

    def rotary(self, tokens: int) -> Rotary:
        places = slice(self._start, self._start + tokens)
        return self._cache.cos_SK[places], self._cache.sin_SK[places]

    def layer(self, index: int) -> FillingLayer:
        slot = slice(self._slot, self._slot + 1)
        keys, values = self._cache.keys[index][slot], self._cache.values[index][slot]
        return FillingLayer(keys, values, self._start)

    def advance(self, tokens: int) -> None:
        self._start += tokens


class FillingLayer(NamedTuple):
    """Keys and values ``[1, G, capacity, K]``, the first ``start`` of which are in use."""

    keys: Tensor
    values: Tensor
    start: int

    def attend_next(self, q_BD: Tensor, k_BE: Tensor, v_BE: Tensor, rotary: Rotary) -> None:
        """A prompt's piece of one token is as any other."""

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add T tokens; keys and values ``[1, G, S, K]`` to attend to, causally where there is no
        mask, else by that ``[T, S]``: True where token t sees place s."""
        tokens, end = k_BGTK.shape[2], self.start + k_BGTK.shape[2]
        self.keys[:, :, self.start : end] = k_BGTK
        self.values[:, :, self.start : end] = v_BGTK
        if self.start == 0:
            return k_BGTK, v_BGTK, None
        seen = torch.ones(tokens, end, dtype=torch.bool, device=k_BGTK.device).tril(self.start)
        return self.keys[:, :, :end], self.values[:, :, :end], seen


class BeginningSlot:
    """A cache for the beginning of one prompt, ``[1, T]``, whose place only the device knows: what
    is captured as a graph serves every slot."""

    def __init__(self, cache: SlottedCache, slot_1: Tensor) -> None:
        self._cache = cache
        heads = torch.arange(cache.keys[0].shape[1], device=slot_1.device)
        self._slot, self._heads = slot_1.view(1, 1, 1), heads.view(1, -1, 1)

    def rotary(self, tokens: int) -> Rotary:
        return self._cache.cos_SK[:tokens], self._cache.sin_SK[:tokens]

    def layer(self, index: int) -> BeginningLayer:
        keys, values = self._cache.keys[index], self._cache.values[index]
        return BeginningLayer(keys, values, self._slot, self._heads, self._cache.places)

    def advance(self, tokens: int) -> None:
        """There is no more to come."""


class BeginningLayer(NamedTuple):
    """Keys and values ``[slots, G, capacity, K]``, one slot of which is begun, and the numbers of
    that slot, of the heads ``[1, G, 1]`` and of the places ``[capacity]``."""

    keys: Tensor
    values: Tensor
    slot: Tensor
    heads: Tensor
    places: Tensor

    def attend_next(self, q_BD: Tensor, k_BE: Tensor, v_BE: Tensor, rotary: Rotary) -> None:
        """A beginning of one token is as any other."""

    def append(self, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        # By indices, not by a view of the first places: torch.compile would copy that as a whole.
        where = (self.slot, self.heads, self.places[: k_BGTK.shape[2]])
        self.keys.index_put_(where, k_BGTK)
        self.values.index_put_(where, v_BGTK)
        return k_BGTK, v_BGTK, None
