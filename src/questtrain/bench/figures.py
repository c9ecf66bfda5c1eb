"""Pictures of the results, as the paper's figures 6 and 7 have them: speed-up over BF16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questtrain.bench.results import Row
from questtrain.store.files import atomic_write, output_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, safe for colour-blind readers, each with a marker of its own.
LOOKS = {
    "qkv": ("Q, K, V", "#0072B2", "o"),
    "o": ("output", "#E69F00", "s"),
    "gate_up": ("gate, up", "#009E73", "^"),
    "down": ("down", "#CC79A7", "D"),
}
ORDER = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))
TRAIN_COLOURS = {"plain": "0.75", "bf16": "0.5"}
BLOCK_COLOUR = "#000000"
Line = tuple[Sequence[Row], str, str | None, str, str]
"""Rows, the case of them that is drawn, its label, colour and marker."""


def draw(record: dict[str, Any], path: Path) -> bool:
    """The picture of a result as PNG, and whether there is one: not where no row has a
    ``speedup``."""
    if not any("speedup" in row for row in record["rows"]):
        return False
    makers = {"layer": _draw_layer, "serve": _draw_serve, "train": _draw_train}
    figure = makers.get(record["benchmark"], _draw_models)(record)
    with output_for(path), atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True


def _draw_layer(record: dict[str, Any]) -> Figure:
    """Each linear and a block's four, quantizers included, and, dashed, without the Hadamard
    transform; of several formats, the block's four alone."""
    label = "speed-up over BF16 products\n(dashed: without Hadamard)"
    return _speed_ups(record, "tokens", _layer_lines, label)


def _layer_lines(rows: Sequence[Row]) -> Iterator[Line]:
    formats = list(dict.fromkeys(row["bits"] for row in rows))
    if len(formats) > 1:
        yield from _format_lines(rows, formats)
        return
    for linear, (name, colour, marker) in LOOKS.items():
        part = [row for row in rows if row.get("linear") == linear]
        yield part, "quest", name, colour, marker
        yield part, "no-hadamard", None, colour, ""
    block = [row for row in rows if row["part"] == "block"]
    yield block, "linears", "the block's four", BLOCK_COLOUR, "X"
    yield block, "linears no-hadamard", None, BLOCK_COLOUR, ""


def _format_lines(rows: Sequence[Row], formats: Sequence[str]) -> Iterator[Line]:
    for bits, (colour, marker) in zip(formats, cycle(ORDER)):
        block = [row for row in rows if row["part"] == "block" and row["bits"] == bits]
        yield block, "linears", f"{bits}, the block's four", colour, marker
        yield block, "linears no-hadamard", None, colour, ""


def _draw_serve(record: dict[str, Any]) -> Figure:
    """Speed-up of tokens a second over the clients; a load by its rate has no place there."""
    loads = [row for row in record["rows"] if row["clients"] is not None]
    bits = [case for case in dict.fromkeys(row["case"] for row in loads) if case != "bf16"]
    drawn = {**record, "rows": loads, "settings": {"bits": bits}}
    return _speed_ups(drawn, "clients", _case_lines, "tokens a second, over BF16's server")


def _draw_models(record: dict[str, Any]) -> Figure:
    """Speed-up over the batch."""
    label = f"{record['benchmark']}: speed-up over BF16"
    return _speed_ups(record, "batch_size", _case_lines, label)


def _case_lines(rows: Sequence[Row]) -> Iterator[Line]:
    cases = [case for case in dict.fromkeys(row["case"] for row in rows) if case != "bf16"]
    for case, (colour, marker) in zip(cases, ORDER, strict=False):
        yield rows, case, case, colour, marker


def _draw_train(record: dict[str, Any]) -> Figure:
    """A panel for each model: tokens a second of each case, and its speed-up over ``bf16``."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in record["rows"]))
    longest = max(record["rows"], key=lambda row: len(row["case"]))["case"]
    width = 3.2 + 0.07 * len(longest)
    height = 1.6 + 0.32 * max(
        sum(row["model"] == model for row in record["rows"]) for model in models
    )
    figure = Figure(figsize=(width * len(models), height), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        rows = [row for row in record["rows"] if row["model"] == model]
        colours = [TRAIN_COLOURS.get(row["case"], ORDER[0][0]) for row in rows]
        speeds = [row["tokens_per_second"] for row in rows]
        bars = axes.barh([row["case"] for row in rows], speeds, color=colours)
        axes.bar_label(bars, [f"{row['speedup']:.2f}×" for row in rows], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.25)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=4)
        axes.set(title=model, xlabel="tokens a second (× over bf16)")
    figure.suptitle(f"Training on {record['environment']['device']}", fontsize="medium")
    return figure


def _speed_ups(
    record: dict[str, Any], x: str, lines: Callable[[Sequence[Row]], Iterator[Line]], label: str
) -> Figure:
    """A panel for each model: its ``lines`` over ``x``, from 0 on, and a legend below."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in record["rows"]))
    figure = Figure(figsize=(1 + 4.2 * len(models), 4.4), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    bits = record["settings"]["bits"]
    bits = bits if isinstance(bits, str) else ", ".join(bits)
    figure.suptitle(f"{bits.upper()} on {record['environment']['device']}", fontsize="medium")
    for axes, model in zip(panels, models, strict=True):
        rows = [row for row in record["rows"] if row["model"] == model]
        for line in lines(rows):
            _draw_line(axes, x, *line)
        _dress(axes, model, x, rows)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel(label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small"
    )
    return figure


def _draw_line(
    axes: Axes,
    x: str,
    rows: Sequence[Row],
    case: str,
    label: str | None,
    colour: str,
    marker: str,
) -> None:
    """One case's speed-up over ``x``; a line without a label is dashed."""
    of_case = [row for row in rows if row["case"] == case and row["speedup"] is not None]
    points = sorted((row[x], row["speedup"]) for row in of_case)
    if points:
        xs, ys = zip(*points, strict=True)
        style = "-" if label else "--"
        axes.plot(xs, ys, style, color=colour, marker=marker or None, markersize=4, label=label)


def _dress(axes: Axes, title: str, x: str, rows: Sequence[Row]) -> None:
    """Ticks at what was measured, and BF16 as the line at 1."""
    ticks = sorted({row[x] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=90 if len(ticks) > 7 else 0)
    axes.minorticks_off()
    axes.axhline(1, color="0.6", linewidth=0.8, zorder=0)
    axes.grid(alpha=0.25)
    axes.set(title=title, xlabel=x.replace("_", " "))
