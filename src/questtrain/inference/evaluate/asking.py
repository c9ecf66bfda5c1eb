"""What every suite is given (a model, and how much it is asked) and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from questtrain.data import Tokenizer
from questtrain.errors import UserError
from questtrain.inference.evaluate.score import Score, Scorer, Tokens
from questtrain.inference.load import TrainedModel
from questtrain.store.evaluations import TaskResult


@dataclass(frozen=True)
class Asking:
    """``limit`` documents (or questions) of each task are asked at the most (a share of them below
    1, None all), with ``num_fewshot`` examples before each (None: as many as the task says);
    ``seed`` is of all that is drawn (None: the suites' own). ``bootstrap`` draws give the standard
    error of what is no mean. ``stride`` is how far windows over long texts move, None half the
    trained length; UserError where it is more than that length. ``told`` hears how many rows each
    batch had; what it raises ends the evaluation.
    """

    trained: TrainedModel
    limit: float | None = None
    num_fewshot: int | None = None
    seed: int | None = None
    batch_tokens: int | None = None
    bootstrap: int = 1000
    samples: bool = False
    stride: int | None = None
    told: Callable[[int], object] = lambda count: None

    def __post_init__(self) -> None:
        length = self.trained.config.sequence_length
        if self.stride is not None and self.stride > length:
            raise UserError(
                f"stride={self.stride} would pass over tokens: windows hold {length}, the trained"
                f" length. A stride is at most that, and {self.usual_stride} by default."
            )

    @property
    def usual_stride(self) -> int:
        """How far windows move where nothing is said."""
        return max(1, self.trained.config.sequence_length // 2)

    @property
    def other_stride(self) -> int | None:
        """How far windows move where it is not as far as usual: what a column's name says."""
        return None if self.stride == self.usual_stride else self.stride

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        return self.trained.tokenizer

    @cached_property
    def scorer(self) -> Scorer:
        """Of the model."""
        return Scorer(self.trained, self.batch_tokens)

    def score(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Score]:
        """Of each continuation, given its context; see `Scorer.score`."""
        return self.scorer.score(pairs, self.told)

    def asked(self, total: int) -> int:
        """How many of ``total`` are asked; one at least."""
        if self.limit is None:
            return total
        return math.ceil(total * self.limit) if self.limit < 1 else min(int(self.limit), total)

    def part(self, total: int) -> int | None:
        """How many are asked where these are not all of ``total``: what a column's name says."""
        asked = self.asked(total)
        return asked if asked < total else None


@dataclass(frozen=True)
class Answers:
    """Results by task; ``samples``: every question and answer as JSON lines, where asked for and
    where the suite can; ``versions`` of what asked."""

    tasks: dict[str, TaskResult]
    samples: str = ""
    versions: dict[str, str] = field(default_factory=dict)


class ReadyTask(Protocol):
    """One or several tasks of a suite with their data at hand, which any number of models can be
    asked."""

    def evaluate(self, asking: Asking) -> Answers: ...


def answers_of(tasks: Sequence[ReadyTask], asking: Asking) -> Answers:
    """Those of all tasks together."""
    results: dict[str, TaskResult] = {}
    versions: dict[str, str] = {}
    samples = ""
    for task in tasks:
        answers = task.evaluate(asking)
        results |= answers.tasks
        samples += answers.samples
        versions |= answers.versions
    return Answers(results, samples, versions)
