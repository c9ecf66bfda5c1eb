"""What a run writes while it trains: ``metrics.jsonl``, W&B where asked for, a progress line."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from questtrain.config import LoggerConfig, TrainConfig, flops_per_token
from questtrain.device import peak_flops, peak_memory_bytes
from questtrain.errors import UserError
from questtrain.store.files import LineFile, write_text, writing
from questtrain.store.metric_rows import read_metric_rows
from questtrain.store.rollbacks import Rollback
from questtrain.train.parallel import World

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0

ROLLBACK = "rollback"
"""Of the rows of metrics.jsonl that say from where, and why, a run went back: which one, from 1."""


class Metrics(AbstractContextManager["Metrics"]):
    """Writes rows to ``metrics.jsonl`` and to the run's logger; on a rank that ``writes`` none, to
    nobody.

    Rows of the file beyond ``start_step`` are dropped, and all of them where a run starts anew;
    each of its ``rollbacks`` has a row. A number that is not finite is written as null: JSON has no
    other word for it.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        config: LoggerConfig,
        resolved: dict[str, Any],
        writes: bool,
        rollbacks: Sequence[Rollback] = (),
    ) -> None:
        self._file: LineFile | None = None
        self._wandb: wandb.Run | None = None
        if not writes:
            return
        path = folder / "metrics.jsonl"
        rows = [row for row in read_metric_rows(path) if start_step and row["step"] <= start_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = LineFile(path)
        if config.name == "wandb":
            self._wandb = _start_wandb(config, folder, resolved, rows)
        written = {row.get(ROLLBACK) for row in rows}
        for number, rollback in enumerate(rollbacks, start=1):
            if number not in written:
                self.write(_rollback_row(start_step, number, rollback))

    def write(self, row: dict[str, Any]) -> None:
        """WriteFailed where the disk refuses it."""
        plain = {key: _finite(value) for key, value in row.items()}
        if self._file is not None:
            self._file.write(json.dumps(plain, allow_nan=False))
        if self._wandb is not None:
            self._wandb.log(plain, step=plain["step"])

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish()


def training_row(
    config: TrainConfig,
    step: int,
    raw: dict[str, Any],
    steps_per_second: float,
    device: torch.device,
    world: World,
) -> dict[str, Any]:
    """The row of update ``step`` (from 1), whose ``raw`` metrics are on the device, which is
    waited for."""
    batch_tokens = config.batch_size * config.sequence_length
    tokens_per_second = steps_per_second * batch_tokens
    peak = peak_flops(device)
    flops = flops_per_token(config.model, config.model.vocab_size or 0, config.sequence_length)
    return {
        "step": step,
        "train_loss": float(raw["train_loss"]),
        "lr": raw["lr"],
        "grad_norm": float(raw["grad_norm"]),
        "tokens": step * batch_tokens,
        "tokens_per_second": round(tokens_per_second, 1),
        "mfu": None if peak is None else round(flops * tokens_per_second / world.size / peak, 4),
        "memory_bytes": peak_memory_bytes(device),
    }


def _rollback_row(step: int, number: int, rollback: Rollback) -> dict[str, Any]:
    return {
        "step": step,
        ROLLBACK: number,
        "found_at": rollback.found_at,
        "reason": rollback.reason,
        "skipped_batches": rollback.skipped,
    }


def _start_wandb(
    config: LoggerConfig, folder: Path, resolved: dict[str, Any], earlier_rows: list[dict[str, Any]]
) -> wandb.Run:
    """What takes the same rows to Weights & Biases; a resumed run continues its own W&B run.

    Online, the server has what was sent before. Offline, every start writes a folder of its own,
    and syncing one replaces what an earlier one has brought: the ``earlier_rows`` come first, so
    that the newest folder holds the whole run.
    """
    import wandb

    identity = folder / "wandb_id.txt"
    if not identity.exists():
        write_text(identity, uuid.uuid4().hex[:12])
    try:
        with writing(folder / "wandb"):
            run = wandb.init(
                project=config.project,
                entity=config.entity,
                mode=config.mode,  # type: ignore[arg-type]
                tags=config.tags,
                name=folder.name,
                id=identity.read_text(),
                resume="allow" if config.mode == "online" else None,
                dir=folder,
                config=resolved,
            )
    except (wandb.Error, ValueError) as error:  # ValueError: one of its own variables
        raise UserError(
            f"Weights & Biases did not start: {error} logger.mode=offline needs no login."
        ) from error
    if config.mode == "offline":
        for row in earlier_rows:
            run.log(row, step=row["step"])
    return run


def _finite(value: Any) -> Any:
    """The value, a list's item by item, with None for NaN and infinity."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StepRate:
    """Steps a second between log rows, without the time spent in pauses."""

    def __init__(self, step: int) -> None:
        self._step, self._start = step, time.monotonic()

    def since_last(self, step: int) -> float:
        """Steps a second since the previous call; the caller has waited for the device."""
        now = time.monotonic()
        rate = (step - self._step) / (now - self._start)
        self._step, self._start = step, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (validation, checkpoints) does not count."""
        begin = time.monotonic()
        yield
        self._start += time.monotonic() - begin


class Progress:
    """A tqdm bar on a terminal; elsewhere (a job's log) a line every ten seconds."""

    def __init__(self, total: int, start: int, shown: bool = True) -> None:
        self._terminal = shown and sys.stderr.isatty()
        self._total = total
        self._last_line = time.monotonic()
        self._bar = tqdm(
            total=total, initial=start, unit="step", dynamic_ncols=True, disable=not self._terminal
        )

    def advance(self) -> None:
        self._bar.update(1)

    def show(self, row: dict[str, Any]) -> None:
        rate = row["tokens_per_second"]
        self._bar.set_postfix_str(f"loss {row['train_loss']:.4f}, {rate:,.0f} tokens/s")
        now = time.monotonic()
        if self._terminal or now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        left = (self._total - row["step"]) * row["tokens"] / row["step"] / rate
        log.info(
            "step %d/%d  loss %.4f  %s tokens/s  %s left",
            row["step"],
            self._total,
            row["train_loss"],
            f"{rate:,.0f}",
            tqdm.format_interval(left),
        )

    def close(self) -> None:
        self._bar.close()
