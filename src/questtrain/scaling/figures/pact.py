"""Figure 12: PACT's learning-rate scale and weight decay of its clipping values, a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "Blues_r"  # darker is lower
SHADES = (0.12, 1.0)  # of the colours: neither black, nor white, which is for empty cells
DARK = 0.42  # of the range of losses: below it, cells are written in white


@dataclass(frozen=True)
class PactData:
    """``loss[decay][lr_scale]`` in nats, the mean of several seeds; None where no run is complete.
    ``diverged`` holds (decay, lr_scale) of runs that did not reach their end."""

    title: str
    bar_label: str
    lr_scale: list[float]
    weight_decay: list[float]
    loss: list[list[float | None]]
    diverged: list[tuple[float, float]]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> PactData:
    """PACT's runs of one size, token count and bits: those with most cells."""
    scanned = [run for run in selection.all_runs(paths) if _is_scanned(run)]
    runs = selection.richest(
        scanned,
        "pact",
        setting=lambda run: (selection.budget(run), selection.method_and_bits(run)),
        content=_cell,
    )
    cells = {
        cell: [run.val_loss for run in own] for cell, own in selection.grouped(runs, _cell).items()
    }
    if len(cells) < 2 or not any(run.val_loss for run in runs):
        needs = "runs of PACT at several lr_scale and scale_weight_decay"
        raise selection.nothing_to_draw("pact", needs, "fig12_pact")
    decays, scales = (sorted({cell[axis] for cell in cells}) for axis in (0, 1))
    missing = [
        f"lr_scale={s:g} scale_weight_decay={d:g}"
        for d in decays
        for s in scales
        if (d, s) not in cells
    ]
    diverged = [cell for cell, losses in cells.items() if not any(losses)]
    _, bits = selection.method_and_bits(runs[0])
    return PactData(
        title=f"PACT, W{bits}A{bits}, {selection.size_and_tokens(runs[0])}",
        bar_label=selection.loss_label(runs),
        lr_scale=scales,
        weight_decay=decays,
        loss=[[_mean(cells.get((d, s), [])) for s in scales] for d in decays],
        diverged=sorted(diverged),
        missing=missing,
        notes=_notes(cells, bool(missing or diverged)),
    )


def draw(data: PactData) -> Figure:
    """Darker cells are better; hatched ones have no loss."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    width, height = len(data.lr_scale), len(data.weight_decay)
    figure = Figure(
        figsize=(max(4.6, 2.4 + 0.8 * width), max(3, 1.4 + 0.55 * height)), layout="constrained"
    )
    axes = figure.subplots()
    axes.set_title(data.title, parse_math=False)
    axes.set_facecolor("white")
    shades = [SHADES[0] + i / 255 * (SHADES[1] - SHADES[0]) for i in range(256)]
    colours = ListedColormap(colormaps[COLOURS](shades)[:, :3] * 0.94)
    values = [[float("nan") if v is None else v for v in row] for row in data.loss]
    image = axes.imshow(values, cmap=colours, aspect="auto", origin="lower")
    _write_cells(axes, data)
    axes.set_xticks(range(width), [f"{value:g}" for value in data.lr_scale])
    axes.set_yticks(range(height), [f"{value:g}" for value in data.weight_decay])
    axes.set(xlabel="learning-rate scale of the clipping values", ylabel="their weight decay")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, pad=0.02).set_label(data.bar_label)
    style.add_notes(figure, data.notes)
    return figure


def _write_cells(axes: Axes, data: PactData) -> None:
    from matplotlib.patches import Rectangle

    reached = [value for row in data.loss for value in row if value is not None]
    lowest = min(reached)
    middle = lowest + DARK * (max(reached) - lowest)
    for y, decay in enumerate(data.weight_decay):
        for x, scale in enumerate(data.lr_scale):
            value = data.loss[y][x]
            if value is None:
                corner = (x - 0.5, y - 0.5)
                axes.add_patch(
                    Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor="0.7", linewidth=0)
                )
            text = "diverged" if (decay, scale) in data.diverged else ""
            axes.text(
                x,
                y,
                text if value is None else f"{value:.3f}",
                ha="center",
                va="center",
                fontsize="small",
                weight="bold" if value == lowest else "normal",
                color="white" if value is not None and value < middle else "black",
            )


def _is_scanned(run: Run) -> bool:
    """A run of PACT that ended, with both settings known."""
    if selection.method_and_bits(run)[0] != "pact":
        return False
    if run.status not in ("completed", "diverged"):
        selection.log.warning("left out of pact: %s is %s", run.name, run.status)
        return False
    return None not in (run.number("lr_scale"), run.number("scale_weight_decay"))


def _cell(run: Run) -> tuple[float, float]:
    return selection.known(run, "scale_weight_decay"), selection.known(run, "lr_scale")


def _mean(losses: Sequence[float | None]) -> float | None:
    reached = [loss for loss in losses if loss is not None]
    return sum(reached) / len(reached) if reached else None


def _notes(cells: dict[tuple[float, float], list[float | None]], empty: bool) -> list[str]:
    notes = ["Darker is lower; the lowest in bold." + (" Hatched: no loss." if empty else "")]
    if any(len([v for v in losses if v]) > 1 for losses in cells.values()):
        notes.append("Cells are means over seeds.")
    return notes
