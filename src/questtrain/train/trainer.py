"""The training loop.

Everything a step needs is a pure function of (config, step): its batch and its learning rate. The
only state is the weights and AdamW's moments, so a resumed run continues exactly.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from questtrain.config import TrainConfig, flops_per_token, steps
from questtrain.data import Loader, TokenDataset, validation_batches
from questtrain.device import peak_flops, peak_memory_bytes
from questtrain.errors import Elsewhere, TrainingStopped
from questtrain.quant import learned_scalars
from questtrain.store.checkpoint import latest_checkpoint, save_checkpoint
from questtrain.store.files import read_json_lines, write_json
from questtrain.train.diagnostics import diagnostic_batches, diagnostic_metrics
from questtrain.train.evaluate import validation_loss
from questtrain.train.metrics import Metrics, Progress, StepRate
from questtrain.train.optimizer import optimizer_tensors, restore_optimizer
from questtrain.train.parallel import World
from questtrain.train.picture import draw_loss
from questtrain.train.record import build_record, data_record
from questtrain.train.schedule import learning_rate
from questtrain.train.step import TrainingStep

log = logging.getLogger(__name__)

CALIBRATION_ROWS = 8
"""Sequences that learned scales are initialised from."""


class Interrupted(TrainingStopped):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(f"saved step {step}; the same command continues from here.")
        self.exit_code = 128 + signal_number


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
    ) -> None:
        self.config, self.dataset, self.folder, self.device = config, dataset, folder, device
        self.world = world
        self.total_steps = steps(config)
        self.rows = world.rows(config.batch_size)
        self.loader = Loader(
            dataset.train, config.batch_size, config.sequence_length, seed=config.seed
        )
        self.update = TrainingStep(config, device, world)
        self.model = self.update.model
        self.step = 0
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.interrupted_by = 0
        self._first_bad_step = torch.full((), -1, device=device)

    def run(self) -> dict[str, Any]:
        """Train to the end and return the run record; raises TrainingStopped."""
        self._restore()
        self._initialise_scales()
        self.world.copy_from_first(self.model.parameters())
        with self._stops_on_signals(), self.world.together(self._metrics) as metrics:
            self._train(metrics)
        return self.world.from_first(self._finish("completed") if self.world.is_first else {})

    def _metrics(self) -> Metrics:
        resolved = asdict(self.config)
        return Metrics(
            self.folder, self.step, self.config.logger, resolved, writes=self.world.is_first
        )

    def _train(self, metrics: Metrics) -> None:
        config = self.config
        progress = Progress(self.total_steps, self.step, shown=self.world.is_first)
        rate = StepRate(self.step)
        diagnose_every = config.train.diagnose_every
        try:
            while self.step < self.total_steps:
                row = self._update()
                self.step += 1
                progress.advance()
                last = self.step == self.total_steps
                stop = self.world.largest(self.interrupted_by)
                if last or self.step % config.log_every == 0:
                    self._check_finite()
                    row = self._logged(row, rate.since_last(self.step))
                    metrics.write(row)
                    progress.show(row)
                with rate.paused():
                    if last or self.step % config.eval_every == 0:
                        metrics.write(self.update.beside(self._validate))
                    if diagnose_every and self.step % diagnose_every == 0:
                        metrics.write(self.update.beside(self._diagnose))
                    if last or stop or self.step % config.checkpoint_every == 0:
                        self._check_finite()
                        self._save()
                if stop and not last:
                    raise Interrupted(stop, self.step)
        finally:
            progress.close()

    def _update(self) -> dict[str, Any]:
        """One optimizer step on the batch of ``self.step``; returns its raw metrics."""
        config = self.config
        lr = learning_rate(self.step, self.total_steps, config.lr, config.schedule)
        loss, norm = self.update(self.loader.batch(self.step, self.rows), lr)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        is_first = ~finite & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first, self.step + 1, self._first_bad_step)
        return {"train_loss": loss, "lr": lr, "grad_norm": norm}

    def _initialise_scales(self) -> None:
        """Learned scales start from the first rows of the first batch, whatever the micro-batch
        and the rank."""
        if all(scalar.initialised for scalar in learned_scalars(self.model)):
            return
        rows = self.loader.batch(0, slice(CALIBRATION_ROWS))
        tokens = torch.from_numpy(rows).to(self.device)
        with torch.no_grad():
            self.update.eager_loss_of(tokens[:, :-1], tokens[:, 1:])

    def _logged(self, row: dict[str, Any], steps_per_second: float) -> dict[str, Any]:
        config = self.config
        batch_tokens = config.batch_size * config.sequence_length
        tokens_per_second = steps_per_second * batch_tokens
        per_device = tokens_per_second / self.world.size
        peak = peak_flops(self.device)
        flops = flops_per_token(config.model, config.model.vocab_size or 0, config.sequence_length)
        return {
            "step": self.step,
            "train_loss": float(row["train_loss"]),
            "lr": row["lr"],
            "grad_norm": float(row["grad_norm"]),
            "tokens": self.step * batch_tokens,
            "tokens_per_second": round(tokens_per_second, 1),
            "mfu": None if peak is None else round(flops * per_device / peak, 4),
            "memory_bytes": peak_memory_bytes(self.device),
        }

    def _validate(self) -> dict[str, Any]:
        config = self.config
        rows, rank = self.update.micro_batch, self.world.rank
        batches = validation_batches(
            self.dataset.validation,
            rows * self.world.size,
            config.sequence_length,
            config.train.validation_tokens,
            slice(rows * rank, rows * (rank + 1)),
        )
        loss = validation_loss(self.update.loss_of, batches, rows, self.device, self.world)
        tokens = self.step * config.batch_size * config.sequence_length
        return {"step": self.step, "val_loss": loss, "tokens": tokens}

    def _diagnose(self) -> dict[str, Any]:
        batches = diagnostic_batches(self.config, self.dataset.validation, 1)
        tokens = torch.from_numpy(next(batches)).to(self.device)
        return {
            "step": self.step,
            **diagnostic_metrics(self.model, self.update.eager_loss_of, tokens),
        }

    def _check_finite(self) -> None:
        step = int(self._first_bad_step)
        if step < 0:
            return
        if not self.world.is_first:
            raise Elsewhere(TrainingStopped.exit_code)
        checkpoint = latest_checkpoint(self.folder)
        kept = f"step {checkpoint.step} ({checkpoint.folder})" if checkpoint else "none"
        self._finish("diverged")
        raise TrainingStopped(
            f"the loss or its gradient became NaN or infinite at step {step}."
            f" Last good checkpoint: {kept}. Try a lower lr (now {self.config.lr:g}), a longer"
            " schedule.warmup_fraction, or another seed, under another name=…."
        )

    def _restore(self) -> None:
        world, folder = self.world, self.folder
        found = world.together(lambda: latest_checkpoint(folder) if world.is_first else None)
        checkpoint = world.from_first(found)
        if checkpoint is None:
            return
        checkpoint.load_weights(self.model)
        restore_optimizer(checkpoint.tensors("optimizer"), self.model, self.update.optimizer)
        self.step, self.seconds_before = checkpoint.step, checkpoint.wall_seconds
        log.info("resuming %s at step %d", folder, self.step)

    def _save(self) -> None:
        if not self.world.is_first:
            return
        parts = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.model, self.update.optimizer),
        }
        keep = self.config.train.keep_checkpoints
        save_checkpoint(self.folder, self.step, parts, self._wall_seconds(), keep)

    def _finish(self, status: str) -> dict[str, Any]:
        rows = read_json_lines(self.folder / "metrics.jsonl")
        record = build_record(
            self.config,
            status,
            self.dataset.tokenizer.label,
            rows,
            self._wall_seconds(),
            self.device,
            self.world.size,
        ) | data_record(self.config, self.dataset)
        draw_loss(
            rows,
            f"{self.config.model.name} {self.config.bits}",
            self.folder / "figures" / "loss.png",
            self.dataset.unigram_entropy,
        )
        write_json(self.folder / "run.json", record)
        return record

    def _wall_seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    @contextmanager
    def _stops_on_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the current step; a second Ctrl-C at once.

        A second SIGTERM is the first again: a cluster sends it to every process of a job, and the
        parent passes it on.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted_by and number == signal.SIGTERM:
            return
        if self.interrupted_by:
            raise KeyboardInterrupt
        self.interrupted_by = number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        log.warning("stopping after this step and saving a checkpoint%s", again)
