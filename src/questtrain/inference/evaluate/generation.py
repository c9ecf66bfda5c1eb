"""Texts that continue many prompts, decoded together.

A batch has prompts of similar lengths. All its rows are at the same position of the cache: it
begins with what the shortest prompt has, and a row whose prompt is longer is given that prompt's
next token where the others already choose theirs. So nothing is padded, and what a prompt is
continued with does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from questtrain.inference.decode import Decoder
from questtrain.inference.evaluate.score import BATCH_TOKENS, Tokens
from questtrain.inference.generate import sample
from questtrain.inference.load import TrainedModel

MOST_ROWS = 64
"""Of a batch: what the low-bit kernels of few rows are for."""


@dataclass(frozen=True)
class Decoding:
    """``until``: texts that end an answer, and do not belong to it; a ``temperature`` of 0 takes
    the most likely token every time."""

    max_new_tokens: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class _Row:
    """``tokens`` of prompt and answer; the first ``prompt`` were given."""

    tokens: list[int]
    prompt: int
    generator: torch.Generator
    text: str = ""
    is_done: bool = field(default=False)


class Generator:
    """Continues prompts with one model, as many at a time as ``batch_tokens`` of cache hold."""

    def __init__(self, trained: TrainedModel, batch_tokens: int | None = None) -> None:
        self.trained, self.window = trained, trained.config.sequence_length
        self.device = next(trained.model.parameters()).device
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type]

    @torch.inference_mode()
    def continuations(
        self,
        prompts: Sequence[Tokens],
        how: Decoding,
        done: Callable[[int], object] = lambda count: None,
    ) -> list[str]:
        """The answer to each prompt (one token at least), in their order: up to a text of
        ``until``, to the document's end, or ``max_new_tokens``. Choices of prompt i are drawn with
        the seed ``seed + i``.

        Of a prompt what the answer leaves of the trained length is kept, the end of it, and half
        of it at least; where an answer fills the rest, the older half is dropped. ``done`` is told
        how many prompts a batch had.
        """
        rows = [self._row(prompt, how, index) for index, prompt in enumerate(prompts)]
        ordered = sorted(rows, key=lambda row: row.prompt, reverse=True)
        size = max(1, min(MOST_ROWS, self.batch_tokens // self.window, len(rows)))
        decoder = Decoder(self.trained.model, size, self.window) if rows else None
        for start in range(0, len(ordered), size):
            batch = ordered[start : start + size]
            full = [*batch, *[batch[-1]] * (size - len(batch))]
            assert decoder is not None
            self._answer(decoder, full, how)
            done(len(batch))
        return [row.text for row in rows]

    def _row(self, prompt: Tokens, how: Decoding, index: int) -> _Row:
        kept = max(self.window - how.max_new_tokens, self.window // 2)
        tokens = [*prompt[-kept:]]
        generator = torch.Generator(self.device).manual_seed((how.seed + index) % 2**63)
        return _Row(tokens, len(tokens), generator)

    def _answer(self, decoder: Decoder, batch: list[_Row], how: Decoding) -> None:
        """Fill in the rows' texts; a row may be there several times."""
        for at, logits_BV in self._logits(decoder, batch):
            likely = logits_BV.argmax(-1).tolist()
            for row, logits_V, token in zip(batch, logits_BV, likely, strict=True):
                if row.is_done or len(row.tokens) > at:
                    continue
                if how.temperature:
                    token = sample(logits_V.float(), how.temperature, how.top_p, row.generator)
                self._add(row, token, how)
            if all(row.is_done for row in batch):
                return

    def _logits(self, decoder: Decoder, batch: list[_Row]) -> Iterator[tuple[int, Tensor]]:
        """Again and again how many tokens of each row were read, and the logits ``[B, V]`` of what
        follows. When it is asked for more, each row that is not done has one more."""
        read, dropped = min(row.prompt for row in batch), 0
        logits_BV = decoder.prefill(self._tensor([row.tokens[:read] for row in batch]))
        while True:
            yield read, logits_BV
            read += 1
            if read - dropped > self.window:
                dropped = read - self.window // 2
                kept = [[_token(row, at) for at in range(dropped, read)] for row in batch]
                logits_BV = decoder.prefill(self._tensor(kept))
            else:
                logits_BV = decoder.step(self._tensor([_token(row, read - 1) for row in batch]))

    def _tensor(self, tokens: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(tokens, device=self.device)

    def _add(self, row: _Row, token: int, how: Decoding) -> None:
        """One token to an answer, which it may end."""
        tokenizer = self.trained.tokenizer
        if token == tokenizer.bos_id:
            row.is_done = True
            return
        row.tokens.append(token)
        row.text = tokenizer.decode(row.tokens[row.prompt :])
        for end in how.until:
            before, found, _ = row.text.partition(end) if end else (row.text, "", "")
            row.text, row.is_done = before, row.is_done or bool(found)
        row.is_done = row.is_done or len(row.tokens) - row.prompt >= how.max_new_tokens


def _token(row: _Row, at: int) -> int:
    """The token at a place; of a row that is done any will do."""
    return row.tokens[at] if at < len(row.tokens) else 0
