"""The beginnings of prompts by CUDA graphs: launched kernel by kernel a short prompt would take the
host longer than the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from questtrain.cuda_graph import GraphedCall
from questtrain.model import Llama, SlottedCache, StackedLlama

LENGTHS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448)
"""What prompts are filled up to; longer ones to the most tokens that are read at once."""


class PromptGraphs:
    """Reads up to ``most`` tokens into a slot of a cache.

    What a prompt is filled up with comes behind it, where it sees nothing of it; in the cache later
    tokens take its places before anything sees them. The length of all together follows from the
    prompt's.
    """

    def __init__(
        self, model: Llama | StackedLlama, cache: SlottedCache, most: int, pool: Any
    ) -> None:
        """``pool``: of the graphs' memory."""
        self._device = cache.position.device
        self._graphs: dict[int, GraphedCall[Tensor]] = {}
        for length in (*(length for length in LENGTHS if length < most), most):
            given = cache.position.new_zeros(1 + length)
            work = partial(_read, model, cache)
            self._graphs[length] = GraphedCall(work, given, warm_calls=1, pool=pool)

    def read(self, slot: int, tokens: Sequence[int]) -> Tensor:
        """The beginning of a prompt, into a free slot; what the head is to be given, ``[T, D]``, in
        a buffer that is overwritten by the next call."""
        count = len(tokens)
        length = next(length for length in self._graphs if length >= count)
        given = (slot, *tokens, *(0,) * (length - count))
        return self._graphs[length](on_device(given, self._device))[:count]

    def capture(self) -> None:
        """All graphs, longest first, whose memory the others find there. Slot 0 must be free."""
        for length in reversed(self._graphs):
            for _ in range(2):
                self.read(0, (0,) * length)


def _read(model: Llama | StackedLlama, cache: SlottedCache, given: Tensor) -> Tensor:
    """``given``, int64 ``[1 + T]``: the slot and its first tokens."""
    hidden_1TD = model.hidden(given[1:].unsqueeze(0), cache.beginning(given[:1]))
    return hidden_1TD[0]


def on_device(tokens: Sequence[int], device: torch.device) -> Tensor:
    """int64 there, without waiting for it."""
    there = torch.tensor(tokens, dtype=torch.int64)
    if device.type == "cuda":
        there = there.pin_memory()  # else the copy would be waited for
    return there.to(device, non_blocking=True)
