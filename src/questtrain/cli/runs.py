"""``questtrain runs``: the table of runs, filtered, sorted, and as a file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

from questtrain.cli.arguments import parse_arguments, refuse_options, split_paths, take_option
from questtrain.cli.output import number_text, plain_table, print_json
from questtrain.errors import counted, unknown
from questtrain.scaling.numbers import count_text, duration
from questtrain.scaling.runs import export_rows, read_runs
from questtrain.store.evaluations import STDERR
from questtrain.store.files import output_for, write_text
from questtrain.store.run_record import RunRecord
from questtrain.sweep.console import console

Row: TypeAlias = dict[str, Any]

OWN_COLUMNS = ("precision", "status", "folder", "problem")
"""Of the table, beside those of run.json."""

OTHERS_SHOWN = 6
"""Columns of evaluations that the printed table has at the most."""

HELP = """usage: questtrain runs [RUNS…] [column=value …] [--sort COLUMN]
                      [--csv FILE] [--jsonl FILE] [--json]

The table of runs. RUNS are run folders, folders that hold runs at any depth, or tables (.csv,
.jsonl)   [runs]. Unfinished and damaged runs are rows too, with the reason below the table.

  column=value    only rows that have it: model=30M, bits=w4a4,w2a2, status=completed, name=*lsq*;
                  the columns are those of run.json (docs/runs.md), of evaluations
                  (hellaswag.acc_norm), precision, folder and problem
  --sort COLUMN   in ascending order, rows without a value last   [in the order of the folders]
  --csv FILE      every column as CSV; `questtrain fit` and `plot` read it again
  --jsonl FILE    the same as JSON lines
  --json          print all columns instead of the table
"""


def help_page(words: Sequence[str] = ()) -> str:
    """What ``questtrain runs --help`` prints."""
    return HELP


def main(words: Sequence[str]) -> int:
    """Show the table of runs, or write it."""
    csv_file, words = take_option(words, "--csv", what="a file")
    jsonl_file, words = take_option(words, "--jsonl", what="a file")
    sort, words = take_option(words, "--sort", what="a column")
    arguments = parse_arguments(words)
    paths, filters = split_paths(arguments.overrides)
    refuse_options(filters, "--sort COLUMN", "--csv FILE", "--jsonl FILE", "--json", "--help")
    rows = export_rows(read_runs(paths or ["runs"], nested=True))
    rows = _sorted([row for row in rows if _agrees(row, _filters(filters, rows))], sort)
    if csv_file is not None:
        _write(csv_file, _csv_text(rows))
    if jsonl_file is not None:
        _write(jsonl_file, "".join(json.dumps(row) + "\n" for row in rows))
    if arguments.json:
        print_json(rows)
    elif csv_file is None and jsonl_file is None:
        _print_table(rows)
    return 0


def _filters(words: Sequence[str], rows: Sequence[Row]) -> dict[str, list[str]]:
    """``column=a,b`` → {column: [a, b]}; UserError for a column that no row has."""
    filters = {}
    for word in words:
        column, _, values = word.partition("=")
        filters[_column(column, rows)] = values.split(",")
    return filters


def _column(name: str, rows: Sequence[Row]) -> str:
    known = dict.fromkeys(column for row in rows for column in row)
    if name not in known:
        raise unknown("column", name, known)
    return name


def _agrees(row: Row, filters: dict[str, list[str]]) -> bool:
    return all(
        any(_is(row.get(column), wanted) for wanted in values) for column, values in filters.items()
    )


def _is(value: Any, wanted: str) -> bool:
    """Numbers by value (1e9 is 1000000000), text by pattern, ``null`` for an empty cell."""
    if value is None:
        return wanted in ("", "null")
    if isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    number = _as_number(wanted)
    if number is not None and number == _as_number(value):
        return True
    return fnmatch(str(value), wanted)


def _sorted(rows: list[Row], column: str | None) -> list[Row]:
    if column is None or not rows:
        return rows
    name = _column(column, rows)

    def key(row: Row) -> tuple[bool, bool, float, str]:
        value, number = row.get(name), _as_number(row.get(name))
        return value is None, number is None, number or 0.0, str(value)

    return sorted(rows, key=key)


def _as_number(value: Any) -> float | None:
    """A number, or the text of one, as a cell of a CSV holds it."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        return None


def _csv_text(rows: Sequence[Row]) -> str:
    """Every column that some row has, in the order of their first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(file: str, text: str) -> None:
    path = Path(file).expanduser()
    with output_for(path):
        write_text(path, text)
    print(path)


def _print_table(rows: Sequence[Row]) -> None:
    numbers = ("P", "params", "tokens", "val loss", "train loss", "time", "tokens/s")
    others = _other_columns(rows)
    shown = others[:OTHERS_SHOWN]
    headings = ("\n".join(column.rsplit(".", 1)) for column in shown)
    table = plain_table(["run", "status"], (*numbers, *headings))
    table.columns[0].overflow = "fold"
    for row in rows:
        table.add_row(
            *(str(row.get(key) or "") for key in ("name", "status", "precision")),
            *(_cell(row, key, count_text) for key in ("non_embedding_params", "tokens")),
            *(_cell(row, key, "{:.4f}".format) for key in ("val_loss", "train_loss")),
            _cell(row, "wall_seconds", duration),
            _cell(row, "tokens_per_second", count_text),
            *(_cell(row, column, number_text) for column in shown),
            style={"completed": "", "unfinished": "dim"}.get(str(row["status"]), "red"),
        )
    console().print(table)
    counts = Counter(str(row["status"]) for row in rows)
    print(f"\n{len(rows)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    if others[OTHERS_SHOWN:]:
        print(f"evaluated too, with --csv or --json: {', '.join(others[OTHERS_SHOWN:])}")
    for row in rows:
        if row["problem"]:
            print(f"{row['status']}: {row['name']}: {row['problem']}")
        if times := int(_as_number(row.get("rollbacks")) or 0):
            batches = int(_as_number(row.get("skipped_batches")) or 0)
            print(
                f"rolled back: {row['name']}: {counted(times, 'time', 'times')},"
                f" {counted(batches, 'batch', 'batches')} skipped"
            )


def _other_columns(rows: Sequence[Row]) -> list[str]:
    """Columns of numbers that are none of the record's own: what tasks found. Without standard
    errors, and without a task's accuracy where it is normalized, too."""
    own = {*RunRecord.__dataclass_fields__, *OWN_COLUMNS}
    found = dict.fromkeys(
        column
        for row in rows
        for column, value in row.items()
        if column not in own and _as_number(value) is not None
    )
    return [
        column
        for column in found
        if not column.endswith(STDERR) and f"{column.removesuffix('.acc')}.acc_norm" not in found
    ]


def _cell(row: Row, column: str, form: Callable[[float], str]) -> str:
    """A number as text (in a CSV it is text already); empty where there is none."""
    value = row.get(column)
    return "" if value is None or value == "" else form(float(value))
