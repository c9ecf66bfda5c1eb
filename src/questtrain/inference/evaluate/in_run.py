"""Evaluation inside a run: of a copy of its weights, as `questtrain eval` does a checkpoint's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from questtrain.config import TrainConfig
from questtrain.config.eval_tasks import parse_eval_tasks, suite_name
from questtrain.data import Tokenizer
from questtrain.data.text_rows import TextField
from questtrain.errors import TrainingStopped
from questtrain.inference.evaluate.asking import Asking, answers_of
from questtrain.inference.evaluate.drawn import drawn_with
from questtrain.inference.evaluate.subject import Subject
from questtrain.inference.evaluate.suites import Places, read_suites
from questtrain.inference.load import TrainedModel, for_use
from questtrain.model import Llama
from questtrain.store.evaluations import Evaluation


class Stopped(Exception):
    """The run was asked to stop."""


class RunEvaluator:
    """Evaluates a run's model on its ``train.eval_tasks``, whose data is read when it is made.

    The copy of the weights is quantized on the CPU and used as `questtrain eval` would use it: as
    packed codes where that is faster. What is left of it afterwards is nothing.
    """

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """UserError where the data of a task is missing or wrong."""
        tasks = parse_eval_tasks(config.train.eval_tasks, "train.eval_tasks")
        settings = config.train
        places = Places.of(
            settings.eval_tasks_include_path,
            settings.eval_tasks_datasets,
            TextField(config.data.text_field, "data.text_field (that of the training data, too)"),
            "train.eval_tasks_",
        )
        with drawn_with(None):
            self.tasks = read_suites(tasks, places)
        self.suite = suite_name(tasks)
        self.tokenizer, self.limit = tokenizer, settings.eval_tasks_limit

    def evaluate(
        self,
        weights: Mapping[str, Tensor],
        config: TrainConfig,
        step: int,
        device: torch.device,
        stops: Callable[[], bool],
    ) -> Evaluation | None:
        """See `questtrain.train.task_evaluation.TaskEvaluator`."""

        def between_batches(_rows: int) -> None:
            if stops():
                raise Stopped

        start = time.monotonic()
        with drawn_with(None):
            try:
                trained = self._model(weights, config, step, device)
                asking = Asking(trained, self.limit, told=between_batches)
                answers = answers_of(self.tasks, asking)
            except Stopped:
                return None
            except TrainingStopped as error:
                if isinstance(error.__cause__, torch.OutOfMemoryError):
                    raise error.__cause__ from error  # the run can make room
                raise
        subject = Subject(trained, Path(config.name or ""))
        seconds = time.monotonic() - start
        return subject.evaluation(
            self.suite, answers.tasks, seconds, self.limit, versions=answers.versions
        )

    def _model(
        self, weights: Mapping[str, Tensor], config: TrainConfig, step: int, device: torch.device
    ) -> TrainedModel:
        model = Llama(config.model, config.bits, config.quant)
        model.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
        return TrainedModel(for_use(model, device, None), self.tokenizer, config, step)
