"""What a model is evaluated on, as the command line and ``train.eval_tasks`` spell it.

====================  ==========================================================================
``hellaswag``         a task, group or tag of lm-evaluation-harness
``hellaswag:bpb``     the bits per byte of the right answers to such a task
``bpb:PATTERN``       the bits per byte of files of text (or of the answers in a file of questions)
``core``              the 22 tasks of CORE, from the bundle's default folder
``core:FOLDER``       the same from another folder
====================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from questtrain.config.schema import LoopConfig
from questtrain.errors import UserError

Suite: TypeAlias = Literal["lm-eval", "answers", "bpb", "core"]

FORMS = "TASK or TASK:bpb of lm-evaluation-harness, bpb:FILE, core, core:FOLDER"
OF_EVAL_TASKS = (
    "eval_tasks_every",
    "eval_tasks_limit",
    "eval_tasks_datasets",
    "eval_tasks_include_path",
)
"""Settings that say how ``train.eval_tasks`` are done."""


@dataclass(frozen=True)
class EvalTask:
    """``name`` is a task of lm-eval (suites ``lm-eval`` and ``answers``), a path or pattern
    (``bpb``), or a folder (``core``; empty: the default one)."""

    suite: Suite
    name: str

    @property
    def word(self) -> str:
        """As it is written."""
        match self.suite:
            case "answers":
                return f"{self.name}:bpb"
            case "bpb":
                return f"bpb:{self.name}"
            case "core":
                return f"core:{self.name}" if self.name else "core"
            case _:
                return self.name


def parse_eval_tasks(words: Sequence[str], key: str) -> list[EvalTask]:
    """The tasks of words, each of which may hold several with commas between them (a path with a
    comma is written with ``?`` in its place); the same one counts once. UserError names ``key`` and
    the word that is none."""
    parts = [part.strip() for word in words for part in word.split(",")]
    return list(dict.fromkeys(_parse(part, key) for part in parts))


def check_eval_tasks(train: LoopConfig) -> None:
    """UserError for a word of ``train.eval_tasks`` that is none, and for a setting of them where
    there are none."""
    if parse_eval_tasks(train.eval_tasks, "train.eval_tasks"):
        return
    for key in OF_EVAL_TASKS:
        value = getattr(train, key)
        if value is not None:
            raise UserError(
                f"train.{key}={value} needs train.eval_tasks, which says what the model is"
                f" evaluated on: {FORMS}."
            )


def suite_name(tasks: Sequence[EvalTask]) -> str:
    """What an evaluation of these calls who asked: ``lm-eval``, ``bpb``, ``core``, or several with
    ``+`` between them."""
    names = ("bpb" if task.suite == "answers" else task.suite for task in tasks)
    return "+".join(dict.fromkeys(names))


def _parse(word: str, key: str) -> EvalTask:
    first, colon, rest = word.partition(":")
    if first == "core":
        if colon and not rest:
            raise UserError(f"{key}: {word!r} names no folder: write core:FOLDER, or core.")
        return EvalTask("core", rest)
    if first == "bpb":
        if not rest:
            raise UserError(f"{key}: {word!r} names no file: write bpb:FILE or TASK:bpb.")
        return EvalTask("bpb", rest)
    if not first or (colon and rest != "bpb"):
        raise UserError(f"{key}: {word!r} is no task: write {FORMS}.")
    return EvalTask("answers" if colon else "lm-eval", first)
