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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

from annotated_types import MinLen

from questtrain.config.loading import read_config
from questtrain.errors import UserError
from questtrain.scaling.run_folders import find_runs
from questtrain.store.json_file import DamagedJson, read_json
from questtrain.store.metric_rows import read_metric_rows
from questtrain.store.run_record import HEAD_COLUMNS, identity_columns

log = logging.getLogger(__name__)

Record = TypeVar("Record", bound="RunHead")

FRACTION, EXPECTED = "weight_masked_fraction", "expected_masked_fraction"
"""The keys of a mask row in ``metrics.jsonl``."""


@dataclass(frozen=True, kw_only=True)
class RunHead:
    """Which run a record is of; no file holds ``folder``, its path as the user gave it."""

    name: str
    model: str
    bits: str
    method: str
    hadamard: bool
    seed: int
    folder: str = ""


@dataclass(frozen=True)
class Block:
    """Cosine similarity of the gradient after one block with that of unquantized activations: mean
    and std over batches."""

    block: int
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Alignment(RunHead):
    """Figure 2: the alignment of the gradients, block by block in order of depth."""

    step: int
    blocks: Annotated[list[Block], MinLen(1)]


@dataclass(frozen=True)
class MaskPoint:
    """Fraction of the weights with M = 0 at one step."""

    step: int
    fraction: float


@dataclass(frozen=True, kw_only=True)
class MaskHistory(RunHead):
    """Figure 8: the masked fraction over training; ``expected`` is that of exactly Gaussian
    weights, None for a method that has no such value."""

    points: Annotated[list[MaskPoint], MinLen(1)]
    expected: float | None


@dataclass(frozen=True, kw_only=True)
class Persistence(RunHead):
    """Figure 9: ``retained[old][new]``, the fraction of the values masked at the old step that are
    still masked at the new one; None where new is not later than old, or nothing was masked."""

    steps: list[int]
    retained: list[list[float | None]]


def read_all(
    paths: Sequence[str | Path], what: str, read: Callable[[Path], Record | None]
) -> list[Record]:
    """The records of the runs that ``paths`` name; a run without one is named in the log, with the
    command that makes it. Raises UserError if no run is left."""
    records = []
    for run in find_runs([str(path) for path in paths]):
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
    record = _read(run, "alignment", Alignment)
    return record and replace(record, blocks=sorted(record.blocks, key=lambda block: block.block))


def read_mask(run: Path) -> MaskHistory | None:
    """``diagnostics/mask.json``; where it is absent, what the run's metrics say of the mask."""
    record = _read(run, "mask", MaskHistory) or _mask_from_metrics(run)
    return record and replace(record, points=sorted(record.points, key=lambda point: point.step))


def read_persistence(run: Path) -> Persistence | None:
    """``diagnostics/persistence.json``: a square matrix over two steps or more."""
    record = _read(run, "persistence", Persistence)
    if record is None:
        return None
    size = len(record.steps)
    if size < 2 or {len(record.retained), *map(len, record.retained)} != {size}:
        problem = "'retained' must be square, a row for each of two or more 'steps'"
        raise DamagedJson(_file(run, "persistence"), problem, _remedy(run, "persistence"))
    retained = [
        [value if new > old else None for new, value in enumerate(row)]
        for old, row in enumerate(record.retained)
    ]
    return replace(record, retained=retained)


def _command(run: Path, what: str) -> str:
    return f"questtrain diagnose {shlex.quote(f'run={run}')} what={what}"


def _remedy(run: Path, what: str) -> str:
    return f"Make it anew: {_command(run, what)}"


def _file(run: Path, what: str) -> Path:
    return run / "diagnostics" / f"{what}.json"


def _read(run: Path, what: str, kind: type[Record]) -> Record | None:
    """A run's record of ``what``, or None where there is none."""
    try:
        return replace(read_json(_file(run, what), kind, _remedy(run, what)), folder=str(run))
    except FileNotFoundError:
        return None


def _mask_from_metrics(run: Path) -> MaskHistory | None:
    """The rows that training wrote."""
    rows = [
        row
        for row in read_metric_rows(run / "metrics.jsonl")
        if row.get(FRACTION) is not None and EXPECTED in row
    ]
    if not rows:
        return None
    columns = identity_columns(read_config(run / "config.yaml")) | {"name": run.name}
    return MaskHistory(
        **{column: columns[column] for column in HEAD_COLUMNS},
        folder=str(run),
        points=[MaskPoint(row["step"], row[FRACTION]) for row in rows],
        expected=rows[-1][EXPECTED],
    )
