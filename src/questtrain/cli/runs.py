"""``questtrain runs``: the table of runs, filtered, sorted, and as a file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

from questtrain.cli.arguments import parse_arguments, split_paths, take_option
from questtrain.errors import UserError, unknown
from questtrain.scaling.runs import export_rows, read_runs
from questtrain.store.files import write_text

Row: TypeAlias = dict[str, Any]

HELP = """usage: questtrain runs [RUNS…] [column=value …] [--sort COLUMN]
                      [--csv FILE] [--jsonl FILE] [--json]

The table of runs. RUNS are run folders, folders of runs, folders of sweeps, or tables (.csv,
.jsonl)   [runs]. Unfinished and damaged runs are rows too, with the reason below the table.

  column=value    only rows that have it: model=30M, bits=w4a4,w2a2, status=completed, name=*lsq*;
                  the columns are those of run.json (docs/runs.md), precision, folder and problem
  --sort COLUMN   in ascending order, rows without a value last   [in the order of the folders]
  --csv FILE      every column as CSV; `questtrain fit` and `plot` read it again
  --jsonl FILE    the same as JSON lines
  --json          print all columns instead of the table
"""


def main(words: Sequence[str]) -> int:
    csv_file, words = take_option(words, "--csv")
    jsonl_file, words = take_option(words, "--jsonl")
    sort, words = take_option(words, "--sort")
    arguments = parse_arguments(words)
    if arguments.help:
        print(HELP, end="")
        return 0
    paths, filters = split_paths(arguments.overrides)
    rows = export_rows(read_runs(paths or ["runs"], nested=True))
    rows = _sorted([row for row in rows if _agrees(row, _filters(filters, rows))], sort)
    if csv_file is not None:
        _write(csv_file, _csv_text(rows))
    if jsonl_file is not None:
        _write(jsonl_file, "".join(json.dumps(row) + "\n" for row in rows))
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif csv_file is None and jsonl_file is None:
        _print_table(rows)
    return 0


def _filters(words: Sequence[str], rows: Sequence[Row]) -> dict[str, list[str]]:
    """``column=a,b`` → {column: [a, b]}; UserError for a column that no row has."""
    filters = {}
    for word in words:
        column, separator, values = word.partition("=")
        if not separator:
            raise UserError(f"unknown option {word!r}: --sort, --csv, --jsonl, --json, --help.")
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
    try:
        return float(value) == float(wanted)
    except ValueError:
        return fnmatch(str(value), wanted)


def _sorted(rows: list[Row], column: str | None) -> list[Row]:
    if column is None or not rows:
        return rows
    name = _column(column, rows)

    def key(row: Row) -> tuple[bool, bool, float, str]:
        value = row.get(name)
        is_number = isinstance(value, int | float)
        return value is None, not is_number, float(value) if is_number else 0.0, str(value)

    return sorted(rows, key=key)


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    print(path)


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for heading in ("P", "params", "tokens", "val loss", "train loss", "minutes", "tokens/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            *(str(row.get(key) or "") for key in ("name", "status", "precision")),
            _count(row.get("non_embedding_params")),
            _count(row.get("tokens")),
            _number(row.get("val_loss"), ".4f"),
            _number(row.get("train_loss"), ".4f"),
            _number(row.get("wall_seconds"), ",.1f", 1 / 60),
            _number(row.get("tokens_per_second"), ",.0f"),
            style={"completed": "", "unfinished": "dim"}.get(str(row["status"]), "red"),
        )
    console.print(table)
    counts = Counter(str(row["status"]) for row in rows)
    print(f"\n{len(rows)} runs: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    for row in rows:
        if row["problem"]:
            print(f"{row['status']}: {row['name']}: {row['problem']}")


def _count(value: Any) -> str:
    """1.05M, 3.00B; cells of CSV files are text."""
    if value is None or value == "":
        return ""
    number = float(value)
    unit, size = ("B", 1e9) if number >= 1e9 else ("M", 1e6)
    return f"{number / size:,.2f}{unit}"


def _number(value: Any, form: str, scale: float = 1.0) -> str:
    return "" if value in (None, "") else format(float(value) * scale, form)
