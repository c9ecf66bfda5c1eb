"""Figure 10: validation loss over the outer trust scale t, with and without the transform."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from questtrain.scaling.figures.selection import (
    Paths,
    Spread,
    budget,
    error_bars,
    finished,
    is_rotated,
    known,
    log,
    loss_label,
    method_and_bits,
    nothing_to_draw,
    richest,
    say_missing,
    seed_notes,
    size_and_tokens,
    spread,
)
from questtrain.scaling.figures.style import (
    add_legend,
    add_notes,
    line_figure,
    method_label,
    method_style,
)
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
    loss: list[Spread]
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
    scanned = [run for run in finished(paths) if _is_scanned(run)]
    runs = richest(scanned, "trust-scale", _setting, _trust_scale) if scanned else []
    runs = _without_infinity(runs)
    if len({_trust_scale(run) for run in runs}) < 2:
        needs = "runs of QuEST at two or more outer trust scales"
        raise nothing_to_draw("trust-scale", needs, "fig10_trust_scale")
    both = {turned: [run for run in runs if is_rotated(run) == turned] for turned in (True, False)}
    lines = [_line(turned, own) for turned, own in both.items() if own]
    missing = [method_label("quest", turned) for turned, own in both.items() if not own]
    missing += _lacking(lines)
    say_missing("trust-scale", missing)
    bits = method_and_bits(runs[0])
    assert bits is not None
    return TrustScaleData(
        title=f"Outer trust scale, W{bits[1]}A{bits[1]}, {size_and_tokens(runs[0])}",
        ylabel=loss_label(runs),
        lines=lines,
        missing=missing,
        notes=seed_notes(one for line in lines for one in line.loss),
    )


def draw(data: TrustScaleData) -> Figure:
    """A line with and one without the transform, a ring around each minimum."""
    figure, axes = line_figure(data.title, "outer trust scale t", data.ylabel)
    for line in data.lines:
        _draw_line(axes, line)
    axes.margins(y=0.12)
    add_legend(figure, axes)
    add_notes(figure, data.notes)
    return figure


def _draw_line(axes: Axes, line: Line) -> None:
    style = method_style("quest" if line.hadamard else "quest-noht")
    means = [one.mean for one in line.loss]
    axes.errorbar(
        line.trust_scale,
        means,
        yerr=error_bars(line.loss),
        label=line.label,
        capsize=3,
        elinewidth=1,
        **style,
    )
    ring: dict[str, Any] = {
        "markersize": 13,
        "markerfacecolor": "none",
        "linestyle": "none",
        "marker": "o",
    }
    axes.plot([line.best], [min(means)], color=style["color"], **ring)
    axes.annotate(
        f"t = {line.best:g}",
        xy=(line.best, min(means)),
        xytext=(0, -16),
        textcoords="offset points",
        ha="center",
        fontsize="small",
        color=style["color"],
    )


def _is_scanned(run: Run) -> bool:
    kind = method_and_bits(run)
    return kind is not None and kind[0] in ("quest", "quest-noht") and _trust_scale(run) is not None


def _trust_scale(run: Run) -> float | None:
    return run.number("trust_scale")


def _setting(run: Run) -> Hashable:
    kind = method_and_bits(run)
    return budget(run), kind and kind[1]


def _without_infinity(runs: list[Run]) -> list[Run]:
    """The axis has no place for t = ∞, the straight-through estimator."""
    infinite = [run.name for run in runs if math.isinf(_trust_scale(run) or 0)]
    if infinite:
        log.warning("left out of trust-scale: t is infinite in %s", ", ".join(infinite))
    return [run for run in runs if run.name not in infinite]


def _line(hadamard: bool, runs: list[Run]) -> Line:
    scales: dict[float, list[float]] = {}
    for run in runs:
        scales.setdefault(known(run, "trust_scale"), []).append(known(run, "val_loss"))
    ordered = sorted(scales)
    loss = [spread(scales[t]) for t in ordered]
    label = method_label("quest", hadamard)
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
