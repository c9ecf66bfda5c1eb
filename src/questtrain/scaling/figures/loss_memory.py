"""Figures 1 and 5: loss over the memory of the weights at one tokens/parameter ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from questtrain.config import Bits
from questtrain.scaling.figures.law_runs import (
    LawRuns,
    Series,
    fitted,
    law_notes,
    missing_series,
    read_law_runs,
    series,
)
from questtrain.scaling.figures.selection import (
    Paths,
    error_bars,
    log,
    loss_label,
    nothing_to_draw,
    say_missing,
    seed_notes,
)
from questtrain.scaling.figures.style import add_legend, add_notes, line_figure, precision_style
from questtrain.scaling.points import Point
from questtrain.scaling.precision import (
    DEFAULT_METHOD,
    REFERENCE,
    label_text,
    sorted_labels,
    split_label,
    weight_bits,
)
from questtrain.scaling.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LossMemoryData:
    """``missing`` names what the paper's figure has, or other series have, and this one lacks."""

    title: str
    ylabel: str
    tokens_per_param: float
    series: list[Series]
    missing: list[str]
    notes: list[str]


def law_data(paths: Paths) -> LossMemoryData:
    """Figure 1: QuEST on integers of every width, and BF16."""
    return _data(paths, "law", "Scaling law", ("1", "2", "3", "4", REFERENCE), _is_integer)


def formats_data(paths: Paths) -> LossMemoryData:
    """Figure 5a: the formats of 4 bits."""
    labels = ("4", "fp4", "w4s24a4", REFERENCE)
    return _data(paths, "formats", "Formats of 4 bits", labels, _is_format_of_4_bits)


def weight_only_data(paths: Paths) -> LossMemoryData:
    """Figure 5b: weights of few bits, activations of 16."""
    labels = ("w1a16", "w2a16", "w3a16", "w4a16", REFERENCE)
    return _data(paths, "weight-only", "Weight-only quantization", labels, _is_weight_only)


def hadamard_data(paths: Paths) -> LossMemoryData:
    """Figure 5c: with and without the Hadamard transform."""
    plain = ("1", "2", "3", "4")
    labels = (*plain, *(f"{label}-quest-noht" for label in plain), REFERENCE)
    title = "With and without the Hadamard transform"
    return _data(paths, "hadamard", title, labels, _is_integer_of_either_rotation)


def draw(data: LossMemoryData) -> Figure:
    """A marker a size with bars over seeds, and the law's curve."""
    figure, axes = line_figure(data.title, "memory of the weights (Mbit)", data.ylabel)
    for one in data.series:
        draw_series(axes, one, precision_style(one.precision), one.label)
    memory_axis(axes)
    add_legend(figure, axes)
    add_notes(figure, data.notes)
    return figure


def draw_series(axes: Axes, one: Series, style: dict[str, Any], label: str) -> None:
    """Points and curve, with one entry of the legend for both."""
    if one.curve_loss:
        axes.plot(one.curve_memory_mbit, one.curve_loss, **style | {"marker": ""})
    means = [spread.mean for spread in one.loss]
    points = style | {"linestyle": "none"}
    bars = error_bars(one.loss)
    axes.errorbar(one.memory_mbit, means, yerr=bars, capsize=3, elinewidth=1, **points)
    axes.plot([], [], label=label, **(style if one.curve_loss else points))


def memory_axis(axes: Axes) -> None:
    """Logarithmic, in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 30 * low:  # one or two powers of ten alone would say little
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _data(
    paths: Paths,
    name: str,
    title: str,
    expected: Sequence[str],
    belongs: Callable[[Bits, str], bool],
) -> LossMemoryData:
    """The precisions that belong, at the ratio that most of their points have."""
    found = read_law_runs(paths)
    groups = {
        ratio: [point for point in group if _belongs(point.precision, belongs)]
        for ratio, group in found.groups.items()
    }
    ratio, points = max(groups.items(), key=lambda item: (len(item[1]), item[0]))
    if not any(_is_own(point.precision, name) for point in points):
        wanted = ", ".join(label_text(label) for label in expected if _is_own(label, name))
        raise nothing_to_draw(name, f"runs of {wanted}", _SWEEPS[name])
    _say_other_ratios(name, ratio, groups)
    law = fitted(found.points)
    drawn = [series(points, label, law) for label in sorted_labels(p.precision for p in points)]
    missing = missing_series(drawn, expected, found.sizes)
    say_missing(name, missing)
    return LossMemoryData(
        title=f"{title}, {ratio:g} tokens/parameter",
        ylabel=loss_label(_runs_at(found, points)),
        tokens_per_param=ratio,
        series=drawn,
        missing=missing,
        notes=law_notes(law) + seed_notes(s for one in drawn for s in one.loss),
    )


_SWEEPS = {
    "law": "scaling",
    "formats": "fig5a_formats",
    "weight-only": "fig5b_weight_only",
    "hadamard": "fig5c_hadamard",
}


def _belongs(label: str, belongs: Callable[[Bits, str], bool]) -> bool:
    """The reference, and what the figure's own test says; no label without known bits."""
    named = split_label(label)
    if label == REFERENCE:
        return True
    return named is not None and weight_bits(label) is not None and belongs(*named)


def _is_own(label: str, name: str) -> bool:
    """Whether a precision makes the figure: any quantized one figure 1; the others one that figure
    1 does not show."""
    named = split_label(label)
    if label == REFERENCE or named is None:
        return False
    return name == "law" or not _is_integer(*named)


def _is_integer(bits: Bits, method: str) -> bool:
    """Weights and activations alike, so that the precision is one number."""
    plain = bits.weight == bits.activation and bits.weight.kind == "int"
    return plain and method == DEFAULT_METHOD


def _is_format_of_4_bits(bits: Bits, method: str) -> bool:
    alike = bits.weight.label == bits.activation.label
    return alike and bits.weight.bits == 4 and method == DEFAULT_METHOD


def _is_weight_only(bits: Bits, method: str) -> bool:
    return not bits.activation.quantized and method == DEFAULT_METHOD


def _is_integer_of_either_rotation(bits: Bits, method: str) -> bool:
    method = DEFAULT_METHOD if method == "quest-noht" else method
    return _is_integer(bits, method)


def _runs_at(found: LawRuns, points: Sequence[Point]) -> list[Run]:
    names = {point.name for point in points}
    return [run for run in found.runs if run.name in names]


def _say_other_ratios(name: str, ratio: float, groups: dict[float, list[Point]]) -> None:
    for other, points in groups.items():
        if other != ratio and points:
            log.warning(
                "left out of %s: %d runs at %g tokens/parameter; drawn are those at %g",
                name,
                len(points),
                other,
                ratio,
            )
