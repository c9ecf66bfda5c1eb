"""Continuous batching: requests come and go between steps, and share each step of the model."""

from __future__ import annotations

import heapq
from collections import deque

import torch
from torch import nn

from questtrain.device import is_out_of_memory
from questtrain.inference.engine.batch import PIECE, Batch
from questtrain.inference.engine.memory import check_memory, too_many
from questtrain.inference.engine.requests import Delta, Request
from questtrain.inference.engine.results import Arrival, PieceResult, StepResult
from questtrain.inference.engine.sequence import Sequence
from questtrain.inference.engine.token_texts import TokenTexts
from questtrain.inference.load import TrainedModel
from questtrain.model import Llama, StackedLlama
from questtrain.quant import QuantLinear


class Engine:
    """Answers up to ``max_batch_size`` requests at a time, of up to ``context`` tokens each, prompt
    and answer; others wait in the order in which they came.

    A request's tokens and log-probabilities are the same, in every bit, whatever else is in the
    batch and in whichever slot (docs/serve.md says on what that rests). The host is a step behind:
    while the device makes one, it reads the results of the last. What was asked for a request that
    has ended meanwhile is thrown away.
    """

    def __init__(
        self, trained: TrainedModel, max_batch_size: int, context: int | None = None
    ) -> None:
        """``context`` is by default the length the model was trained on. On a GPU a run of 16 bits
        is served in bf16. UserError where the keys and values of that many do not fit into the
        device's memory."""
        self.context = context or trained.config.sequence_length
        assert trained.config.model.vocab_size is not None
        self.vocab_size = trained.config.model.vocab_size
        self._texts = TokenTexts(trained.tokenizer)
        self._end = trained.tokenizer.bos_id
        model = _served(trained.model)
        if isinstance(model, Llama | StackedLlama):
            check_memory(model, max_batch_size, self.context)
        try:
            self._batch = Batch(model, max_batch_size, self.context)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            advice = " ask for fewer, or for a shorter context."
            raise too_many(max_batch_size, self.context, advice) from error
        self._free = list(range(max_batch_size))
        self._sequences: dict[int, Sequence] = {}  # by id, until they are over
        self._waiting: deque[Sequence] = deque()  # the first may be half read
        self._decoding: dict[int, Sequence] = {}  # by slot
        self._asked: list[StepResult | PieceResult] = []
        self._arriving = Arrival([], None)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._batch.device

    @property
    def running(self) -> int:
        """Requests that have a slot, or whose last results are awaited."""
        return len(self._sequences) - self.waiting

    @property
    def waiting(self) -> int:
        """Requests that have no slot yet."""
        is_half_read = bool(self._waiting) and self._waiting[0].slot is not None
        return len(self._waiting) - is_half_read

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._sequences or self._arriving.results)

    def add(self, request: Request) -> None:
        """Put a request behind those that wait. ValueError for an id that is in use, and for a
        prompt that is empty, too long or of tokens that there are not."""
        prompt, most = request.prompt, self.context - (request.sampling.max_tokens > 0)
        if request.id in self._sequences:
            raise ValueError(f"the engine has a request {request.id}")
        if not 0 < len(prompt) <= most:
            raise ValueError(f"the prompt must have 1 to {most:,} tokens, not {len(prompt):,}")
        if not 0 <= min(prompt) <= max(prompt) < self.vocab_size:
            raise ValueError(f"the prompt's tokens must be 0 to {self.vocab_size - 1:,}")
        sequence = Sequence(request, self.context, self._texts, self._end)
        self._sequences[request.id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: int) -> None:
        """Forget a request: nothing more is told of it. One that is over is none."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return
        sequence.is_over = True
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        self._vacate(sequence)

    def step(self) -> list[Delta]:
        """Ask the device for a token of each request, with prompts before where there are free
        slots, and tell what the last step has made known, in up to two Deltas a request."""
        deltas = self._read_prompts()
        self._decode()
        arrived, self._arriving = self._arriving, Arrival.of(self._asked, self._batch.device)
        self._asked = []
        for delta in arrived.deltas():
            deltas.append(delta)
            if delta.finish is not None:
                self._vacate(self._sequences.pop(delta.id))
        return deltas

    def _read_prompts(self) -> list[Delta]:
        """Pieces of those who have waited longest, `PIECE` tokens at most, so that a long prompt
        delays those who decode no longer; the ends of those whose prompt failed. Where a prompt is
        cut depends on nothing else."""
        failed, left = [], PIECE
        while self._waiting:
            sequence = self._waiting[0]
            size = min(PIECE, sequence.unread)
            if size > left or not self._find_slot(sequence):
                break
            left -= size
            try:
                self._read(sequence, size)
            except Exception as error:  # of this prompt alone: the others go on
                self._waiting.popleft()
                self._vacate(self._sequences.pop(sequence.request.id))
                failed.append(sequence.fail(_explained(error, sequence)))
        return failed

    def _find_slot(self, sequence: Sequence) -> bool:
        """Whether it has one now."""
        if sequence.slot is None and self._free:
            sequence.slot = heapq.heappop(self._free)  # the lowest: steps are of the first few
        return sequence.slot is not None

    def _read(self, sequence: Sequence, size: int) -> None:
        assert sequence.slot is not None
        request, begin, end = sequence.request, sequence.read, sequence.read + size
        piece = self._batch.read(sequence.slot, request, begin, end)
        sequence.read = end
        self._asked.append(PieceResult(sequence, piece, ends=not sequence.unread))
        if not sequence.unread:
            self._waiting.popleft()
            self._decoding[sequence.slot] = sequence
            self._count(sequence, piece.first is not None)

    def _decode(self) -> None:
        if not self._decoding:
            return
        slots, sequences = list(self._decoding), list(self._decoding.values())
        told = self._batch.step(slots, [sequence.sampling for sequence in sequences])
        self._asked.append(StepResult(sequences, slots, told))
        for sequence in sequences:
            self._count(sequence, 1)

    def _count(self, sequence: Sequence, tokens: int) -> None:
        """Note what the device was asked for; whoever needs no more makes room at once."""
        sequence.asked += tokens
        if sequence.asked == sequence.limit:
            self._vacate(sequence)

    def _vacate(self, sequence: Sequence) -> None:
        """Give the slot back, if there is one. What the device is asked for from now on comes after
        all that it does for the sequence."""
        slot, sequence.slot = sequence.slot, None
        if slot is None:
            return
        self._decoding.pop(slot, None)
        self._batch.free(slot)
        heapq.heappush(self._free, slot)


def _served(model: nn.Module) -> nn.Module:
    """The model in the dtype it is served in. Packed ones are in bf16 on a GPU already, and values
    that stand for codes stay as they are."""
    layers = [layer for layer in model.modules() if isinstance(layer, QuantLinear)]
    quantized = any(layer.bits.quantized for layer in layers)
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    return model.bfloat16() if layers and on_gpu and not quantized else model


def _explained(error: Exception, sequence: Sequence) -> str:
    """For whoever sent the request."""
    if is_out_of_memory(error):
        return f"too little memory for a prompt of {len(sequence.request.prompt):,} tokens"
    return f"{type(error).__name__}: {error}"
