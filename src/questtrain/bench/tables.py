"""A benchmark's rows as tables for the terminal: a line for each shape, a column for each case."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from questtrain.bench.results import Row

if TYPE_CHECKING:
    from rich.table import Table

PRODUCT_CASES = ("fp8", "int8", "packed-4", "packed-2", "packed-1", "quest", "no-hadamard")
QUANTIZERS = ("no-hadamard", "hadamard", "hadamard packed", "rmsnorm", "add_rmsnorm", "swiglu")
Cells = dict[str, Row]
"""Case → row, of one shape."""


def tables(record: dict[str, Any]) -> Iterator[Table]:
    """All that ``record`` holds, in the order of its models."""
    makers: dict[str, Callable[[str, Sequence[Row], dict[str, Any]], Iterator[Table]]] = {
        "layer": _layer_tables,
        "prefill": _prefill_tables,
        "decode": _decode_tables,
        "serve": _serve_tables,
        "train": _train_tables,
    }
    for model, rows in _grouped(record["rows"], "model"):
        yield from makers[record["benchmark"]](model, rows, record)


def _layer_tables(model: str, rows: Sequence[Row], _: dict[str, Any]) -> Iterator[Table]:
    for bits, of_bits in _grouped(rows, "bits"):
        yield from _format_tables(f"{model}, {bits.upper()}", of_bits)


def _format_tables(title: str, rows: Sequence[Row]) -> Iterator[Table]:
    """The tables of one format."""
    for part, of_part in _grouped(rows, "part"):
        match part:
            case "block":
                yield _rivals_table(
                    f"{title}: the four linears of a block, ours with quantizers",
                    of_part,
                    ("BF16 products", "bf16 products"),
                    "linears",
                    ("over BF16 products", "linears", "speedup"),
                    ("without Hadamard", "linears no-hadamard", "speedup"),
                )
                yield _rivals_table(
                    f"{title}: the same with norms, addition and SiLU·mul between them",
                    of_part,
                    ("BF16 block", "bf16 block"),
                    "block",
                    ("over BF16 block", "block", "block_speedup"),
                    ("over BF16 products", "block", "speedup"),
                )
            case "products":
                yield _product_table(title, of_part)
            case "quantizers":
                yield _quantizer_table(title, of_part)


def _rivals_table(
    title: str,
    rows: Sequence[Row],
    rival: tuple[str, str],
    ours: str,
    *ratios: tuple[str, str, str],
) -> Table:
    """Microseconds of the ``rival`` (a heading and a case) and of the case ``ours``, and ratios
    (a heading, a case and its number)."""
    heading, rival_case = rival
    table = _table(
        title,
        ("tokens", "weights", f"{heading} µs", "ours µs"),
        [heading for heading, _, _ in ratios],
    )
    for (tokens,), cells in _shapes(rows, "tokens"):
        times = (_cell(cells.get(case), "median") for case in (rival_case, ours))
        numbers = (_cell(cells.get(case), key, ".2f") for _, case, key in ratios)
        table.add_row(str(tokens), cells[ours]["weights"], *times, *numbers)
    return table


def _product_table(title: str, rows: Sequence[Row]) -> Table:
    table = _table(
        f"{title}: one linear, over BF16; quest and no-hadamard quantize their input",
        ("linear", "tokens", "BF16 µs"),
        PRODUCT_CASES,
    )
    for (linear, tokens), cells in _shapes(rows, "linear", "tokens"):
        ratios = (_cell(cells.get(case), "speedup", ".2f") for case in PRODUCT_CASES)
        table.add_row(linear, str(tokens), _cell(cells["bf16"], "median"), *ratios)
    return table


def _quantizer_table(title: str, rows: Sequence[Row]) -> Table:
    table = _table(
        f"{title}: quantizers; GB/s, and their part of the speed of a copy of the same bytes",
        ("width", "tokens"),
        QUANTIZERS,
    )
    for (width, tokens), cells in _shapes(rows, "k", "tokens"):
        speeds = (
            f"{number(cells[case]['gbps'])} ({cells[case]['copy_fraction']:.0%})"
            if case in cells
            else ""
            for case in QUANTIZERS
        )
        table.add_row(str(width), str(tokens), *speeds)
    return table


def _prefill_tables(model: str, rows: Sequence[Row], _: dict[str, Any]) -> Iterator[Table]:
    length = rows[0]["sequence_length"]
    title = f"{model}: prefill of {length} tokens a sequence, tokens/s"
    yield _batch_table(title, rows, "tokens_per_second")


def _decode_tables(model: str, rows: Sequence[Row], _: dict[str, Any]) -> Iterator[Table]:
    layers, context = rows[0]["layers"], rows[0]["context"]
    title = f"{model}, {layers} layers: decoding after {context} tokens, µs a step"
    yield _batch_table(title, rows, "median")


def _serve_tables(model: str, rows: Sequence[Row], _: dict[str, Any]) -> Iterator[Table]:
    """A line for each load and case; the three numbers of a latency are its 50th, 95th and 99th
    percentile."""
    table = _table(
        f"{model}, {rows[0]['layers']} layers: a server that streams",
        ("load", "case", "tokens/s", "× (bf16)", "requests/s"),
        ("first token ms", "a token ms", "gap ms", "errors", "GiB"),
    )
    for row in rows:
        rate, memory = row["rate"], row["memory_bytes"]
        latencies = (
            " ".join(_cell(row, f"{name}_p{p}") for p in (50, 95, 99))
            for name in ("first_token", "token", "gap")
        )
        table.add_row(
            f"{row['clients']} clients" if rate is None else f"{rate:g} a second",
            row["case"],
            _cell(row, "tokens_per_second"),
            _cell(row, "speedup", ".2f"),
            _cell(row, "requests_per_second"),
            *latencies,
            str(row["errors"]),
            "" if memory is None else f"{memory / 2**30:.1f}",
        )
    yield table


def _batch_table(title: str, rows: Sequence[Row], key: str) -> Table:
    """A line for each batch: every case's number ``key``, and the ratios to the first case."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    table = _table(title, ("batch",), [*cases, *(f"× ({case})" for case in cases[1:])])
    for (batch,), cells in _shapes(rows, "batch_size"):
        numbers = (_cell(cells.get(case), key) for case in cases)
        ratios = (_cell(cells.get(case), "speedup", ".2f") for case in cases[1:])
        table.add_row(str(batch), *numbers, *ratios)
    return table


