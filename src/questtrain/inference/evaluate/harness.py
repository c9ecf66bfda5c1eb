"""lm-evaluation-harness asks a model; what it finds as results of ours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import numpy as np
from lm_eval.evaluator import evaluate
from lm_eval.utils import handle_non_serializable
from tqdm import tqdm

from questtrain.errors import TrainingStopped, UserError
from questtrain.inference.evaluate.adapter import HarnessModel, decoding
from questtrain.inference.evaluate.asking import Answers, Asking
from questtrain.inference.evaluate.drawn import SEED, drawn_with
from questtrain.inference.evaluate.task_faults import said
from questtrain.inference.evaluate.tasks import LoadedTasks
from questtrain.store.evaluations import Metric, TaskResult, column_of

FIRST = "acc_norm"
"""Where a task has it, it is what is quoted: it leads the metrics."""


def ask(loaded: LoadedTasks, asking: Asking) -> Answers:
    """Put all the tasks' documents to a model.

    The harness' ``evaluate``, prepared as its ``simple_evaluate`` does, which describes the machine
    besides, by programs that take longer than small models. UserError for a task that cannot be
    asked so, before the model is called. Nothing drawn here moves the process' random numbers.
    """
    seed = SEED if asking.seed is None else asking.seed
    check_settings(loaded, seed)
    model = HarnessModel(asking.trained, asking.batch_tokens, seed, asking.told)
    for name, task in loaded.tasks.items():
        set_examples(task, loaded.own_shots[name], asking.num_fewshot, seed)
    with _said_before_the_model(model, loaded), alone(asking.seed):
        found = evaluate(
            lm=model,
            task_dict={"tasks": loaded.tasks, "groups": loaded.groups},
            limit=asking.limit,
            bootstrap_iters=asking.bootstrap,
            log_samples=asking.samples,
        )
    tasks = {name: _result(name, found, loaded, asking.limit) for name in loaded.reported}
    return Answers(tasks, _lines(found["samples"]) if asking.samples else "", versions())


def check_settings(loaded: LoadedTasks, seed: int) -> None:
    """UserError for a task whose answers are to be found in a way that is not known here."""
    for name, task in loaded.tasks.items():
        if task.get_config("output_type") == "generate_until":
            decoding(name, task.get_config("generation_kwargs") or {}, seed)


def set_examples(task: Any, own: int | None, count: int | None, seed: int) -> None:
    """How many examples stand before a question: ``count``, or the task's ``own`` number where None
    is asked for; a task whose own is 0 has none at any time."""
    asked = own if count is None or own == 0 else count
    task.set_config(key="num_fewshot", value=asked or 0)
    task.set_fewshot_seed(seed=seed)


def versions() -> dict[str, str]:
    """Of what asks and loads."""
    return {name: version(name) for name in ("lm_eval", "datasets")}


def _result(name: str, found: Any, loaded: LoadedTasks, limit: float | None) -> TaskResult:
    """Of a task or a group."""
    inside = loaded.reported[name]
    samples = sum(found["n-samples"][task]["effective"] for task in inside)
    total = sum(found["n-samples"][task]["original"] for task in inside)
    shots = [found["n-shot"][task] for task in inside]
    others = shots != [loaded.own_shots[task] or 0 for task in inside]
    is_part = limit is not None and samples < total
    task_version = found["versions"].get(name)
    return TaskResult(
        column=column_of(name, max(shots) if others else None, samples if is_part else None),
        samples=samples,
        total=total,
        metrics=_metrics(found["results"][name], found["higher_is_better"].get(name, {})),
        num_fewshot=max(shots),
        version=None if task_version in (None, "N/A") else str(task_version),
    )


def _metrics(values: Mapping[str, Any], higher: Mapping[str, bool | None]) -> dict[str, Metric]:
    """``acc,none`` → ``acc``; ``exact_match,strict-match`` → ``exact_match:strict-match``."""
    metrics = {}
    for key, value in values.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not _is_number(value):
            continue
        error = values.get(f"{name}_stderr,{filtered}")
        metrics[name if filtered == "none" else f"{name}:{filtered}"] = Metric.of(
            value, error if _is_number(error) else None, higher.get(name)
        )
    return dict(sorted(metrics.items(), key=lambda entry: entry[0] != FIRST))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _lines(samples: Mapping[str, list[dict[str, Any]]]) -> str:
    """The harness' own records of each document, with its task."""
    return "".join(
        json.dumps({"task": task, **sample}, default=handle_non_serializable) + "\n"
        for task, documents in samples.items()
        for sample in documents
    )


@contextmanager
def _said_before_the_model(model: HarnessModel, loaded: LoadedTasks) -> Iterator[None]:
    """What goes wrong before the model is asked is a UserError: templates of others did not fit the
    data of others."""
    try:
        yield
    except (UserError, TrainingStopped):
        raise
    except Exception as error:
        if model.was_asked:
            raise
        raise no_questions(loaded, error) from error


def no_questions(loaded: LoadedTasks, error: Exception) -> UserError:
    """What to say of documents that templates do not fit."""
    return UserError(
        f"the documents of {', '.join(loaded.reported)} cannot be made questions: {said(error)}"
    )


@contextmanager
def alone(seed: int | None) -> Iterator[None]:
    """Random numbers as the harness seeds them, and those of before afterwards; what it prints goes
    to stderr, its bars to terminals only, and its bootstrap starts no processes."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    bar = partial(tqdm, disable=None, leave=False)
    with (
        drawn_with(seed),
        redirect_stdout(sys.stderr),
        patch("lm_eval.api.task.tqdm", bar),
        patch("tqdm.tqdm", bar),  # its metrics import it when they draw
    ):
        yield
