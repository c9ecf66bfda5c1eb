"""Files of questions in the format of the CORE bundle: JSON lines of one of three kinds.

``multiple_choice``: a ``query``, its ``choices`` and the place of the right one, ``gold``.
``schema``: ``context_options``, of which the one at ``gold`` fits the ``continuation``.
``language_modeling``: a ``context`` and the one right ``continuation``. Other fields are passed
over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from annotated_types import MinLen
from pydantic import ValidationError

from questtrain.errors import UserError
from questtrain.inference.evaluate.core_tasks import Kind
from questtrain.store.json_file import Count, field_problem, parse_json

Some: TypeAlias = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class MultipleChoice:
    """Which of several answers follows a question."""

    query: str
    choices: Annotated[list[str], MinLen(2)]
    gold: Count

    @property
    def options(self) -> list[str]:
        """What one of is right."""
        return self.choices


@dataclass(frozen=True)
class Schema:
    """Which of several beginnings an ending follows (Winograd's schemas)."""

    context_options: Annotated[list[str], MinLen(2)]
    continuation: Some
    gold: Count

    @property
    def options(self) -> list[str]:
        """What one of is right."""
        return self.context_options


@dataclass(frozen=True)
class LanguageModeling:
    """What exactly comes next."""

    context: str
    continuation: Some


Question: TypeAlias = MultipleChoice | Schema | LanguageModeling
KINDS: dict[Kind, type[Question]] = {
    "multiple_choice": MultipleChoice,
    "schema": Schema,
    "language_modeling": LanguageModeling,
}


def read_questions(path: Path, kind: Kind) -> list[Question]:
    """The questions of a file of JSON lines, in its order; UserError names the line at fault."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    questions = [
        _question(line, kind, f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not questions:
        raise UserError(f"{path} holds no questions.")
    return questions


def _question(line: bytes, kind: Kind, place: str) -> Question:
    try:
        question = parse_json(line, KINDS[kind])
    except ValidationError as error:
        raise UserError(
            f"{place} is no question of the kind {kind}: {field_problem(error)}."
        ) from error
    if isinstance(question, LanguageModeling):
        return question
    if question.gold >= len(question.options):
        raise UserError(
            f"{place}: gold is {question.gold}, and there are {len(question.options)} options,"
            " counted from 0."
        )
    return question


def holds_choices(path: Path) -> bool:
    """Whether a file of JSON lines begins with a multiple-choice question (rather than a document's
    row)."""
    try:
        with path.open("rb") as file:
            first = json.loads(next((line for line in file if line.strip()), b"null"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"query", "choices", "gold"} <= first.keys()
