"""How probable a model finds given continuations: the one place where evaluations call the model.

Everything is in token ids, and a context is as trained: it begins with BOS where a document begins.
Rows are sorted by length and padded at the end, which causal attention never sees; a batch is so
many rows as fit into ``batch_tokens`` at the length of its longest. Rows that are the same are
computed once (the four answers A to D of a question are). Only those positions of a batch meet the
head that a continuation is predicted at, in pieces of `LOGIT_BYTES`.

Shape suffixes: B rows, T tokens, D hidden size, V vocabulary, M scored positions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from questtrain.errors import TrainingStopped
from questtrain.inference.load import TrainedModel
from questtrain.model import Llama, StackedLlama

BATCH_TOKENS = {"cuda": 32_768, "cpu": 4_096}
"""Of a batch, padding included, by the kind of device: enough rows for its products."""

LOGIT_BYTES = 1 << 28
"""Of fp32 logits at a time."""

Tokens: TypeAlias = Sequence[int]
Row: TypeAlias = tuple[int, ...]


class Score(NamedTuple):
    """``logprob`` in nats, summed over the continuation's tokens; ``greedy``: each of them is the
    most likely one."""

    logprob: float
    greedy: bool


class Window(NamedTuple):
    """``targets`` are what follows the last ``len(targets)`` of ``inputs``."""

    inputs: Row
    targets: Row


def windows(context: Tokens, continuation: Tokens, length: int) -> Iterator[Window]:
    """A continuation in windows of at most ``length`` inputs, so that each of its tokens is
    predicted once: all in one after what fits of the context's end; one longer than ``length`` in
    several, of which the last has a whole window before its last token. (lm-evaluation-harness'
    ``get_rolling_token_windows``, where the context is one token.)"""
    whole = [*context, *continuation]
    for start in range(len(context), len(whole), length):
        end = min(start + length, len(whole))
        yield Window(tuple(whole[max(0, end - 1 - length) : end - 1]), tuple(whole[start:end]))


def batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """The rows, longest first, in batches that hold ``batch_tokens`` at most when they are padded;
    a row alone may be longer."""
    ordered = sorted(rows, key=len, reverse=True)
    start = 0
    while start < len(ordered):
        count = max(1, batch_tokens // len(ordered[start]))
        yield ordered[start : start + count]
        start += count


class Scorer:
    """Scores continuations with one model, in batches of ``batch_tokens`` (`BATCH_TOKENS` by
    default)."""

    def __init__(self, trained: TrainedModel, batch_tokens: int | None = None) -> None:
        """TypeError for a model that is neither a `Llama` nor a `PackedLlama`."""
        model = trained.model
        if not isinstance(model, Llama | StackedLlama):
            raise TypeError(f"a Scorer takes a Llama or a PackedLlama, not {type(model).__name__}")
        self.model, self.length = model, trained.config.sequence_length
        self.device = model.embed_tokens.weight.device
        self.batch_tokens = batch_tokens or BATCH_TOKENS[self.device.type]

    @torch.inference_mode()
    def score(
        self,
        pairs: Sequence[tuple[Tokens, Tokens]],
        scored: Callable[[int], object] = lambda count: None,
    ) -> list[Score]:
        """Of each pair of a context (one token at least) and a continuation (without tokens it is
        certain), in their order; ``scored`` is told how many rows a batch had.

        A context is cut from the left to what the trained length leaves. TrainingStopped where the
        GPU's memory does not suffice.
        """
        rows: dict[Row, list[tuple[int, Row]]] = {}
        for index, (context, continuation) in enumerate(pairs):
            if not context:
                raise ValueError(f"pair {index} has no context: a document begins with BOS")
            for window in windows(context, continuation, self.length):
                rows.setdefault(window.inputs, []).append((index, window.targets))
        logprobs = torch.zeros(len(pairs), dtype=torch.float64)
        misses = torch.zeros(len(pairs), dtype=torch.int64)
        for batch in batches(list(rows), self.batch_tokens):
            asked = [(row, *each) for row, inputs in enumerate(batch) for each in rows[inputs]]
            owners, logprobs_M, misses_M = self._score_batch(batch, asked)
            logprobs.index_add_(0, owners, logprobs_M)
            misses.index_add_(0, owners, misses_M)
            scored(len(batch))
        return [
            Score(logprob, miss == 0)
            for logprob, miss in zip(logprobs.tolist(), misses.tolist(), strict=True)
        ]

    def _score_batch(
        self, batch: Sequence[Row], asked: Sequence[tuple[int, int, Row]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``asked`` (a row, a pair, its targets at the row's end): for each target the pair, its
        log-probability, fp64, and 1 where another token is more likely; on the CPU."""
        places = [
            (row, len(batch[row]) - len(targets) + number, pair, target)
            for row, pair, targets in asked
            for number, target in enumerate(targets)
        ]
        rows, positions, pairs, targets = torch.tensor(places).unbind(1)
        try:
            found = self._at(padded(batch), rows, positions, targets)
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingStopped(
                f"out of GPU memory in a batch of {len(batch)} texts of up to {len(batch[0])}"
                f" tokens; lower batch_tokens={self.batch_tokens}."
            ) from error
        return pairs, found[0].double().cpu(), found[1].long().cpu()

    def _at(
        self, tokens_BT: Tensor, rows_M: Tensor, positions_M: Tensor, targets_M: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[M]``, fp32, of the targets after those positions, and whether
        another token is more likely."""
        hidden_BTD = self.model.hidden(tokens_BT.to(self.device))
        x_MD = hidden_BTD[rows_M.to(self.device), positions_M.to(self.device)]
        targets_M = targets_M.to(self.device)
        size = max(1, LOGIT_BYTES // (4 * self.model.lm_head.weight.shape[0]))
        parts = [
            _compare(logits_fp32(self.model, x), targets)
            for x, targets in zip(
                torch.split(x_MD, size), torch.split(targets_M, size), strict=True
            )
        ]
        logprobs, misses = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(misses)


def padded(rows: Sequence[Row]) -> Tensor:
    """Rows as a tensor ``[B, T]``, int64, with zeros behind the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def logits_fp32(model: Llama | StackedLlama, x_MD: Tensor) -> Tensor:
    """``lm_head(norm(x))`` in fp32: in bf16 a logit of 10 is known to 0.03 only."""
    x_MD, weight_VD = model.norm(x_MD), model.lm_head.weight
    if x_MD.dtype != torch.float32 and x_MD.is_cuda:
        return torch.mm(x_MD, weight_VD.t(), out_dtype=torch.float32)
    return nn.functional.linear(x_MD.float(), weight_VD.float())


def _compare(logits_MV: Tensor, targets_M: Tensor) -> tuple[Tensor, Tensor]:
    chosen_M = logits_MV.gather(1, targets_M.unsqueeze(1)).squeeze(1)
    return chosen_M - logits_MV.logsumexp(1), logits_MV.argmax(1) != targets_M
