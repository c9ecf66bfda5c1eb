"""The engine's work on the device: pieces of prompts, and steps of all who decode. It is asked for
here, and what comes of it is read from the host's memory when it has arrived."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from questtrain.cuda_graph import GraphedCall
from questtrain.inference.engine.prompt_graphs import PromptGraphs, on_device
from questtrain.inference.engine.requests import Request, Sampling
from questtrain.inference.engine.sampling import How, Told, how_of, tell
from questtrain.inference.engine.slots import Slots
from questtrain.model import Llama, StackedLlama

PIECE = 512
"""The most tokens of a prompt that are read at once."""


TOLD_AT_ONCE = 128
"""Tokens of a prompt whose logits are there at once."""


class Piece(NamedTuple):
    """A piece of a prompt that was read: what its tokens, but the prompt's first, were to the
    model, where that was asked for; and the answer's first token, where it was the last piece."""

    prompt: tuple[Told, ...]
    first: Told | None


class Batch:
    """A model and the slots of ``count`` sequences, up to ``capacity`` tokens each.

    A step is of the first slots, the next power of two, so that few sequences take less time; the
    model's is of all where that would make other numbers. On CUDA it is the replay of two graphs,
    of the model and of the drawing, and the beginnings of prompts have graphs, too.
    """

    def __init__(self, model: nn.Module, count: int, capacity: int) -> None:
        """TypeError for a model that has no cache."""
        if not isinstance(model, Llama | StackedLlama):
            raise TypeError(f"an Engine takes a Llama or a PackedLlama, not {type(model).__name__}")
        self._slots = Slots(model, count, capacity)
        self.device = self._slots.tokens.device
        most = self._slots.count
        self._sizes = [*(1 << n for n in range((most - 1).bit_length())), most]
        self._model_sizes = self._sizes if self._slots.takes_any_rows else [most]
        # Of the slots themselves: a graph that is called with the tensor that it reads copies none.
        self._tokens = {size: self._slots.tokens[:size] for size in self._sizes}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        self._graphs = dict(self._make_graphs())
        self._prompts: PromptGraphs | None = None
        if self.device.type == "cuda":
            most = min(PIECE, self._slots.cache.capacity)
            self._prompts = PromptGraphs(model, self._slots.cache, most, self._pool)
            self._capture(self._prompts)

    @torch.inference_mode()
    def read(self, slot: int, request: Request, begin: int, end: int) -> Piece:
        """Read ``prompt[begin:end]`` into a slot that is left out of steps; after the last piece it
        takes part, unless no token is asked for."""
        prompt, sampling = request.prompt, request.sampling
        if begin == 0:
            self._slots.claim(slot, sampling)
        if begin == 0 and self._prompts is not None:
            hidden_TD = self._prompts.read(slot, prompt[:end])
        else:
            hidden_TD = self._slots.read(slot, on_device(prompt[begin:end], self.device), begin)
        told = []
        if sampling.prompt_logprobs:
            told = self._tell_prompt(hidden_TD, prompt[begin + 1 : end + 1], sampling)
        if end < len(prompt) or not sampling.max_tokens:
            return Piece(tuple(told), None)
        logits_1V = self._slots.logits(hidden_TD[-1:])
        first = self._slots.begin(slot, logits_1V, len(prompt), how_of([sampling]))
        return Piece(tuple(told), _to_host(tell(logits_1V, first, sampling.logprobs)))

    @torch.inference_mode()
    def step(self, slots: Sequence[int], samplings: Sequence[Sampling]) -> Told:
        """Add a token to all slots that take part, which ``slots`` are, drawn as ``samplings`` say:
        what was drawn for the first slots, free ones among them."""
        used = max(slots) + 1
        size, of_model = (_least(sizes, used) for sizes in (self._sizes, self._model_sizes))
        self._graphs[of_model, "model"](self._tokens[of_model])
        self._graphs[size, how_of(samplings)](self._tokens[size])
        asked = [s.logprobs for s in samplings if s.logprobs is not None]
        return _to_host(self._slots.tell(size, max(asked, default=None)))

    def free(self, slot: int) -> None:
        """Leave the slot out of the steps that follow."""
        self._slots.free(slot)

    def _tell_prompt(
        self, hidden_TD: Tensor, following: Sequence[int], sampling: Sampling
    ) -> list[Told]:
        """Of the tokens that followed, some at a time: logits are large."""
        told = []
        tokens_T = on_device(following, self.device)  # none follows the prompt's last token
        for begin in range(0, len(hidden_TD), TOLD_AT_ONCE):
            tokens = tokens_T[begin : begin + TOLD_AT_ONCE]
            logits = self._slots.logits(hidden_TD[begin : begin + len(tokens)])
            told.append(_to_host(tell(logits, tokens, sampling.logprobs or 0)))
        return told

    def _make_graphs(self) -> Iterator[tuple[tuple[int, str], GraphedCall[None]]]:
        for size, tokens in self._tokens.items():
            if size in self._model_sizes:
                yield (size, "model"), self._graph(self._slots.forward, tokens)
            for how in _HOW:
                yield (size, how), self._graph(partial(self._slots.draw, how), tokens)

    def _graph(self, work: Callable[[Tensor], None], tokens: Tensor) -> GraphedCall[None]:
        return GraphedCall(work, tokens, warm_calls=1, pool=self._pool)

    @torch.inference_mode()
    def _capture(self, prompts: PromptGraphs) -> None:
        """While no slot takes part, so that nothing is changed: a call to warm up, and another."""
        prompts.capture()
        for (size, _), graph in reversed(self._graphs.items()):
            for _ in range(2):
                graph(self._tokens[size])


_HOW: tuple[How, ...] = ("greedy", "chance", "nucleus")


def _least(sizes: Sequence[int], count: int) -> int:
    """The first of ascending ``sizes`` that holds so many."""
    return next(size for size in sizes if size >= count)


def _to_host(told: Told) -> Told:
    """Copies that are under way, in memory that is written to no more."""
    tokens, *others = (x if x is None else x.to("cpu", non_blocking=True, copy=True) for x in told)
    assert tokens is not None
    return Told(tokens, *others)
