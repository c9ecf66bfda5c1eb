"""CORE: the mean centred accuracy over 22 tasks, from local files of questions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Answers, Asking
from questtrain.inference.evaluate.core_tasks import (
    BUNDLE,
    BUNDLE_DATA,
    CORE,
    DEFAULT_FOLDER,
    CoreTask,
)
from questtrain.inference.evaluate.drawn import SEED
from questtrain.inference.evaluate.question_prompts import Form, pairs_of, shuffled
from questtrain.inference.evaluate.questions import LanguageModeling, Question, read_questions
from questtrain.store.evaluations import Metric, TaskResult, column_of

CHUNK = 512
"""Questions whose prompts are held at a time."""


@dataclass(frozen=True)
class CoreSuite:
    """The tasks with their questions, in the order in which they are asked."""

    questions: dict[CoreTask, list[Question]]

    @classmethod
    def read(cls, folder: str | None = None) -> CoreSuite:
        """The questions of the bundle in ``folder``; UserError for files that are not there or
        hold something else, all of those missing in one message."""
        root = Path(folder or DEFAULT_FOLDER).expanduser()
        if (root / BUNDLE_DATA).is_dir():
            root = root / BUNDLE_DATA
        files = dict.fromkeys(task.file for task in CORE)  # both HellaSwags share one
        missing = [file for file in files if not (root / file).is_file()]
        if missing:
            raise _missing(root, missing, len(files))
        return cls({task: _checked(task, root) for task in CORE})

    def evaluate(self, asking: Asking) -> Answers:
        """Every task's accuracy, and ``core``, the mean of the centred ones."""
        results: dict[str, TaskResult] = {}
        tasks = tqdm(self.questions.items(), desc="core", unit=" tasks", disable=None, leave=False)
        for task, questions in tasks:
            right = list(_answers(task, questions, asking))
            results[f"core.{task.name}"] = TaskResult(
                column=column_of(f"core.{task.name}", samples=asking.part(len(questions))),
                samples=len(right),
                total=len(questions),
                num_fewshot=task.shots,
                metrics=_accuracies(task, right),
            )
        asked = sum(result.samples for result in results.values())
        total = sum(result.total for result in results.values())
        column = column_of("core", samples=asked if asked < total else None)
        mean = _mean_of([result.metrics["centred"] for result in results.values()])
        return Answers({"core": TaskResult(column, asked, total, {"core": mean})} | results)


def _accuracies(task: CoreTask, right: Sequence[bool]) -> dict[str, Metric]:
    accuracy, stderr = fmean(right), standard_error(right)
    centred = None if stderr is None else stderr / (1 - task.baseline)
    return {
        "acc": Metric.of(accuracy, stderr, higher_is_better=True),
        "centred": Metric.of(task.centred(accuracy), centred, higher_is_better=True),
    }


def _mean_of(centred: Sequence[Metric]) -> Metric:
    """With the standard error of independent ones."""
    values = [metric.value for metric in centred if metric.value is not None]
    errors = [metric.stderr for metric in centred if metric.stderr is not None]
    stderr = math.hypot(*errors) / len(centred) if len(errors) == len(centred) else None
    return Metric.of(fmean(values), stderr, higher_is_better=True)


def _missing(root: Path, missing: Sequence[str], total: int) -> UserError:
    archive = f"folder {BUNDLE_DATA} of the archive {BUNDLE} (162 MB)"
    if len(missing) == total:
        return UserError(
            f"core: none of its {total} files of questions is in {root}. They are in the {archive}:"
            f" unpack it so that {root / missing[0]} is there, or name another folder:"
            " core:FOLDER, or of `questtrain eval suite=core` bundle=FOLDER."
        )
    listed = "\n".join(f"  {root / file}" for file in missing)
    return UserError(
        f"core: {len(missing)} of its {total} files of questions are missing:\n{listed}\n"
        f"They are in the {archive}."
    )


def _checked(task: CoreTask, root: Path) -> list[Question]:
    questions = shuffled(read_questions(root / task.file, task.kind))
    if len(questions) <= task.shots:
        raise UserError(
            f"{root / task.file} holds {len(questions)} questions, and {task.name} needs"
            f" {task.shots + 1}: one is asked after {task.shots} others as examples."
        )
    return questions


def _answers(task: CoreTask, questions: Sequence[Question], asking: Asking) -> Iterator[bool]:
    """Whether each question that is asked is answered right.

    Of several options the model's is the one whose tokens are likeliest on average; the one
    continuation of language modelling is right if each of its tokens is the likeliest.
    """
    form = Form(task.delimiter, task.shots, SEED if asking.seed is None else asking.seed)
    asked = range(asking.asked(len(questions)))
    for start in asked[::CHUNK]:
        indices = asked[start : start + CHUNK]
        parts = pairs_of(indices, questions, form, asking.tokenizer)
        scores = iter(asking.score([pair for pairs in parts for pair in pairs]))
        for index, pairs in zip(indices, parts, strict=True):
            question = questions[index]
            own = [next(scores) for _ in pairs]
            if isinstance(question, LanguageModeling):
                yield own[0].greedy
                continue
            means = [
                score.logprob / len(continuation)
                for score, (_, continuation) in zip(own, pairs, strict=True)
            ]
            yield means.index(max(means)) == question.gold


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None for a single value."""
    if len(values) < 2:
        return None
    mean = fmean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
