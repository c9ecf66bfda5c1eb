"""A whole optimizer step against BF16: data, forward, backward, clipping and AdamW.

There are two rivals: ``plain``, a Llama as anybody would write it (`PlainStep`), and ``bf16``, our
own trainer with nothing quantized. Each case alternates with ``bf16`` and they alone are on the
device, so that every ratio is of one run side by side and large models fit: ``bf16`` stays, the
others come and go. Tokens are random and made anew for each step on the host, as a batch is.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch._dynamo.config
from torch import Tensor

from questtrain.bench.results import Results, Row, timing_row
from questtrain.bench.settings import TrainStepConfig
from questtrain.bench.timing import mark, microseconds, timing, turns
from questtrain.bench.train.plain_llama import PlainStep
from questtrain.bench.train.profile import profile_step
from questtrain.config import TrainConfig
from questtrain.cuda_graph import capture
from questtrain.train.step import WARM_STEPS, TrainingStep

log = logging.getLogger(__name__)

PLAIN, BF16 = "plain", "bf16"
LR = 1e-4
COMPILER = {
    "automatic_dynamic_shapes": False,
    "recompile_limit": 64,
    "fail_on_recompile_limit_hit": True,
}
"""Cases share the code that is compiled, and each has to be compiled as if it were alone: for its
own shapes, and never given up in favour of eager execution."""


@dataclass
class Measured:
    """One case in its turns: microseconds of each step, microseconds until the host had issued one,
    the last loss."""

    steps: list[float] = field(default_factory=list)
    issues: list[float] = field(default_factory=list)
    loss: float = math.nan


class Contender:
    """One case on the device, with its first steps behind it: compiled, with AdamW's moments, and
    captured as a graph if it will be. ``peak_bytes`` is the most that it had on the device in them
    but the first, None on a CPU: a replayed graph allocates nothing."""

    def __init__(self, case: str, config: TrainConfig, device: torch.device) -> None:
        before = _allocated(device)
        self.config, self.device = config, device
        self.on_gpu = device.type == "cuda"
        self.step: PlainStep | TrainingStep = (
            PlainStep(config, device) if case == PLAIN else TrainingStep(config, device)
        )
        self._tokens = np.random.default_rng(0)
        self.take_step()
        self.peak_bytes: int | None = None
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            for _ in range(WARM_STEPS):
                self.take_step()
            self.peak_bytes = torch.cuda.max_memory_allocated(device) - before

    def take_step(self) -> Tensor:
        """One step on new tokens; returns its loss."""
        config = self.config
        shape = (config.batch_size, config.sequence_length + 1)
        batch = self._tokens.integers(config.model.vocab_size or 0, size=shape, dtype=np.int64)
        return self.step(batch, LR)[0]

    def turn(self, steps: int, measured: Measured) -> None:
        """Two steps that are not counted, then ``steps`` that are; they follow each other without
        waiting for the device, as in training. Issuing is timed at the first of all, when nothing
        is under way on the device."""
        start = time.perf_counter()
        self.take_step()
        measured.issues.append((time.perf_counter() - start) * 1e6)
        self.take_step()
        measured.steps += self._timed(steps, measured)

    def _timed(self, steps: int, measured: Measured) -> list[float]:
        """Microseconds of each step: on a GPU between events, one after each step."""
        marks = [mark(self.device)]
        for _ in range(steps):
            loss = self.take_step()
            marks.append(mark(self.device))
        measured.loss = float(loss)
        return [microseconds(start, end) for start, end in pairwise(marks)]


def bench_train(
    results: Results,
    models: Mapping[str, Mapping[str, TrainConfig]],
    config: TrainStepConfig,
    device: torch.device,
) -> None:
    """Fill ``results`` with a row for each case of each model and, on a GPU, its ``profiles``:
    model → case → `questtrain.bench.train.profile.summary` of a step.

    ``models``: name → case → its settings, ``bf16`` among them; ``plain`` takes those.
    ``config.steps`` of a case are timed, in ``config.rounds`` turns. What does not fit into memory
    is left out.
    """
    profiles: dict[str, dict[str, Any]] | None = None
    if device.type == "cuda":
        _make_workspaces(device)
        if config.profile:
            profiles = results.record["profiles"] = {model: {} for model in models}
    rounds = min(config.rounds, config.steps)
    steps = math.ceil(config.steps / rounds)
    with torch._dynamo.config.patch(COMPILER):
        for model, cases in models.items():
            torch.compiler.reset()
            of_model = None if profiles is None else profiles[model]
            ModelBenchmark(model, cases, steps, rounds, of_model).run(results, device)
            _release_memory(device)


@dataclass
class ModelBenchmark:
    """One model's cases, each against ``bf16``, in turns of ``steps``."""

    model: str
    cases: Mapping[str, TrainConfig]
    steps: int
    rounds: int
    profiles: dict[str, Any] | None
    done: set[str] = field(default_factory=set)
    plain_speedup: float | None = None  # of bf16, once it is known

    def run(self, results: Results, device: torch.device) -> None:
        """Add the rows of all cases that fit into memory, ``bf16`` and ``plain`` first."""
        try:
            bf16 = Contender(BF16, self.cases[BF16], device)
        except torch.OutOfMemoryError:
            log.warning("%s: does not fit into memory", self.model)
            return
        for case in (PLAIN, *(case for case in self.cases if case != BF16)):
            try:
                results.add(self._against(bf16, case, device))
                log.info("%s, %s", self.model, case)
            except torch.OutOfMemoryError:
                log.warning("%s, %s: does not fit into memory", self.model, case)
            _release_memory(device)

    def _against(self, bf16: Contender, case: str, device: torch.device) -> list[Row]:
        """The case's row, and that of ``bf16`` from the first pair of all."""
        config = self.cases[BF16 if case == PLAIN else case]
        pair = {case: Contender(case, config, device), BF16: bf16}
        measured = {name: Measured() for name in pair}
        for _, name in turns(pair, self.rounds):
            pair[name].turn(self.steps, measured[name])
        if case == PLAIN:
            medians = {name: timing(each.steps).median for name, each in measured.items()}
            self.plain_speedup = medians[PLAIN] / medians[BF16]
        new = [name for name in pair if name not in self.done]
        if self.profiles is not None:
            self.profiles |= {name: profile_step(pair[name].take_step, device) for name in new}
        self.done |= set(new)
        return [self._row(name, pair, measured) for name in new]

    def _row(
        self, case: str, pair: Mapping[str, Contender], measured: Mapping[str, Measured]
    ) -> Row:
        """``speedup`` over ``bf16`` in the same turns, ``bf16_median``; ``plain_speedup`` is that
        times the one of ``bf16`` over ``plain``."""
        own, config = measured[case], pair[case].config
        taken, rival = timing(own.steps), timing(measured[BF16].steps)
        speedup = rival.median / taken.median
        own_peak, rival_peak = pair[case].peak_bytes, pair[BF16].peak_bytes
        return timing_row(
            {"model": self.model, "micro_batch_size": config.micro_batch_size},
            case,
            taken,
            samples=len(own.steps),
            tokens_per_second=config.batch_size * config.sequence_length / taken.median * 1e6,
            speedup=speedup,
            bf16_median=rival.median,
            plain_speedup=None if self.plain_speedup is None else speedup * self.plain_speedup,
            peak_bytes=own_peak,
            peak_fraction=own_peak / rival_peak if own_peak and rival_peak else None,
            loss=own.loss if math.isfinite(own.loss) else None,
            host_microseconds=timing(own.issues).median,
        )


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _make_workspaces(device: torch.device) -> None:
    """cuBLAS keeps memory for each thread that multiplies, forward and backward, and for the stream
    that graphs are captured in: made first, it is counted in no case."""
    x = torch.ones(16, 16, dtype=torch.bfloat16, device=device, requires_grad=True)
    torch.autograd.backward((x @ x).sum())
    with torch.cuda.device(device):
        capture(lambda: torch.autograd.backward((x @ x).sum()))


def _release_memory(device: torch.device) -> None:
    """Give back what the last case held; modules and their compiled code refer to each other."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
