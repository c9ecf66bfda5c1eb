"""``rollbacks.json``: when a run went back to an earlier step because its loss was of no use, and
which batches it has skipped ever since.

A run's batches follow from its data, its seed and this file, so that whoever goes on with it, on
however many processes, trains on the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from questtrain.store.files import write_json
from questtrain.store.json_file import Count, read_json

FILE = "rollbacks.json"


@dataclass(frozen=True)
class Rollback:
    """``found_at`` is the step (from 1) at which ``reason`` was seen, ``step`` the one that the run
    went back to (0: its start); ``skipped`` are numbers of batches, from 0: in a run that skips
    none, batch n is that of step n + 1."""

    found_at: Count
    reason: str
    step: Count
    skipped: list[Count]


@dataclass(frozen=True)
class _Rollbacks:
    """The file."""

    rollbacks: list[Rollback]


def read_rollbacks(run: Path) -> list[Rollback]:
    """Those of a run, oldest first; DamagedJson names what is wrong with the file."""
    try:
        return read_json(run / FILE, _Rollbacks).rollbacks
    except FileNotFoundError:
        return []


def write_rollbacks(run: Path, rollbacks: Sequence[Rollback]) -> None:
    """All of them, at once; WriteFailed where the disk refuses it."""
    write_json(run / FILE, asdict(_Rollbacks(list(rollbacks))))


def skipped_batches(rollbacks: Sequence[Rollback]) -> list[int]:
    """The numbers of all batches that are skipped, in ascending order."""
    return sorted({number for rollback in rollbacks for number in rollback.skipped})
