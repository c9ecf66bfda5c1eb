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


def tables(record: dict[str, Any]) -> list[Table]:
    """All that ``record`` holds, in the order of its models."""
    rows = record["rows"]
    match record["benchmark"]:
        case "layer":
            return list(_layer_tables(rows, record["settings"]["bits"].upper()))
        case "prefill":
            return [_prefill_table(model, part) for model, part in _grouped(rows, "model")]
        case "train":
            profiles = record.get("profiles", {})
            return [
                table
                for model, part in _grouped(rows, "model")
                for table in _train_tables(model, part, profiles.get(model))
            ]
        case _:
            return [_decode_table(model, part) for model, part in _grouped(rows, "model")]


def _layer_tables(rows: Sequence[Row], bits: str) -> Iterator[Table]:
    makers: dict[str, tuple[Callable[[str, Sequence[Row]], Table], ...]] = {
        "block": (_linears_table, _block_table),
        "products": (_product_table,),
        "quantizers": (_quantizer_table,),
    }
    for model, of_model in _grouped(rows, "model"):
        for part, of_part in _grouped(of_model, "part"):
            for maker in makers[part]:
                yield maker(f"{model}, {bits}", of_part)


def _linears_table(title: str, rows: Sequence[Row]) -> Table:
    table = _table(
        f"{title}: the four linears of a block, ours with quantizers",
        ("tokens", "weights", "BF16 products µs", "ours µs"),
        ("over BF16 products", "without Hadamard"),
    )
    for (tokens,), cells in _shapes(rows, "tokens"):
        ours = cells["linears"]
        table.add_row(
            str(tokens),
            ours["weights"],
            _microseconds(cells["bf16 products"]),
            _microseconds(ours),
            _ratio(ours, "speedup"),
            _ratio(cells["linears no-hadamard"], "speedup"),
        )
    return table


def _block_table(title: str, rows: Sequence[Row]) -> Table:
    table = _table(
        f"{title}: the same with norms, addition and SiLU·mul between them",
        ("tokens", "weights", "BF16 block µs", "ours µs"),
        ("over BF16 block", "over BF16 products"),
    )
    for (tokens,), cells in _shapes(rows, "tokens"):
        ours = cells["block"]
        table.add_row(
            str(tokens),
            ours["weights"],
            _microseconds(cells["bf16 block"]),
            _microseconds(ours),
            _ratio(ours, "block_speedup"),
            _ratio(ours, "speedup"),
        )
    return table


def _product_table(title: str, rows: Sequence[Row]) -> Table:
    table = _table(
        f"{title}: one linear, over BF16; quest and no-hadamard quantize their input",
        ("linear", "tokens", "BF16 µs"),
        PRODUCT_CASES,
    )
    for (linear, tokens), cells in _shapes(rows, "linear", "tokens"):
        ratios = (_ratio(cells.get(case), "speedup") for case in PRODUCT_CASES)
        table.add_row(linear, str(tokens), _microseconds(cells["bf16"]), *ratios)
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


def _prefill_table(model: str, rows: Sequence[Row]) -> Table:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    table = _table(
        f"{model}: prefill of {rows[0]['sequence_length']} tokens a sequence, tokens/s",
        ("batch",),
        [*cases, *(f"× ({case})" for case in cases[1:])],
    )
    for (batch,), cells in _shapes(rows, "batch_size"):
        speeds = (_rate(cells.get(case), "tokens_per_second") for case in cases)
        ratios = (_ratio(cells.get(case), "speedup") for case in cases[1:])
        table.add_row(str(batch), *speeds, *ratios)
    return table


def _decode_table(model: str, rows: Sequence[Row]) -> Table:
    cases = list(dict.fromkeys(row["case"] for row in rows))
    layers, context = rows[0]["layers"], rows[0]["context"]
    table = _table(
        f"{model}, {layers} layers: decoding after {context} tokens, µs a step",
        ("batch",),
        [*cases, *(f"× ({case})" for case in cases[1:])],
    )
    for (batch,), cells in _shapes(rows, "batch_size"):
        times = ("" if case not in cells else _microseconds(cells[case]) for case in cases)
        ratios = (_ratio(cells.get(case), "speedup") for case in cases[1:])
        table.add_row(str(batch), *times, *ratios)
    return table


def _train_tables(
    model: str, rows: Sequence[Row], profiles: dict[str, Any] | None
) -> Iterator[Table]:
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
            _rate(row, "tokens_per_second"),
            _train_number(row["speedup"], ".3f"),
            _train_number(row["plain_speedup"], ".3f"),
            _train_number(peak and peak / 2**30, ".2f"),
            _train_number(row["peak_fraction"], ".3f"),
            number(row["host_microseconds"] / 1e3),
            _train_number(row["loss"], ".3f"),
        )
    yield table
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


def _train_number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


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


def _microseconds(row: Row) -> str:
    return number(row["median"])


def _ratio(row: Row | None, key: str) -> str:
    return "" if row is None else f"{row[key]:.2f}"


def _rate(row: Row | None, key: str) -> str:
    return "" if row is None else number(row[key])


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
