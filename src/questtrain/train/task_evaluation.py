"""Evaluations inside a run (``train.eval_tasks``): when they are due, and what is kept of them.

The wing that evaluates is another one (`questtrain.inference`), which training does not know: who
starts a run hands it a `TaskEvaluator`. It works on a copy of the weights, so that a run with
evaluations is, bit for bit, the one without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from questtrain.config import TrainConfig
from questtrain.data import Tokenizer
from questtrain.store.evaluations import FOLDER, Evaluation, columns_of, write_evaluation
from questtrain.store.metric_rows import read_metric_rows

log = logging.getLogger(__name__)

COLUMN = "evaluations"
"""Of the rows of metrics.jsonl that hold results: columns by name."""

Stops: TypeAlias = Callable[[], bool]


class TaskEvaluator(Protocol):
    """What evaluates the model of a run on its tasks, whose data it has read already."""

    def evaluate(
        self,
        weights: Mapping[str, Tensor],
        config: TrainConfig,
        step: int,
        device: torch.device,
        stops: Stops,
    ) -> Evaluation | None:
        """The results of the model with these weights and the bits of ``config``; None as soon as
        it ``stops``. It leaves the weights and every random state as they are."""


MakeEvaluator: TypeAlias = Callable[[TrainConfig, Tokenizer], TaskEvaluator]
"""Reads the data of a run's tasks; UserError where some is missing or wrong."""


def is_due(config: TrainConfig, step: int, total_steps: int) -> bool:
    """Whether a run evaluates after ``step`` updates."""
    every = config.train.eval_tasks_every
    if not config.train.eval_tasks or step == 0:
        return False
    return step == total_steps or (every is not None and step % every == 0)


def is_done(folder: Path, step: int) -> bool:
    """Whether the run's metrics have the results of ``step``."""
    rows = read_metric_rows(folder / "metrics.jsonl")
    return any(row["step"] == step and row.get(COLUMN) for row in rows)


def evaluated(
    folder: Path, step: int, evaluate: Callable[[], Evaluation | None]
) -> dict[str, float] | None:
    """The columns of an evaluation, which is added to the run's; None where it was stopped, and
    none where it failed: a run does not end for that, since `questtrain eval` can make it up from a
    checkpoint."""
    try:
        evaluation = evaluate()
        if evaluation is None:
            return None
        path = write_evaluation(folder / FOLDER, evaluation)
    except Exception as error:  # tasks are the code of others
        what = f"{type(error).__name__}: {error}"
        log.warning("the evaluation at step %d failed, and the run goes on: %s", step, what)
        return {}
    log.info("step %d evaluated: %s", step, path)
    return columns_of([evaluation], step)
