"""What the device was asked for, as it arrives on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from questtrain.inference.engine.batch import Piece
from questtrain.inference.engine.requests import Delta
from questtrain.inference.engine.sampling import Told
from questtrain.inference.engine.sequence import Sequence, Top


class StepResult(NamedTuple):
    """Of a step, ``rows`` of which are the tokens of ``sequences``."""

    sequences: list[Sequence]
    rows: list[int]
    told: Told

    def deltas(self) -> Iterator[Delta]:
        """Of those that are not over."""
        tokens = self.told.tokens.tolist()
        logprobs, tops = _logprobs(self.told), _tops(self.told)
        for sequence, row in zip(self.sequences, self.rows, strict=True):
            if sequence.is_over:
                continue
            asked = sequence.sampling.logprobs
            if asked is None:
                yield sequence.take(tokens[row], None, [])
            else:
                yield sequence.take(tokens[row], logprobs[row], tops[row][:asked] if asked else [])


class PieceResult(NamedTuple):
    """Of a piece of a prompt, the last one where ``ends``."""

    sequence: Sequence
    piece: Piece
    ends: bool

    def deltas(self) -> Iterator[Delta]:
        """At the end of the prompt, unless the sequence is over."""
        if self.sequence.is_over:
            return
        for told in self.piece.prompt:
            self.sequence.told_prompt(told.tokens.tolist(), _logprobs(told), _tops(told))
        if self.piece.first is not None:
            yield from StepResult([self.sequence], [0], self.piece.first).deltas()
        elif self.ends:
            yield self.sequence.end_of_prompt()


class Arrival(NamedTuple):
    """The results of what was asked for together, and when they are there; None: at once."""

    results: list[StepResult | PieceResult]
    event: torch.cuda.Event | None

    @classmethod
    def of(cls, results: list[StepResult | PieceResult], device: torch.device) -> Arrival:
        """Of results that the device was asked for until now."""
        if device.type != "cuda" or not results:
            return cls(results, None)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return cls(results, event)

    def deltas(self) -> Iterator[Delta]:
        """Waits for the device."""
        if self.event is not None:
            self.event.synchronize()
        for result in self.results:
            yield from result.deltas()


def _logprobs(told: Told) -> list[float]:
    return [] if told.logprobs is None else told.logprobs.tolist()


def _tops(told: Told) -> list[Top]:
    """For each row; nothing where none were asked for."""
    if told.top_tokens is None or told.top_logprobs is None:
        return []
    rows = zip(told.top_tokens.tolist(), told.top_logprobs.tolist(), strict=True)
    return [list(zip(tokens, logprobs, strict=True)) for tokens, logprobs in rows]
