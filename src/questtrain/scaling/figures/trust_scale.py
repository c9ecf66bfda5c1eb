"""Figure 10: validation loss over the outer trust scale t, with and without the transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """Losses by t; ``best`` is the t of the lowest mean."""

    label: str
    hadamard: bool
    trust_scale: list[float]
    loss: list[selection.Spread]
    best: float


@dataclass(frozen=True)
class TrustScaleData:
    title: str
    ylabel: str
    lines: list[Line]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> TrustScaleData:
    """QuEST's runs of one size, token count and bits, those with most trust scales."""
    scanned = [run for run in selection.finished(paths) if _is_scanned(run)]
    runs = selection.richest(
        scanned,
        "trust-scale",
        setting=lambda run: (selection.budget(run), selection.method_and_bits(run)[1]),
        content=_trust_scale,
    )
    runs = _without_infinity(runs)
    if len(set(map(_trust_scale, runs))) < 2:
        needs = "runs of QuEST at two or more outer trust scales"
        raise selection.nothing_to_draw("trust-scale", needs, "fig10_trust_scale")
    lines, missing = [], []
    for hadamard in (True, False):
        own = [run for run in runs if selection.is_rotated(run) == hadamard]
        label = style.method_label("quest", hadamard)
        if own:
            lines.append(_line(label, hadamard, own))
        else:
            missing.append(label)
    _, bits = selection.method_and_bits(runs[0])
    return TrustScaleData(
        title=f"Outer trust scale, W{bits}A{bits}, {selection.size_and_tokens(runs[0])}",
        ylabel=selection.loss_label(runs),
        lines=lines,
        missing=missing + _lacking(lines),
        notes=selection.seed_notes(one for line in lines for one in line.loss),
    )


def draw(data: TrustScaleData) -> Figure:
    """A line with and one without the transform, a ring around each minimum."""
    figure, axes = style.line_figure(data.title, "outer trust scale t", data.ylabel)
    for line in data.lines:
        _draw_line(axes, line)
    axes.margins(y=0.12)
    style.add_legend(figure, axes)
    style.add_notes(figure, data.notes)
    return figure


def _draw_line(axes: Axes, line: Line) -> None:
    look = style.method_style("quest" if line.hadamard else "quest-noht")
    style.draw_spreads(axes, line.trust_scale, line.loss, label=line.label, **look)
    lowest = (line.best, min(one.mean for one in line.loss))
    axes.plot(
        *lowest,
        color=look["color"],
        marker="o",
        markersize=13,
        markerfacecolor="none",
        linestyle="none",
    )
    axes.annotate(
        f"t = {line.best:g}",
        xy=lowest,
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
        fontsize="small",
        color=look["color"],
    )


def _is_scanned(run: Run) -> bool:
    is_quest = selection.method_and_bits(run)[0] in ("quest", "quest-noht")
    return is_quest and run.number("trust_scale") is not None


def _trust_scale(run: Run) -> float:
    return selection.known(run, "trust_scale")


def _without_infinity(runs: Sequence[Run]) -> list[Run]:
    """The axis has no place for t = ∞, the straight-through estimator."""
    infinite = [run.name for run in runs if math.isinf(_trust_scale(run))]
    if infinite:
        selection.log.warning("left out of trust-scale: t is infinite in %s", ", ".join(infinite))
    return [run for run in runs if run.name not in infinite]


def _line(label: str, hadamard: bool, runs: Sequence[Run]) -> Line:
    by_scale = selection.grouped(runs, _trust_scale)
    ordered = sorted(by_scale)
    loss = [selection.loss_spread(by_scale[t]) for t in ordered]
    best = min(zip(loss, ordered, strict=True), key=lambda pair: pair[0].mean)[1]
    return Line(label, hadamard, ordered, loss, best)


def _lacking(lines: list[Line]) -> list[str]:
    """Scales that one line has and the other lacks."""
    every = {t for line in lines for t in line.trust_scale}
    return [
        f"{line.label} at t = {', '.join(f'{t:g}' for t in absent)}"
        for line in lines
        if (absent := sorted(every.difference(line.trust_scale)))
    ]
