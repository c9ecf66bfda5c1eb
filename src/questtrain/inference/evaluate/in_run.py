"""Evaluation inside a run: of a copy of its weights, as `questtrain eval` does a checkpoint's."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from questtrain.config import TrainConfig
from questtrain.config.eval_tasks import parse_eval_tasks
from questtrain.data import Tokenizer
from questtrain.device import device_name
from questtrain.errors import TrainingStopped
from questtrain.inference.evaluate.asking import Asking
from questtrain.inference.evaluate.score import Score, Scorer, Tokens
from questtrain.inference.evaluate.suites import read_suites
from questtrain.inference.load import TrainedModel, for_use
from questtrain.model import Llama, StackedLlama
from questtrain.quant import PackedLinear, PackedWeightLinear
from questtrain.store.evaluations import Evaluation, now
from questtrain.version import __version__


class Stopped(Exception):
    """The run was asked to stop."""


class StoppableScorer(Scorer):
    """A `Scorer` that asks between batches whether to go on, and raises `Stopped` if not."""

    def __init__(self, trained: TrainedModel, stops: Callable[[], bool]) -> None:
        super().__init__(trained)
        self.stops = stops

    def score(
        self,
        pairs: Sequence[tuple[Tokens, Tokens]],
        scored: Callable[[int], object] = lambda count: None,
    ) -> list[Score]:
        def between_batches(count: int) -> None:
            scored(count)
            if self.stops():
                raise Stopped

        return super().score(pairs, between_batches)


class RunEvaluator:
    """Evaluates a run's model on its ``train.eval_tasks``, whose data is read when it is made.

    The copy of the weights is quantized on the CPU and used as `questtrain eval` would use it: as
    packed codes where that is faster. What is left of it afterwards is nothing.
    """

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        """UserError where the data of a task is missing or wrong."""
        tasks = parse_eval_tasks(config.train.eval_tasks, "train.eval_tasks")
        with untouched_random_states():
            self.tasks = read_suites(tasks, config.data.text_field)
        self.tokenizer, self.limit = tokenizer, config.train.eval_tasks_limit

    def evaluate(
        self,
        weights: Mapping[str, Tensor],
        config: TrainConfig,
        step: int,
        device: torch.device,
        stops: Callable[[], bool],
    ) -> Evaluation | None:
        """See `questtrain.train.task_evaluation.TaskEvaluator`."""
        start = time.monotonic()
        with untouched_random_states():
            try:
                trained = self._model(weights, config, step, device)
                asking = Asking(StoppableScorer(trained, stops), self.tokenizer, self.limit)
                results = {k: v for task in self.tasks for k, v in task.evaluate(asking).items()}
            except Stopped:
                return None
            except TrainingStopped as error:
                if isinstance(error.__cause__, torch.OutOfMemoryError):
                    raise error.__cause__ from error  # the run can make room
                raise
        return Evaluation(
            suite="train.eval_tasks",
            source=config.name or "",
            step=step,
            bits=config.bits,
            packed=is_packed(trained.model),
            device=device_name(device),
            date=now(),
            seconds=round(time.monotonic() - start, 3),
            seed=asking.seed,
            limit=self.limit,
            sequence_length=config.sequence_length,
            versions={"questtrain": __version__, "torch": torch.__version__},
            tasks=results,
        )

    def _model(
        self, weights: Mapping[str, Tensor], config: TrainConfig, step: int, device: torch.device
    ) -> TrainedModel:
        model = Llama(config.model, config.bits, config.quant)
        model.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
        return TrainedModel(for_use(model, device, None), self.tokenizer, config, step)


@contextmanager
def untouched_random_states() -> Iterator[None]:
    """Python's, NumPy's and PyTorch's generators, those of all GPUs in use, are afterwards what
    they were."""
    python, numpy = random.getstate(), np.random.get_state()
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def is_packed(model: nn.Module) -> bool:
    """Whether it multiplies weights as codes."""
    kinds = (StackedLlama, PackedLinear, PackedWeightLinear)
    return any(isinstance(module, kinds) for module in model.modules())
