"""The beginnings of prompts by CUDA graphs: launched kernel by kernel a short prompt would take the
host longer than the device."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from questtrain.cuda_graph import GraphedCall
from questtrain.model import Llama, SlottedCache, StackedLlama

LENGTHS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448)
"""What prompts are filled up to; longer ones to the most tokens that are read at once."""


class PromptGraphs:
    """Reads up to ``most`` tokens, into a cache beside the one that they are for.

    A graph writes to the same addresses each time, and slots lie elsewhere: what it has read is
    copied to the slot. What a prompt is filled up with comes behind it, where it sees nothing of
    it, and is not copied. The length of all together follows from the prompt's.
    """

    def __init__(self, model: Llama | StackedLlama, most: int, pool: Any) -> None:
        """``pool``: of the graphs' memory."""
        self._beside = SlottedCache(model.config, 1, most, model.embed_tokens.weight)
        self._graphs: dict[int, GraphedCall[Tensor]] = {}
        for length in (*(length for length in LENGTHS if length < most), most):
            tokens = self._beside.position.new_zeros(length)
            work = partial(_read, model, self._beside)
            self._graphs[length] = GraphedCall(work, tokens, warm_calls=1, pool=pool)

    def read(self, cache: SlottedCache, slot: int, tokens_T: Tensor) -> Tensor:
        """The beginning of a prompt, into a free slot; what the head is to be given, ``[T, D]``, in
        a buffer that is overwritten by the next call."""
        count = len(tokens_T)
        length = next(length for length in self._graphs if length >= count)
        hidden_TD = self._graphs[length](F.pad(tokens_T, (0, length - count)))
        cache.copy(slot, self._beside, count)
        return hidden_TD[:count]

    def capture(self) -> None:
        """All graphs, longest first, whose memory the others find there."""
        for length in reversed(self._graphs):
            tokens = self._beside.position.new_zeros(length)
            for _ in range(2):
                self._graphs[length](tokens)


def _read(model: Llama | StackedLlama, beside: SlottedCache, tokens_T: Tensor) -> Tensor:
    hidden_1TD = model.hidden(tokens_T.unsqueeze(0), beside.filling(0, 0))
    return hidden_1TD[0]
