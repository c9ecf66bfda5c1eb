"""The file of a benchmark: written after every shape, so that a run cut short keeps its numbers,
and under its own name when it is complete, so that this takes no earlier one's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from questtrain.bench.timing import Timing
from questtrain.errors import UserError
from questtrain.store.files import output_for, write_json

Row = dict[str, Any]


class Results:
    """``{"benchmark", "environment", "settings", "ceilings", "rows", "complete"}``.

    A row is one case at one shape: what it is, ``median``, ``low``, ``high`` in microseconds, and
    what follows from them. ``path`` may be None: then nothing is written. Until all is there, the
    rows are in ``unfinished``, ``NAME.unfinished.json`` beside it. UserError where they cannot be.
    """

    def __init__(
        self,
        benchmark: str,
        environment: Mapping[str, Any],
        settings: Mapping[str, Any],
        path: Path | None,
    ) -> None:
        self.path = path
        self.unfinished = path and path.with_name(f"{path.stem}.unfinished{path.suffix}")
        self.rows: list[Row] = []
        self.record: dict[str, Any] = {
            "benchmark": benchmark,
            "environment": dict(environment),
            "settings": dict(settings),
            "ceilings": {},
            "rows": self.rows,
            "complete": False,
        }
        if path is not None and path.is_dir():
            raise UserError(f"{path} cannot be written: it is a folder; name a file in it.")
        self._write()

    def add(self, rows: list[Row]) -> None:
        """Rows of a shape that is measured."""
        self.rows += rows
        self._write()

    def set_ceilings(self, ceilings: Mapping[str, Any]) -> None:
        """What the device can do at best, as `questtrain.bench.layer.ceilings` measures it."""
        self.record["ceilings"] = dict(ceilings)
        self._write()

    def finish(self) -> None:
        """Mark the record complete: nothing was cut short."""
        self.record["complete"] = True
        self._write()
        if self.path is not None and self.unfinished is not None:
            self.unfinished.replace(self.path)

    def _write(self) -> None:
        if self.unfinished is not None:
            with output_for(self.unfinished):
                write_json(self.unfinished, self.record)


def timing_row(what: Mapping[str, Any], case: str, timing: Timing, **numbers: Any) -> Row:
    """One row: what was timed, which case, its microseconds, and numbers that follow."""
    return {**what, "case": case, **asdict(timing), **numbers}


def speed_rows(what: Mapping[str, Any], timings: Mapping[str, Timing], tokens: int) -> list[Row]:
    """A row a case that takes ``tokens`` at once: ``tokens_per_second``, ``speedup`` over BF16."""
    return [
        timing_row(
            what,
            case,
            timing,
            tokens_per_second=tokens / timing.median * 1e6,
            speedup=timings["bf16"].median / timing.median,
        )
        for case, timing in timings.items()
    ]
