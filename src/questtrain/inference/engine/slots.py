"""A model, the slots of its cache, and what is drawn for each: all on the device, which none of
this waits for.

Shape suffixes: B the first slots, T tokens of a prompt, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from questtrain.inference.engine.requests import Sampling
from questtrain.inference.engine.sampling import How, Rows, Told, draw, tell
from questtrain.kernels.dispatch import serves_cpu
from questtrain.kernels.ops.decode_attention import attends_in_one_kernel
from questtrain.model import Llama, PackedLlama, SlottedCache, StackedLlama
from questtrain.model.slotted_cache import FREE, slotted_cache_bytes

FEWEST_ROWS = 8
"""Of products whose number of rows is fixed. It is a power of two: of other numbers matrix
libraries sum some rows in another order than the rest."""


class Slots:
    """``count`` sequences of up to ``capacity`` tokens, each with its next token, its seed, how
    many tokens were drawn for it, temperature and top_p.

    What is computed for a slot follows, in every bit, from the request that it holds:

    - prompts are read one at a time, in pieces whose borders follow from the prompt;
    - a step's norms, quantizers, attention and drawing go row by row, and products of integers are
      exact: a step of the first slots gives for them what one of all gives;
    - where a sum's order may depend on the number of rows, that is always the same: in a
      step's head, and in all of a step where some layer multiplies no integers (`takes_any_rows`).
    """

    def __init__(self, model: Llama | StackedLlama, count: int, capacity: int) -> None:
        weight = model.embed_tokens.weight
        self.model = model
        self._head_rows = _head_rows(count)
        self.count = _slots_of(count, weight)
        self.cache = SlottedCache(model.config, self.count, capacity, weight)
        self.tokens = self.cache.position.new_zeros(self.count)
        self._seeds, self._numbers = (torch.zeros_like(self.tokens) for _ in range(2))
        self._temperatures, self._top_ps = (
            torch.zeros(self.count, device=weight.device) for _ in range(2)
        )
        self._logits = torch.zeros(self.count, weight.shape[0], device=weight.device)

    @property
    def takes_any_rows(self) -> bool:
        """Whether a step may be one of any number of slots."""
        keys = self.cache.keys[0]
        by_kernels = attends_in_one_kernel(keys) if keys.is_cuda else serves_cpu(keys.device)
        return isinstance(self.model, PackedLlama) and by_kernels

    def claim(self, slot: int, sampling: Sampling) -> None:
        """Say how the sequence that is to be read into a free ``slot`` is drawn."""
        word = sampling.seed & ((1 << 64) - 1)
        _put(self._seeds, slot, word - (1 << 64) if word >> 63 else word)
        _put(self._numbers, slot, 0)
        _put(self._temperatures, slot, sampling.temperature)
        _put(self._top_ps, slot, sampling.top_p)

    def free(self, slot: int) -> None:
        """Leave the slot out of steps."""
        _put(self.cache.position, slot, FREE)

    def read(self, slot: int, tokens_T: Tensor, start: int) -> Tensor:
        """Add ``tokens_T``, from the prompt's ``start`` on, to a free slot; what the head is to be
        given of them, ``[T, D]``."""
        return self.model.hidden(tokens_T.unsqueeze(0), self.cache.filling(slot, start))[0]

    def begin(self, slot: int, logits_1V: Tensor, length: int, how: How) -> Tensor:
        """Draw the first token ``[1]`` after a prompt of ``length``; steps go on from there."""
        token = draw(logits_1V, self._rows(slot, slot + 1), how)
        self.tokens[slot : slot + 1] = token
        _put(self._numbers, slot, 1)
        _put(self.cache.position, slot, length)
        return token

    def forward(self, tokens_B: Tensor) -> None:
        """Add ``tokens_B``, the first slots', to their sequences: the logits of what follows."""
        count = len(tokens_B)
        hidden_B1D = self.model.hidden(tokens_B.unsqueeze(1), self.cache.decoding(count))
        x_ND = F.pad(hidden_B1D[:, 0], (0, 0, 0, self._head_rows - count))
        self._logits[:count] = self.logits(x_ND)[:count]

    def draw(self, how: How, tokens_B: Tensor) -> None:
        """Replace ``tokens_B``, the first slots', by those that the logits give."""
        count = len(tokens_B)
        drawn = draw(self._logits[:count], self._rows(0, count), how)
        goes_on = self.cache.position[:count] != FREE
        tokens_B.copy_(torch.where(goes_on, drawn, 0))
        self._numbers[:count] += goes_on

    def tell(self, count: int, alternatives: int | None) -> Told:
        """Of the first slots, what was drawn."""
        return tell(self._logits[:count], self.tokens[:count], alternatives)

    def _rows(self, begin: int, end: int) -> Rows:
        of_slots = slice(begin, end)
        counted = self._seeds[of_slots], self._numbers[of_slots]
        return Rows(*counted, self._temperatures[of_slots], self._top_ps[of_slots])

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """fp32 ``[N, V]``, by a product of N rows."""
        logits_NV: Tensor = self.model.lm_head(self.model.norm(hidden_ND))
        return logits_NV.float()


def slots_bytes(model: Llama | StackedLlama, count: int, capacity: int) -> int:
    """What the `Slots` of a model take of its device's memory: the cache, and the logits in fp32;
    a step's own tensors come on top."""
    weight = model.embed_tokens.weight
    slots = _slots_of(count, weight)
    cache = slotted_cache_bytes(model.config, slots, capacity, weight.itemsize)
    return cache + slots * weight.shape[0] * torch.float32.itemsize


def _head_rows(count: int) -> int:
    return max(FEWEST_ROWS, 1 << (count - 1).bit_length())


def _slots_of(count: int, weight: Tensor) -> int:
    """The slots for so many sequences: on a CPU as many as the head has rows."""
    return count if weight.is_cuda else _head_rows(count)


def _put(x_B: Tensor, slot: int, value: float) -> None:
    """One number, as a kernel's argument: to an item that is assigned it would be copied, and the
    copy waited for."""
    x_B[slot].fill_(value)
