"""Figure 8: the fraction of the weights outside the trust mask, over training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.diagnostics import read_all, read_mask
from questtrain.scaling.figures import style
from questtrain.scaling.figures.selection import Paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPECTED_LABEL = "expected for Gaussian weights"


@dataclass(frozen=True)
class Line:
    """One run; ``expected`` is the fraction for exactly Gaussian weights, if there is one."""

    label: str
    run: str
    steps: list[int]
    fractions: list[float]
    expected: float | None


@dataclass(frozen=True)
class MaskData:
    title: str
    lines: list[Line]


def data(paths: Paths) -> MaskData:
    """A line for each run."""
    records = read_all(paths, "mask", read_mask)
    return MaskData(
        style.title("Weights outside the trust mask", records),
        [
            Line(
                label,
                record.folder,
                [point.step for point in record.points],
                [point.fraction for point in record.points],
                record.expected,
            )
            for label, record in zip(style.run_labels(records), records, strict=True)
        ],
    )


def draw(data: MaskData) -> Figure:
    """Fractions over steps, expected values dotted; logarithmic from a factor of ten on."""
    figure, axes = style.line_figure(data.title, "training step", "fraction of weights with M = 0")
    for index, line in enumerate(data.lines):
        look = style.line_style(index, len(line.steps))
        axes.plot(line.steps, line.fractions, label=line.label, **look)
    _draw_expected(axes, data.lines)
    _scale(axes, data.lines)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    style.add_legend(figure, axes)
    return figure


def _draw_expected(axes: Axes, lines: Sequence[Line]) -> None:
    """One dotted line where all agree; else one a run, that ends in the run's marker."""
    expected = {index: line.expected for index, line in enumerate(lines)}
    known = {index: value for index, value in expected.items() if value is not None}
    if not known:
        return
    if len(set(known.values())) == 1:
        axes.axhline(
            next(iter(known.values())), color=style.GREY, linestyle=":", label=EXPECTED_LABEL
        )
        return
    axes.plot([], [], color=style.GREY, linestyle=":", label=EXPECTED_LABEL)
    for index, value in known.items():
        look = style.line_style(index) | {"linestyle": ":", "markevery": [1], "clip_on": False}
        axes.plot([0, 1], [value, value], transform=axes.get_yaxis_transform(), **look)


def _scale(axes: Axes, lines: Sequence[Line]) -> None:
    """Logarithmic where positive values span a factor of ten; linear below the smallest of them
    where there are zeros too, which a plain logarithm could not show."""
    values = [value for line in lines for value in line.fractions]
    values += [line.expected for line in lines if line.expected is not None]
    positive = [value for value in values if value > 0]
    if not positive or max(positive) < 10 * min(positive):
        axes.set_ylim(bottom=0)
    elif len(positive) == len(values):
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=min(positive))
        axes.set_ylim(bottom=0)
