"""Tasks of lm-evaluation-harness as suites: their own metrics, or their right answers' bits."""

from __future__ import annotations

import io
import math
from contextlib import redirect_stderr
from typing import Any

from questtrain.errors import UserError
from questtrain.inference.evaluate.asking import Answers, Asking
from questtrain.inference.evaluate.bits_per_byte import answer_result
from questtrain.inference.evaluate.drawn import SEED
from questtrain.inference.evaluate.harness import (
    alone,
    ask,
    check_settings,
    no_questions,
    set_examples,
    versions,
)
from questtrain.inference.evaluate.prompts import encode_pairs
from questtrain.inference.evaluate.tasks import LoadedTasks


class HarnessTasks:
    """Whatever the tasks themselves measure."""

    def __init__(self, loaded: LoadedTasks) -> None:
        """UserError where their documents cannot be made questions."""
        self.loaded = loaded
        check_settings(loaded, SEED)
        for task in loaded.tasks.values():
            _instances(task, loaded, limit=1)

    def evaluate(self, asking: Asking) -> Answers:
        """By the harness' own ``evaluate``."""
        return ask(self.loaded, asking)


class HarnessAnswers:
    """Bits per byte of the right answers to multiple-choice tasks: a group's are those of all its
    tasks' questions."""

    def __init__(self, loaded: LoadedTasks) -> None:
        """UserError for a task without choices, or with several right ones."""
        self.loaded = loaded
        for name, task in loaded.tasks.items():
            choices = task.get_config("output_type") == "multiple_choice"
            if not choices or getattr(task, "multiple_target", False):
                raise UserError(
                    f"{name}:bpb is the bits per byte of the one right answer to multiple-choice"
                    f" questions, and those of {name} are none; evaluate {name} itself."
                )
            _right(task, loaded, limit=1)

    def evaluate(self, asking: Asking) -> Answers:
        """Over the bytes that are scored: the continuation with its delimiter, and white space at
        the end of the context."""
        results = {}
        for name, inside in self.loaded.reported.items():
            values, total = [], 0
            for task_name in inside:
                task = self.loaded.tasks[task_name]
                count = len(list(task.eval_docs))
                pairs = _right(task, self.loaded, asking.asked(count), asking)
                total += count
                values += _bits(pairs, asking)
            shots = [self.loaded.tasks[each].get_config("num_fewshot") for each in inside]
            is_own = shots == [self.loaded.own_shots[each] or 0 for each in inside]
            results[f"{name}:bpb"] = answer_result(name, values, total, max(shots), is_own)
        return Answers(results, versions=versions())


def _bits(pairs: list[tuple[str, str]], asking: Asking) -> list[float]:
    """Bits per byte of each continuation."""
    scores = asking.score(encode_pairs(asking.tokenizer, pairs))
    sizes = [len((c + answer)[len(c.rstrip()) :].encode()) for c, answer in pairs]
    return [-score.logprob / math.log(2) / size for score, size in zip(scores, sizes, strict=True)]


def _right(
    task: Any, loaded: LoadedTasks, limit: int, asking: Asking | None = None
) -> list[tuple[str, str]]:
    """Context and right continuation of each document; UserError where one has none."""
    pairs = []
    for instance in _instances(task, loaded, limit, asking):
        of_inputs = getattr(task, "multiple_input", False)  # contexts are chosen from, not answers
        gold = (task.doc_to_text if of_inputs else task.doc_to_target)(instance.doc)
        if isinstance(gold, str):
            choices = task.doc_to_choice(instance.doc)
            gold = choices.index(gold) if gold in choices else -1
        if instance.idx == gold:
            pairs.append(instance.args)
    if len(pairs) != limit:
        raise UserError(
            f"{task.config.task}:bpb: {limit - len(pairs)} of {limit} documents name no right"
            " answer."
        )
    return pairs


def _instances(
    task: Any, loaded: LoadedTasks, limit: int, asking: Asking | None = None
) -> list[Any]:
    """What a task asks about its first documents, with examples; UserError where that cannot be
    made."""
    shots, seed = (None, None) if asking is None else (asking.num_fewshot, asking.seed)
    own = loaded.own_shots[task.task_name]
    set_examples(task, own, shots, SEED if seed is None else seed)
    try:
        with redirect_stderr(io.StringIO()), alone(seed):  # a bar for each task, also in files
            task.build_all_requests(limit=limit)
    except Exception as error:  # templates of others did not fit the data of others
        raise no_questions(loaded, error) from error
    return list(task.instances)
