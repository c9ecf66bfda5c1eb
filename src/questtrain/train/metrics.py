"""What a run writes while it trains: ``metrics.jsonl``, W&B where asked for, a progress line."""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from questtrain.config import LoggerConfig
from questtrain.errors import UserError
from questtrain.store.files import read_json_lines, write_text

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


class MetricsFile:
    """Appends rows to ``metrics.jsonl``; opened at a step, it drops what lies beyond it."""

    def __init__(self, path: Path, start_step: int) -> None:
        kept = [row for row in read_json_lines(path) if row["step"] <= start_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class WandbLogger:
    """Sends the same rows to Weights & Biases; a resumed run continues its own W&B run."""

    def __init__(self, config: LoggerConfig, folder: Path, resolved: dict[str, Any]) -> None:
        import wandb

        identity = folder / "wandb_id.txt"
        if not identity.exists():
            write_text(identity, uuid.uuid4().hex[:12])
        try:
            self._run = wandb.init(
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

    def write(self, row: dict[str, Any]) -> None:
        self._run.log(row, step=row["step"])

    def close(self) -> None:
        self._run.finish()


class Metrics:
    """Fans rows out to the run's file and its logger; on a rank that ``writes`` none, to nobody."""

    def __init__(
        self,
        folder: Path,
        start_step: int,
        config: LoggerConfig,
        resolved: dict[str, Any],
        writes: bool,
    ) -> None:
        self._sinks: list[MetricsFile | WandbLogger] = []
        if writes:
            self._sinks.append(MetricsFile(folder / "metrics.jsonl", start_step))
        if writes and config.name == "wandb":
            self._sinks.append(WandbLogger(config, folder, resolved))

    def write(self, row: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(row)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in self._sinks:
            sink.close()


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