def _train_tables(model: str, rows: Sequence[Row], record: dict[str, Any]) -> Iterator[Table]:
    table = _table(
        f"{model}: an optimizer step",
        ("case", "ms", "tokens/s", "× (bf16)", "× (plain)"),
        ("peak GiB", "of bf16's", "host ms", "loss"),
    )
    for row in rows:
        peak = row["peak_bytes"]
        table.add_row(
            row["case"],
            number(row["median"] / 1e3),
            _cell(row, "tokens_per_second"),
            _cell(row, "speedup", ".3f"),
            _cell(row, "plain_speedup", ".3f"),
            "" if peak is None else f"{peak / 2**30:.2f}",
            _cell(row, "peak_fraction", ".3f"),
            number(row["host_microseconds"] / 1e3),
            _cell(row, "loss", ".3f"),
        )
    yield table
    profiles = record.get("profiles", {}).get(model)
    if profiles:
        yield _profile_table(model, profiles)


def _profile_table(model: str, profiles: dict[str, Any]) -> Table:
    """Milliseconds of a step by category, a column for each case."""
    table = _table(f"{model}: where a step's milliseconds go", ("", *profiles))
    for name in next(iter(profiles.values()))["categories"]:
        times = (profile["categories"][name] for profile in profiles.values())
        table.add_row(name, *(f"{time / 1e3:.2f}" for time in times))
    for name, key in (("device busy", "busy"), ("first to last kernel", "span")):
        table.add_row(name, *(f"{profile[key] / 1e3:.2f}" for profile in profiles.values()))
    return table


def _table(title: str, *headings: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in (heading for group in headings for heading in group):
        table.add_column(heading, justify="right")
    return table


def _grouped(rows: Sequence[Row], key: str) -> list[tuple[Any, list[Row]]]:
    """Value of ``key`` → its rows, in the order of their first appearance."""
    return [
        (value, [row for row in rows if row[key] == value])
        for value in dict.fromkeys(row[key] for row in rows)
    ]


def _shapes(rows: Sequence[Row], *keys: str) -> Iterator[tuple[tuple[Any, ...], Cells]]:
    """Each shape with the rows of its cases, in the order of the keys' first appearance."""
    shapes: dict[tuple[Any, ...], Cells] = {}
    for row in rows:
        shapes.setdefault(tuple(row[key] for key in keys), {})[row["case"]] = row
    order = [list(dict.fromkeys(row[key] for row in rows)) for key in keys]
    yield from sorted(
        shapes.items(), key=lambda item: [o.index(v) for o, v in zip(order, item[0], strict=True)]
    )


def _cell(row: Row | None, key: str, form: str = "") -> str:
    """The row's number, by `number` or in a format; empty where there is no such row or number."""
    if row is None or row[key] is None:
        return ""
    return format(row[key], form) if form else number(row[key])


def ceilings(measured: dict[str, Any]) -> str:
    """`: copy 2,900 GB/s, BF16 700 TOPS, …` at the measured limits."""
    parts = [
        f"{name} {number(measured[key])} {unit}"
        for name, key, unit in (
            ("copy", "copy_gbps", "GB/s"),
            ("BF16", "bf16_tops", "TOPS"),
            ("FP8", "fp8_tops", "TOPS"),
            ("INT8", "int8_tops", "TOPS"),
        )
        if key in measured
    ]
    return ": " + ", ".join(parts) if parts else ""


def number(value: float) -> str:
    """Three digits at least: ``0.123``, ``12.3``, ``1,234``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
