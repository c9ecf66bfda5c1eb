"""From questions to what a model is asked: examples, prompts, and which of their tokens count.

The rules are those of DCLM's evaluation in nanochat's form, so that numbers compare:

- A prompt is the examples, solved, with a blank line after each, then the question. Examples of
  question i (counted after shuffling by `SHUFFLE`) are drawn by seed + i from all other questions
  of the file.
- Prompts are tokenized whole, after BOS. The prompts of a multiple choice share what comes before
  the choices: scored are the tokens behind the longest common prefix of all. Those of a schema
  share their ending: scored is the longest common suffix. In language modelling it is what follows
  the longest prefix that the prompts with and without the answer have in common. At least one token
  of each is scored.
- A prompt longer than the trained context loses its beginning, BOS with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from questtrain.data import Tokenizer
from questtrain.inference.evaluate.questions import (
    LanguageModeling,
    MultipleChoice,
    Question,
    Schema,
)

Ids: TypeAlias = list[int]
Pair: TypeAlias = tuple[Ids, Ids]
"""Context and continuation, of which the second is scored."""

SHUFFLE = 1337
"""The seed that questions are shuffled by, once and for all, so that a limit takes a sample."""

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Form:
    """How the questions of a task are written."""

    delimiter: str
    shots: int
    seed: int


def shuffled(questions: Sequence[Question]) -> list[Question]:
    """The order in which questions are asked and limited."""
    order = list(questions)
    Random(SHUFFLE).shuffle(order)
    return order


def examples_of(index: int, questions: Sequence[Question], form: Form) -> list[Question]:
    """The solved examples that stand before a question of the shuffled ones."""
    if not form.shots:
        return []
    places = Random(form.seed + index).sample(range(len(questions) - 1), form.shots)
    return [questions[place + (place >= index)] for place in places]


def prompts_of(question: Question, examples: Sequence[Question], delimiter: str) -> list[str]:
    """One prompt an option; in language modelling the one without the answer and the one with."""
    before = "".join(_solved(example, delimiter) + SEPARATOR for example in examples)
    match question:
        case MultipleChoice():
            return [f"{before}{question.query}{delimiter}{choice}" for choice in question.choices]
        case Schema():
            ending = f"{delimiter}{question.continuation}"
            return [f"{before}{option}{ending}" for option in question.context_options]
        case LanguageModeling():
            asked = f"{before}{question.context.strip()}{delimiter}"
            return [asked.rstrip(), asked + question.continuation]


def _solved(example: Question, delimiter: str) -> str:
    match example:
        case MultipleChoice():
            return f"{example.query}{delimiter}{example.choices[example.gold]}"
        case Schema():
            return f"{example.context_options[example.gold]}{delimiter}{example.continuation}"
        case LanguageModeling():
            return f"{example.context.strip()}{delimiter}{example.continuation}"


def scored_parts(question: Question, rows: Sequence[Ids]) -> list[Pair]:
    """The tokens of each prompt of a question (BOS first), cut before those that are scored."""
    if isinstance(question, LanguageModeling):
        (*_, answered), common = rows, _common(rows)
        cut = _within(common, answered)
        return [(answered[:cut], answered[cut:])]
    shortest = min(rows, key=len)
    if isinstance(question, Schema):
        ending = _within(_common([row[::-1] for row in rows]), shortest)
        return [(row[:-ending], row[-ending:]) for row in rows]
    cut = _within(_common(rows), shortest)
    return [(row[:cut], row[cut:]) for row in rows]


def _within(cut: int, row: Ids) -> int:
    """A cut that leaves at least a token on either side."""
    return max(1, min(cut, len(row) - 1))


def _common(rows: Sequence[Ids]) -> int:
    """How many tokens all rows begin with."""
    first, last = min(rows), max(rows)  # whatever lies between them in order shares it, too
    return next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )


def pairs_of(
    indices: Sequence[int], questions: Sequence[Question], form: Form, tokenizer: Tokenizer
) -> list[list[Pair]]:
    """What is scored of each of the questions at ``indices`` of the shuffled ones."""
    asked = [
        prompts_of(questions[i], examples_of(i, questions, form), form.delimiter) for i in indices
    ]
    rows = iter(tokenizer.encode_batch([prompt for prompts in asked for prompt in prompts]))
    return [
        scored_parts(questions[i], [[tokenizer.bos_id, *next(rows)] for _ in prompts])
        for i, prompts in zip(indices, asked, strict=True)
    ]
