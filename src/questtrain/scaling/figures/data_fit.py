"""Figure 13: how the law fits runs of several tokens/parameter ratios, a panel a precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.law_runs import (
    Series,
    fitted,
    law_notes,
    read_law_runs,
    series,
)
from questtrain.scaling.figures.loss_memory import draw_series, memory_axis
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.precision import label_text, sorted_labels, weight_bits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_PRECISIONS, PAPER_RATIOS = ("3", "4"), (25.0, 50.0, 100.0)
PANELS_A_ROW = 3


@dataclass(frozen=True)
class Panel:
    """One precision; a series a ratio, few tokens first."""

    precision: str
    label: str
    series: list[Series]


@dataclass(frozen=True)
class DataFitData:
    title: str
    ylabel: str
    panels: list[Panel]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> DataFitData:
    """The paper's two precisions; where they were not trained at several ratios, all that were."""
    found = read_law_runs(paths)
    ratios = {
        label: [r for r, group in found.groups.items() if any(p.precision == label for p in group)]
        for label in sorted_labels(p.precision for p in found.points)
        if weight_bits(label) is not None
    }
    several = [label for label, own in ratios.items() if len(own) > 1]
    drawn = [label for label in several if label in PAPER_PRECISIONS] or several
    if not drawn:
        raise selection.nothing_to_draw(
            "fit", "one precision at two or more tokens/parameter ratios", "scaling"
        )
    law = fitted(found.points)
    panels = [
        Panel(
            label, label_text(label), [series(found.groups[r], label, law) for r in ratios[label]]
        )
        for label in drawn
    ]
    spreads = (s for panel in panels for one in panel.series for s in one.loss)
    return DataFitData(
        title="Fit of the scaling law by tokens/parameter",
        ylabel=selection.loss_label(found.runs),
        panels=panels,
        missing=_missing(panels),
        notes=law_notes(law) + selection.seed_notes(spreads),
    )


def draw(data: DataFitData) -> Figure:
    """Panels with one loss axis; in the colour of the precision, ratios differ by marker, dashes
    and filling."""
    columns = min(len(data.panels), PANELS_A_ROW)
    rows = -(-len(data.panels) // columns)
    figure = style.panels_figure(data.title, (max(4.5, 3.4 * columns), 0.7 + 3.1 * rows))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes, panel in zip(grid, data.panels, strict=False):
        _draw_panel(axes, panel)
    for axes in grid[len(data.panels) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(data.ylabel)
    style.add_notes(figure, data.notes)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    look = style.precision_style(panel.precision)
    for index, one in enumerate(panel.series):
        of_ratio = look | {
            "marker": style.MARKERS[index % len(style.MARKERS)],
            "linestyle": style.DASHES[index % len(style.DASHES)],
            "markerfacecolor": "white" if index % 2 else look["color"],
        }
        draw_series(axes, one, of_ratio, f"{one.tokens_per_param:g} tokens/parameter")
    memory_axis(axes)
    axes.set(title=panel.label, xlabel="memory of the weights (Mbit)")
    style.open_frame(axes)
    style.panel_legend(axes)


def _missing(panels: list[Panel]) -> list[str]:
    """Precisions of the paper's figure, ratios that it or another panel has."""
    absent = [label for label in PAPER_PRECISIONS if label not in {p.precision for p in panels}]
    missing = [f"{label_text(label)} at several tokens/parameter" for label in absent]
    drawn = {panel.precision: {one.tokens_per_param for one in panel.series} for panel in panels}
    ratios = set(PAPER_RATIOS).union(*drawn.values())
    for panel in panels:
        if lacks := sorted(ratios - drawn[panel.precision]):
            listed = ", ".join(f"{ratio:g}" for ratio in lacks)
            missing.append(f"{panel.label} at {listed} tokens/parameter")
    return missing
