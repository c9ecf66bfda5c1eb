"""Pictures of the results, as the paper's figures 6 and 7 have them: speed-up over BF16."""

from __future__ import annotations

from collections.abc import Sequence
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


def draw(record: dict[str, Any], path: Path) -> bool:
    """The picture of a result as PNG, and whether there is one: not where no row has a
    ``speedup``."""
    if not any("speedup" in row for row in record["rows"]):
        return False
    makers = {"layer": _draw_layer, "train": _draw_train}
    figure = makers.get(record["benchmark"], _draw_models)(record)
    with output_for(path), atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    return True


def _draw_layer(record: dict[str, Any]) -> Figure:
    """A panel for each model: each linear and a block's four, quantizers included, and, dashed,
    without the Hadamard transform."""
    models = list(dict.fromkeys(row["model"] for row in record["rows"]))
    figure, panels = _panels(record, models)
    for axes, model in zip(panels, models, strict=True):
        rows = [row for row in record["rows"] if row["model"] == model]
        for linear, (name, colour, marker) in LOOKS.items():
            part = [row for row in rows if row.get("linear") == linear]
            _line(axes, part, "tokens", "quest", name, colour, marker)
            _line(axes, part, "tokens", "no-hadamard", None, colour, "")
        block = [row for row in rows if row["part"] == "block"]
        _line(axes, block, "tokens", "linears", "the block's four", BLOCK_COLOUR, "X")
        _line(axes, block, "tokens", "linears no-hadamard", None, BLOCK_COLOUR, "")
        _dress(axes, model, "tokens", rows)
    _finish(figure, panels[0], "speed-up over BF16 products\n(dashed: without Hadamard)")
    return figure


def _draw_models(record: dict[str, Any]) -> Figure:
    """A panel for each model: speed-up over the batch."""
    models = list(dict.fromkeys(row["model"] for row in record["rows"]))
    figure, panels = _panels(record, models)
    for axes, model in zip(panels, models, strict=True):
        rows = [row for row in record["rows"] if row["model"] == model]
        cases = [case for case in dict.fromkeys(row["case"] for row in rows) if case != "bf16"]
        for case, (colour, marker) in zip(cases, ORDER, strict=False):
            _line(axes, rows, "batch_size", case, case, colour, marker)
        _dress(axes, model, "batch_size", rows)
    _finish(figure, panels[0], f"{record['benchmark']}: speed-up over BF16")
    return figure


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


def _panels(record: dict[str, Any], models: Sequence[str]) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.2 * len(models), 4.4), layout="constrained")
    grid = figure.subplots(1, len(models), sharey=True, squeeze=False)
    bits = record["settings"]["bits"]
    label = bits if isinstance(bits, str) else ", ".join(bits)
    figure.suptitle(f"{label.upper()} on {record['environment']['device']}", fontsize="medium")
    return figure, list(grid[0])


def _line(
    axes: Axes,
    rows: Sequence[Row],
    x: str,
    case: str,
    label: str | None,
    colour: str,
    marker: str,
) -> None:
    """One case's speed-up over ``x``; a line without a label is dashed."""
    points = sorted((row[x], row["speedup"]) for row in rows if row["case"] == case)
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


def _finish(figure: Figure, axes: Axes, label: str) -> None:
    """What the panels share: an axis from 0, once all lines are there, and a legend below."""
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small"
    )
