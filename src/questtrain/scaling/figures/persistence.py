"""Figure 9: how many of the masked weights are still masked at later steps."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.diagnostics import read_all, read_persistence
from questtrain.scaling.figures import style
from questtrain.scaling.figures.selection import Paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = "Blues"
DARK = 0.6  # of the colour scale: from here on, cells are written in white
CELL_INCHES, SMALLEST_PANEL_INCHES = 0.52, 2.4
CHARACTERS_PER_INCH = 12  # of a panel's title


@dataclass(frozen=True)
class Panel:
    """One run; ``retained[old][new]`` as a fraction, None where there is no pair."""

    label: str
    run: str
    steps: list[int]
    retained: list[list[float | None]]


@dataclass(frozen=True)
class PersistenceData:
    title: str
    panels: list[Panel]


def data(paths: Paths) -> PersistenceData:
    """A panel for each run."""
    records = read_all(paths, "persistence", read_persistence)
    return PersistenceData(
        style.title("Masked weights that stay masked", records),
        [
            Panel(label, record.folder, record.steps, record.retained)
            for label, record in zip(style.run_labels(records), records, strict=True)
        ],
    )


def draw(data: PersistenceData) -> Figure:
    """Heat maps of old against new step, in one colour scale, with the percentage in each cell."""
    sides = [_side(panel) for panel in data.panels]
    size = (sum(sides) + 0.5 * len(sides) + 1.4, max(sides) + 1.3)
    figure = style.panels_figure(data.title, size)
    row = figure.subplots(1, len(sides), squeeze=False, width_ratios=sides)[0]
    top = max((value for panel in data.panels for value in _values(panel)), default=1.0) or 1.0
    for axes, panel in zip(row, data.panels, strict=True):
        image = _draw_panel(axes, panel, top)
    row[0].set_ylabel("old step")
    bar = figure.colorbar(image, ax=row.tolist(), format="{x:.0f}%", shrink=0.8, pad=0.02)
    bar.set_label("still masked")
    return figure


def _side(panel: Panel) -> float:
    return max(SMALLEST_PANEL_INCHES, CELL_INCHES * (len(panel.steps) - 1))


def _percent(fraction: float | None) -> str:
    """Whole percents, with a decimal below ten; a dash where nothing was masked."""
    if fraction is None:
        return "–"
    percent = 100 * fraction
    return f"{percent:.1f}%" if percent < 9.95 else f"{percent:.0f}%"


def _values(panel: Panel) -> list[float]:
    return [value for row in panel.retained for value in row if value is not None]


def _draw_panel(axes: Axes, panel: Panel, top: float) -> AxesImage:
    """The pairs with new later than old: neither the last old step nor the first new one has any,
    and the lower triangle stays empty."""
    old, new = panel.steps[:-1], panel.steps[1:]
    percent = [
        [float("nan") if value is None else 100 * value for value in row[1:]]
        for row in panel.retained[:-1]
    ]
    image = axes.imshow(percent, cmap=COLOURS, vmin=0, vmax=100 * top)
    for y, row in enumerate(panel.retained[:-1]):
        for x, value in enumerate(row[1:]):
            if x >= y:
                colour = "white" if (value or 0) > DARK * top else "black"
                axes.text(x, y, _percent(value), ha="center", va="center", color=colour)
    label = textwrap.fill(panel.label, int(CHARACTERS_PER_INCH * _side(panel)))
    axes.set_title(label, fontsize="medium", parse_math=False)
    axes.set_xlabel("new step")
    axes.set_xticks(range(len(new)), [f"{step:,}" for step in new], rotation=45)
    axes.set_yticks(range(len(old)), [f"{step:,}" for step in old])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image
