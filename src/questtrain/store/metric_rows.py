"""The rows of ``metrics.jsonl``, read back and checked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from questtrain.errors import UserError
from questtrain.store.json_object import JsonObject, parse_json

log = logging.getLogger(__name__)

NUMBERS = (
    "train_loss", "val_loss", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu",
    "memory_bytes",
)  # fmt: skip
"""Columns that hold a number in a row that has them, or null where it is not known."""


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
    rows = [metric_row(line, path) for line in lines if line.strip()]
    torn_at_end = bool(lines[-1].strip()) and rows[-1] is None
    damaged = rows.count(None) - torn_at_end
    if damaged:
        log.warning("%s: %d damaged rows are left out.", path, damaged)
    return [row for row in rows if row is not None]


def metric_row(line: str | bytes, path: Path) -> dict[str, Any] | None:
    """The row in a line of ``path``, or None where it holds none."""
    try:
        value = parse_json(line)
        row = JsonObject(value if isinstance(value, dict) else {}, path)
        row.take("step", int, low=0)
        for key in NUMBERS:
            row.optional(key, float)
    except (ValueError, UserError):
        return None
    return dict(row.values)
