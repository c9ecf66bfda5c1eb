"""The rows of ``metrics.jsonl``, read back and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from questtrain.errors import UserError
from questtrain.store.json_file import Count, parse_json

log = logging.getLogger(__name__)


@dataclass
class _Row:
    """The columns that a row may have; a number that could not be measured is null."""

    step: Count
    train_loss: float | None = None
    val_loss: float | None = None
    bits: str | None = None
    lr: float | None = None
    grad_norm: float | None = None
    tokens: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    memory_bytes: float | None = None
    weight_masked_fraction: float | None = None
    expected_masked_fraction: float | None = None
    gradient_alignment: float | None = None
    evaluations: dict[str, float] | None = None
    rollback: Count | None = None
    found_at: Count | None = None
    reason: str | None = None
    skipped_batches: list[Count] | None = None


def read_metric_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a run, in their order; an absent file is empty.

    A row has a ``step`` and finite numbers. What is no such row, a line torn by a kill or damaged
    otherwise, is left out; the log says how many, the torn end aside.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    rows = [metric_row(line) for line in lines if line.strip()]
    torn_at_end = bool(lines[-1].strip()) and rows[-1] is None
    damaged = rows.count(None) - torn_at_end
    if damaged:
        log.warning("%s: %d damaged rows are left out.", path, damaged)
    return [row for row in rows if row is not None]


def metric_row(line: str | bytes) -> dict[str, Any] | None:
    """The row in a line of the file, or None where it holds none."""
    try:
        parse_json(line, _Row)
    except ValueError:
        return None
    row: dict[str, Any] = from_json(line)
    return row
