"""The training loop.

Everything a step needs is a pure function of (config, step): its batch and its learning rate. The
only state is the weights and AdamW's moments, so a resumed run continues exactly. A run that goes
back (`questtrain.train.rollback`) is resumed by the process that it runs in.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from questtrain.config import TrainConfig, at_step, bits_at, steps
from questtrain.config.switch import phase_start, switch_step
from questtrain.data import Loader, TokenDataset, validation_batches
from questtrain.errors import ErrorOnAnotherRank, TrainingStopped
from questtrain.process.signals import Interrupted, StopAfterStep, on_stop_signals
from questtrain.quant import learned_scalars
from questtrain.store.checkpoint import last_good_checkpoint, latest_checkpoint
from questtrain.store.rollbacks import Rollback, read_rollbacks, skipped_batches
from questtrain.store.run_record import RunRecord, Status
from questtrain.train.diagnostics import diagnostic_batches, diagnostic_metrics
from questtrain.train.divergence import Diverged, LossWatch, Trouble
from questtrain.train.evaluate import validation_loss
from questtrain.train.initial_weights import load_initial_weights
from questtrain.train.metrics import Metrics, Progress, StepRate, training_row
from questtrain.train.parallel import World
from questtrain.train.record import leave_record
from questtrain.train.rollback import CannotGoBack, go_back
from questtrain.train.saved_state import load_state, save_state
from questtrain.train.schedule import learning_rate
from questtrain.train.step import TrainingStep
from questtrain.train.switch import switched
from questtrain.train.task_evaluation import COLUMN, TaskEvaluator, evaluated, is_done, is_due
from questtrain.train.watching import in_a_step
from questtrain.train.weight_source import WeightSource

log = logging.getLogger(__name__)

T = TypeVar("T")

CALIBRATION_ROWS = 8
"""Sequences that learned scales are initialised from."""


class Trainer:
    """One run on one device, or one rank's part of it, from its last checkpoint (if any) to its
    record."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: TokenDataset,
        folder: Path,
        device: torch.device,
        world: World,
        initial: WeightSource | None = None,
        evaluator: TaskEvaluator | None = None,
    ) -> None:
        """``initial`` holds the weights that a run without a checkpoint starts with, if not its
        own; rank 0's ``evaluator`` does the ``train.eval_tasks``."""
        self.initial, self.evaluator = initial, evaluator
        self.config, self.dataset, self.folder, self.device = config, dataset, folder, device
        self.world = world
        self.total_steps = steps(config)
        self.rows = world.rows(config.batch_size)
        self.loader = Loader(
            dataset.train, config.batch_size, config.sequence_length, seed=config.seed
        )
        self.switch_step = switch_step(config)
        if self.switch_step is not None and config.train.backward == "fp8":
            TrainingStep(at_step(config, self.switch_step), device, world)  # refused now, or never
        self._begin()
        self.step = 0
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.asked = StopAfterStep()
        self.saved: set[int] = set()  # steps whose checkpoints are known to be intact
        self.watch = LossWatch(config.train)
        self.rollbacks: list[Rollback] = []
        self._compiled: TrainingStep | None = None  # the one whose first step is made

    def _begin(self) -> None:
        """The model and its optimizer as they are before the first update."""
        self.update = TrainingStep(at_step(self.config, 0), self.device, self.world)
        self.model = self.update.model

    def run(self) -> RunRecord:
        """Train to the end and return the run record; raises TrainingStopped."""
        with on_stop_signals(self.asked.hear):
            self._restore()
            while (trouble := self._train_until_trouble()) is not None:
                self._roll_back(trouble)
            return self.world.from_rank_0(lambda: self._finish("completed"))

    def _train_until_trouble(self) -> Trouble | None:
        """What ended the training before its last step; None where nothing did."""
        self._initialise_scales()
        open_metrics = partial(
            Metrics,
            self.folder,
            self.step,
            self.config.logger,
            asdict(self.config),
            writes=self.world.is_first,
            rollbacks=self.rollbacks,
        )
        try:
            with self.world.agree(open_metrics) as metrics:
                if self.initial is not None and self.step == 0:
                    self._validate(metrics)
                self._train(metrics)
        except Diverged as error:
            return error.trouble
        return None

    def _train(self, metrics: Metrics) -> None:
        config = self.config
        progress = Progress(self.total_steps, self.step, shown=self.world.is_first)
        rate = StepRate(self.step)
        try:
            if self.step < self.total_steps and (stop := self._asked_to_stop()):
                raise Interrupted(stop, self.step)
            self._evaluate_tasks(metrics, again=True)
            while self.step < self.total_steps:
                row = self._update()
                self.step += 1
                progress.advance()
                last = self.step == self.total_steps
                stop = self._asked_to_stop()
                if last or self.step % config.log_every == 0:
                    self._check_losses()
                    row = training_row(
                        config, self.step, row, rate.since_last(self.step), self.device, self.world
                    )
                    row |= self._bits_column()
                    self._write(metrics, row)
                    progress.show(row)
                elif self.watch.is_full:
                    self._check_losses()
                if self.step == self.switch_step:
                    self._check_losses()
                    self.watch.begin_anew()
                    with rate.paused():
                        self._switch()
                        self._initialise_scales()
                with rate.paused():
                    self._evaluate_and_save(metrics, must_save=bool(last or stop), last=last)
                    if not stop:
                        self._evaluate_tasks(metrics)
                if stop and not (last and not self._evaluates()):
                    raise Interrupted(stop, self.step)
        finally:
            progress.close()

    def _evaluate_and_save(self, metrics: Metrics, must_save: bool, last: bool) -> None:
        """Validation, diagnostics and a checkpoint, where they are due after this step."""
        config = self.config
        loss = None
        if last or self.step % config.eval_every == 0:
            self._check_losses()
            loss = self._validate(metrics)
        if config.train.diagnose_every and self.step % config.train.diagnose_every == 0:
            self._write(metrics, self._between_steps(self._diagnose))
        if must_save or self.step % config.checkpoint_every == 0:
            self._check_losses()
            if loss is None:
                self._require_finite_loss()
            self.world.agree(self._save)

    def _evaluates(self) -> bool:
        """Whether ``train.eval_tasks`` are due after this step."""
        return is_due(self.config, self.step, self.total_steps)

    def _evaluate_tasks(self, metrics: Metrics, again: bool = False) -> None:
        """The ``train.eval_tasks`` where they are due, by rank 0 while the others wait. A signal
        ends the run at once, with this step saved; who goes on there (``again``) makes them up."""
        if not self._evaluates():
            return
        if again and self.world.from_rank_0(lambda: is_done(self.folder, self.step)):
            return
        columns = self.world.from_rank_0(self._columns_of_tasks)
        if columns is not None:
            if columns:
                self._write(metrics, {"step": self.step, COLUMN: columns, **self._bits_column()})
            return
        if self.step not in self.saved:
            self._check_losses()
            self._require_finite_loss()
            self.world.agree(self._save)
        raise Interrupted(self._asked_to_stop(), self.step)

    def _columns_of_tasks(self) -> dict[str, float] | None:
        evaluator, weights = self.evaluator, self.model.state_dict()
        assert evaluator is not None, "train() makes one where there are tasks"
        work = partial(
            evaluator.evaluate,
            weights,
            self.update.config,
            self.step,
            self.device,
            stops=lambda: bool(self.asked.number),
        )
        return evaluated(self.folder, self.step, lambda: self.update.between_steps(work))

    def _validate(self, metrics: Metrics) -> float:
        """The validation loss of the model as it is, which is written."""
        loss = self._validation_loss()
        tokens = self.step * self.config.batch_size * self.config.sequence_length
        row = {"step": self.step, "val_loss": loss, "tokens": tokens, **self._bits_column()}
        self._write(metrics, row)
        return loss

    def _asked_to_stop(self) -> int:
        """The number of a signal that some rank was sent; 0: none."""
        return self.world.all_reduce_max(self.asked.number)

    def _write(self, metrics: Metrics, row: dict[str, Any]) -> None:
        self.world.agree(lambda: metrics.write(row))

    def _update(self) -> dict[str, Any]:
        """One optimizer step on the batch of ``self.step``; returns its raw metrics."""
        config = self.config
        lr = learning_rate(self.step, self.total_steps, config.lr, config.schedule)
        with in_a_step() if self._compiled is self.update else nullcontext():
            batch = self.world.fail_alone(lambda: self.loader.batch(self.step, self.rows))
            loss, norm = self.update(batch, lr)
        self._compiled = self.update
        self.watch.note(loss, norm)
        return {"train_loss": loss, "lr": lr, "grad_norm": norm}

    def _switch(self) -> None:
        """Go on in the run's second bits, with the weights and AdamW's moments as they are."""
        assert self.switch_step is not None
        self.update = switched(self.update, at_step(self.config, self.switch_step))
        self.model = self.update.model
        log.info("step %d: %s from here on", self.switch_step, self.config.bits)

    def _bits_column(self) -> dict[str, Any]:
        """Which bits a row's number is of, where a run has several."""
        return {} if self.switch_step is None else {"bits": self.update.config.bits}

    def _initialise_scales(self) -> None:
        """Learned scales start from the first rows of their phase's first batch, whatever the
        micro-batch and the rank; all ranks have the first one's weights then."""
        if not all(scalar.initialised for scalar in learned_scalars(self.model)):
            first = phase_start(self.config, self.step)
            self._eager_loss(self.loader.batch(first, slice(CALIBRATION_ROWS)))
        self.world.broadcast(self.model.parameters())

    @torch.no_grad()
    def _eager_loss(self, rows_BT: np.ndarray) -> Tensor:
        """The model's own summed loss over sequences, int64 ``[B, T+1]``."""
        tokens = torch.from_numpy(rows_BT).to(self.device)
        return self.update.eager_loss_of(tokens[:, :-1], tokens[:, 1:])

    def _validation_loss(self) -> float:
        """The run has diverged where it is not finite."""
        loss = self._between_steps(self._measure)
        if not math.isfinite(loss):
            raise self._useless_weights()
        return loss

    def _require_finite_loss(self) -> None:
        """The last update may have made weights that are of no use: they reach no checkpoint. One
        window, eagerly, because a signal leaves no time to compile anything."""
        length, validation = self.config.sequence_length, self.dataset.validation
        loss = self._between_steps(
            lambda: float(self._eager_loss(next(validation_batches(validation, 1, length, length))))
        )
        if self.world.all_reduce_max(int(not math.isfinite(loss))):
            raise self._useless_weights()

    def _useless_weights(self) -> Diverged:
        """The next update's loss would say the same: that trouble is seen here does not change
        which batches have led to it."""
        what = f"the validation loss became NaN or infinite at step {self.step}"
        return Diverged(Trouble(self.step, what))

    def _measure(self) -> float:
        config = self.config
        rows, rank = self.update.micro_batch, self.world.rank
        batches = validation_batches(
            self.dataset.validation,
            rows * self.world.size,
            config.sequence_length,
            config.train.validation_tokens,
            slice(rows * rank, rows * (rank + 1)),
        )
        return validation_loss(self.update.loss_of, batches, rows, self.device, self.world)

    def _between_steps(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, which looks at the model, and at shards that may be damaged."""
        return self.world.fail_alone(lambda: self.update.between_steps(work))

    def _diagnose(self) -> dict[str, Any]:
        batches = diagnostic_batches(self.config, self.dataset.validation, 1)
        tokens = torch.from_numpy(next(batches)).to(self.device)
        return {
            "step": self.step,
            **diagnostic_metrics(self.model, self.update.eager_loss_of, tokens),
        }

    def _check_losses(self) -> None:
        """Diverged where one is of no use, of the updates since the last time."""
        trouble = self.watch.look(self.step)
        if self.config.train.on_divergence == "rollback":
            trouble = self.world.broadcast_object(trouble)
        if trouble is not None:
            raise Diverged(trouble)

    def _roll_back(self, trouble: Trouble) -> None:
        """Become the run that goes on from before ``trouble``; TrainingStopped where it ends."""
        config, spent = self.config, self._wall_seconds()
        if config.train.on_divergence == "stop":
            self._diverged(trouble.what)
        work = partial(go_back, self.folder, config, self.dataset, self.loader, trouble)
        try:
            step, self.initial = self.world.from_rank_0(work)
        except CannotGoBack as why:
            self._diverged(f"{trouble.what}, {why}")
        self.step, self.saved = 0, {saved for saved in self.saved if saved <= step}
        self.update.optimizer.state.clear()
        if step == 0 or bits_at(config, step) != self.update.config.bits:
            self.update.release()
            self._begin()
        self._restore()
        self.seconds_before += spent - self._wall_seconds()  # what is done again takes time again

    def _diverged(self, what: str) -> NoReturn:
        if not self.world.is_first:
            raise ErrorOnAnotherRank(TrainingStopped.exit_code)
        self._finish("diverged")
        raise TrainingStopped(
            f"{what}. Last good checkpoint: {last_good_checkpoint(self.folder)}."
            f" Try a lower lr (now {self.config.lr:g}), a longer"
            " schedule.warmup_fraction, or another seed, under another name=…."
        )

    def _restore(self) -> None:
        """The state of the folder: of its last checkpoint, or of the run's start."""
        checkpoint, self.rollbacks = self.world.from_rank_0(
            lambda: (latest_checkpoint(self.folder), read_rollbacks(self.folder))
        )
        self.loader.skip(skipped_batches(self.rollbacks))
        if checkpoint is None:
            self.watch.begin_anew()
            if self.initial is not None:
                self._start_from(self.initial)
            return
        if bits_at(self.config, checkpoint.step) != self.update.config.bits:
            self._switch()
        load_state(checkpoint, self.update, self.watch)
        self.saved.add(checkpoint.step)
        self.step, self.seconds_before = checkpoint.step, checkpoint.wall_seconds
        log.info("resuming %s at step %d", self.folder, self.step)

    def _start_from(self, initial: WeightSource) -> None:
        """Rank 0 reads; all need the weights before learned scales start from them."""
        if self.world.is_first:
            load_initial_weights(self.model, initial)
        self.world.broadcast(self.model.parameters())
        log.info("%s starts with the weights of %s", self.config.name, initial.folder)

    def _save(self) -> None:
        if self.world.is_first:
            spent = self._wall_seconds()
            save_state(self.folder, self.step, self.update, self.watch, spent, self.saved)
            self.saved.add(self.step)

    def _finish(self, status: Status) -> RunRecord:
        spent, size = self._wall_seconds(), self.world.size
        return leave_record(
            self.folder, self.config, status, self.dataset, self.step, spent, self.device, size
        )

    def _wall_seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started
