"""What every suite is given: a model that scores, its tokenizer, and how much is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from questtrain.data import Tokenizer
from questtrain.inference.evaluate.score import Score, Scorer, Tokens


@dataclass(frozen=True)
class Asking:
    """``limit`` is how many questions (or documents) of each task are asked at most, None all of
    them; ``seed`` draws examples; ``stride`` is how far windows over long texts move, None half the
    trained context."""

    scorer: Scorer
    tokenizer: Tokenizer
    limit: int | None = None
    seed: int = 1234
    stride: int | None = None

    def score(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Score]:
        """Of each continuation, given its context; see `Scorer.score`."""
        return self.scorer.score(pairs)

    def asked(self, total: int) -> int:
        """How many of ``total`` are asked."""
        return total if self.limit is None else min(self.limit, total)

    def part(self, total: int) -> int | None:
        """How many are asked where these are not all of ``total``: what a column's name says."""
        asked = self.asked(total)
        return asked if asked < total else None
