"""The runs table: run folders, CSV and JSON lines → one `Run` a row, whatever state it is in."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questtrain.config import parse_bits
from questtrain.config.loading import read_config
from questtrain.errors import UserError, suggestion
from questtrain.scaling.precision import label_of, precision_label
from questtrain.scaling.run_folders import find_runs
from questtrain.store.checkpoint_folders import checkpoint_folders, step_of
from questtrain.store.json_file import DamagedJson
from questtrain.store.metric_rows import read_metric_rows
from questtrain.store.run_record import identity_columns, read_run_record

TABLE_SUFFIXES = (".csv", ".jsonl")
REQUIRED = ("non_embedding_params", "tokens", "precision", "val_loss")
"""What a table of the user's own must have; ``bits`` (and ``method``) can stand for precision."""

STATUSES = ("completed", "diverged", "unfinished", "damaged")


@dataclass(frozen=True)
class Run:
    """One row. ``record`` holds the columns of ``run.json`` (docs/runs.md) as far as they are
    known, ``precision`` among them; ``problem`` says why a run is unfinished or damaged.

    ``folder`` is None for a row of a CSV or JSON-lines table, whose place is in ``source``.
    """

    name: str
    status: str
    record: Mapping[str, Any]
    source: str
    folder: Path | None = None
    problem: str | None = None

    def text(self, column: str) -> str | None:
        """A column as text; None where it is empty."""
        value = self.record.get(column)
        return None if value is None else str(value)

    def number(self, column: str) -> float | None:
        """A column as a number (``inf`` for the straight-through trust scale, written "inf");
        None where it is empty or no number."""
        value = self.record.get(column)
        try:
            return None if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            return None

    @property
    def precision(self) -> str | None:
        """The law's label of how the run was quantized."""
        return self.text("precision")

    @property
    def model(self) -> str | None:
        """The name of the model's size."""
        return self.text("model")

    @property
    def method(self) -> str | None:
        """The name of the method, ``none`` where nothing is quantized."""
        return self.text("method")

    @property
    def val_loss(self) -> float | None:
        """Final validation loss in nats; of a completed run only."""
        return self.number("val_loss") if self.status == "completed" else None

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``; none for a row of a table."""
        return [] if self.folder is None else read_metric_rows(self.folder / "metrics.jsonl")


def read_runs(paths: Sequence[str], nested: bool = False) -> list[Run]:
    """Every run of the folders and tables (``.csv``, ``.jsonl``) that ``paths`` name; ``nested`` as
    in `find_runs`.

    A damaged or unfinished run is a row that says so. UserError: a path that is not there, a
    folder without runs, a table that lacks a column or holds a value that cannot be.
    """
    if not paths:
        raise UserError("no runs given: name run folders, a folder of runs, or a .csv or .jsonl.")
    rows: list[Run] = []
    for path in paths:
        place = Path(path).expanduser()
        if place.suffix in TABLE_SUFFIXES and not place.is_dir():
            rows += read_table(place)
        else:
            rows += [read_run(folder) for folder in find_runs([path], nested)]
    return list({(row.source, row.name): row for row in rows}.values())


def read_run(folder: Path) -> Run:
    """The row of one run folder."""
    try:
        record = read_run_record(folder)
        if record is None:
            return _unfinished(folder)
        precision = precision_label(record.bits, record.method, _switch(record.columns))
    except DamagedJson as error:
        return _damaged(folder, f"run.json: {error.problem}")
    except UserError as error:
        return _damaged(folder, f"run.json holds no run record: {error}")
    columns = record.columns | {"precision": precision}
    return Run(record.name, record.status, columns, str(folder), folder)


def read_table(path: Path) -> list[Run]:
    """The rows of a CSV with a header line, or of JSON lines; UserError names file and line."""
    if not path.exists():
        raise _no_such_table(path)
    try:
        rows = list(_csv_rows(path) if path.suffix == ".csv" else _json_rows(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise UserError(f"{path} holds no runs.")
    return [_table_run(path, line, row) for line, row in rows]


def _unfinished(folder: Path) -> Run:
    """What configuration and metrics say of a run that has no record yet."""
    try:
        config = read_config(folder / "config.yaml")
        columns = identity_columns(config)
        columns["precision"] = precision_label(config.bits, config.quant.method, _switch(columns))
    except UserError as error:
        return _damaged(folder, str(error))
    rows = read_metric_rows(folder / "metrics.jsonl")
    for column in ("train_loss", "val_loss"):
        columns[column] = next((row[column] for row in reversed(rows) if column in row), None)
    step = max((row["step"] for row in rows), default=0)
    saved = [step_of(checkpoint) for checkpoint in checkpoint_folders(folder)]
    goes_on = f"goes on from step {saved[-1]:,}" if saved else "begins anew: nothing is saved yet"
    step = max(step, *saved, 0)
    problem = f"stopped at step {step:,}, or still training; the same command {goes_on}"
    return Run(config.name or folder.name, "unfinished", columns, str(folder), folder, problem)


def _damaged(folder: Path, problem: str) -> Run:
    return Run(folder.name, "damaged", {}, str(folder), folder, problem)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}, line {reader.line_num}: not as many cells as columns.")
            yield reader.line_num, {key: value for key, value in row.items() if value != ""}


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}, line {line} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line} is no object.")
        yield line, row


def _table_run(path: Path, line: int, row: dict[str, Any]) -> Run:
    where = f"{path}, line {line}"
    row = _with_precision(where, row)
    status = str(row.get("status", "completed"))
    if status == "completed":
        _check_row(where, row)
    name = str(row.get("name") or f"{path.name}:{line}")
    return Run(name, status, row, str(path))


def _with_precision(where: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row with the law's label of its ``precision``, or of its ``bits`` where it has none. NaN
    is an empty cell, as pandas writes one into JSON."""
    given, bits = (row.get(column) for column in ("precision", "bits"))
    if given is not None and given == given:
        return row | {"precision": label_of(given)}
    if not bits:
        return {column: value for column, value in row.items() if column != "precision"}
    try:
        return row | {"precision": precision_label(str(bits), row.get("method"), _switch(row))}
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _switch(columns: Mapping[str, Any]) -> tuple[str, float] | None:
    """From which bits the run switched and when; None for one that did not. UserError for a part of
    that, or what it cannot be."""
    before, at = columns.get("switch_from"), columns.get("switch_at")
    if not before and not at:
        return None
    try:
        share = float(at or 0)
    except (TypeError, ValueError):
        share = 0.0
    if not before or not 0 < share < 1:
        raise UserError(f"switch_from={before!r} and switch_at={at!r} are no switch.")
    return str(parse_bits(str(before))), share


def _check_row(where: str, row: Mapping[str, Any]) -> None:
    for column in REQUIRED:
        if row.get(column) is None:
            needs = f"A table needs {', '.join(REQUIRED)}."
            raise UserError(f"{where}: no {column}. {needs}{suggestion(column, row)}")
    for column in ("non_embedding_params", "tokens", "val_loss"):
        if not _is_loss(row[column]):
            raise UserError(f"{where}: {column}={row[column]!r} must be a positive number.")


def _is_loss(value: Any) -> bool:
    """Whether a value is a positive, finite number, as text too."""
    try:
        return not isinstance(value, bool) and 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False


def _no_such_table(path: Path) -> UserError:
    names = [p.name for p in path.parent.glob(f"*{path.suffix}")] if path.parent.is_dir() else []
    return UserError(f"{path}: there is no such file.{suggestion(path.name, names)}")


def export_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows as flat mappings, with status, folder and problem; what files hold."""
    return [
        {
            **run.record,
            "name": run.name,
            "status": run.status,
            "folder": run.source,
            "problem": run.problem,
        }
        for run in runs
    ]
