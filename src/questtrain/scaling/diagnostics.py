"""What ``questtrain diagnose`` left in run folders, read back and checked.

A run folder holds ``diagnostics/WHAT.json`` for each WHAT that was asked for: ``alignment``,
``mask`` and ``persistence`` (figures 2, 8 and 9 of the paper). Where there is no mask record, the
periodic rows of ``metrics.jsonl`` serve. A reader returns None for a run that has no record, and
raises UserError for one that is damaged.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from questtrain.config.loading import read_config
from questtrain.errors import UserError
from questtrain.store.json_object import JsonObject, read_json_object
from questtrain.store.metric_rows import read_metric_rows

log = logging.getLogger(__name__)

Record = TypeVar("Record")

FRACTION, EXPECTED = "weight_masked_fraction", "expected_masked_fraction"
"""The keys of a mask row in ``metrics.jsonl``."""


@dataclass(frozen=True)
class RunHead:
    """Which run a record is of; ``folder`` is its path as the user gave it."""

    folder: str
    name: str
    model: str
    bits: str
    method: str
    hadamard: bool
    seed: int


@dataclass(frozen=True)
class Alignment:
    """Cosine similarity of the gradient after each block with that of unquantized activations: mean
    and std over batches, in order of depth."""

    run: RunHead
    step: int
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class MaskHistory:
    """Fraction of the weights with M = 0 at some steps; ``expected`` is that of exactly Gaussian
    weights, None for a method that has no such value."""

    run: RunHead
    steps: list[int]
    fractions: list[float]
    expected: float | None


@dataclass(frozen=True)
class Persistence:
    """``retained[old][new]``: the fraction of the values masked at the old step that are still
    masked at the new one; None where new is not later than old, or nothing was masked."""

    run: RunHead
    steps: list[int]
    retained: list[list[float | None]]


def read_all(
    runs: Sequence[Path], what: str, read: Callable[[Path], Record | None]
) -> list[Record]:
    """The records that exist; a run without one is named in the log, with the command that makes
    it. Raises UserError if no run is left."""
    records = []
    for run in runs:
        record = read(run)
        if record is not None:
            records.append(record)
            continue
        log.warning("left out: %s has no %s record; make it: %s", run, what, _command(run, what))
    if not records:
        raise UserError(f"nothing to draw: none of the runs has a record of its {what}.")
    return records


def read_alignment(run: Path) -> Alignment | None:
    """``diagnostics/alignment.json``, its blocks in order of depth."""
    record = _read(run, "alignment")
    if record is None:
        return None
    blocks = sorted(record.objects("blocks"), key=lambda block: block.take("block", int))
    return Alignment(
        run=_head(run, record),
        step=record.take("step", int),
        mean=[block.take("mean", float) for block in blocks],
        std=[block.take("std", float) for block in blocks],
    )


def read_mask(run: Path) -> MaskHistory | None:
    """``diagnostics/mask.json``; where it is absent, what the run's metrics say of the mask."""
    record = _read(run, "mask")
    if record is None:
        return _mask_from_metrics(run)
    points = sorted(record.objects("points"), key=lambda point: point.take("step", int))
    return MaskHistory(
        run=_head(run, record),
        steps=[point.take("step", int) for point in points],
        fractions=[point.take("fraction", float) for point in points],
        expected=record.take_or_none("expected", float),
    )


def read_persistence(run: Path) -> Persistence | None:
    """``diagnostics/persistence.json``: a square matrix over two steps or more."""
    record = _read(run, "persistence")
    if record is None:
        return None
    steps = record.items("steps", int)
    retained = [
        [
            record.check("retained", value, float) if new > old and value is not None else None
            for new, value in enumerate(row)
        ]
        for old, row in enumerate(record.items("retained", list))
    ]
    if len(steps) < 2 or {len(retained), *map(len, retained)} != {len(steps)}:
        raise record.damaged("'retained' must be square, a row for each of two or more 'steps'")
    return Persistence(_head(run, record), steps, retained)


def _command(run: Path, what: str) -> str:
    return f"questtrain diagnose {shlex.quote(f'run={run}')} what={what}"


def _remedy(run: Path, what: str) -> str:
    return f"Make it anew: {_command(run, what)}"


def _read(run: Path, what: str) -> JsonObject | None:
    """A run's record of ``what``, or None where there is none."""
    try:
        return read_json_object(run / "diagnostics" / f"{what}.json", _remedy(run, what))
    except FileNotFoundError:
        return None


def _head(run: Path, record: JsonObject) -> RunHead:
    return RunHead(
        folder=str(run),
        name=record.take("name", str),
        model=record.take("model", str),
        bits=record.take("bits", str),
        method=record.take("method", str),
        hadamard=record.take("hadamard", bool),
        seed=record.take("seed", int),
    )


def _mask_from_metrics(run: Path) -> MaskHistory | None:
    """The rows that training wrote."""
    path = run / "metrics.jsonl"
    rows = [
        JsonObject(row, path, _remedy(run, "mask"))
        for row in read_metric_rows(path)
        if row.get(FRACTION) is not None and EXPECTED in row
    ]
    if not rows:
        return None
    return MaskHistory(
        run=_head_from_config(run),
        steps=[row.take("step", int) for row in rows],
        fractions=[row.take(FRACTION, float) for row in rows],
        expected=rows[-1].take_or_none(EXPECTED, float),
    )


def _head_from_config(run: Path) -> RunHead:
    config = read_config(run / "config.yaml")
    return RunHead(
        folder=str(run),
        name=run.name,
        model=config.model.name,
        bits=config.bits,
        method=config.quant.method,
        hadamard=config.quant.rotation == "hadamard",
        seed=config.seed,
    )
