"""Figures 1 and 5: loss over the memory of the weights at one tokens/parameter ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.law_runs import (
    LawRuns,
    Series,
    fitted,
    law_notes,
    missing_series,
    read_law_runs,
    series,
)
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.metric import VAL_LOSS
from questtrain.scaling.points import Point
from questtrain.scaling.precision import (
    DEFAULT_METHOD,
    REFERENCE,
    integer_kind,
    label_text,
    sorted_labels,
    split_label,
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


@dataclass(frozen=True)
class LossMemory:
    """One of the figures: the precisions that it shows beside the reference are those that
    ``belong``, ``expected`` are the paper's; ``sweep`` trains them."""

    name: str
    sweep: str
    title: str
    expected: Sequence[str]
    belong: Callable[[str], bool]

    def data(self, paths: Paths, metric: str = VAL_LOSS) -> LossMemoryData:
        """The precisions that belong, at the ratio that most of their points have."""
        found = read_law_runs(paths, metric)
        groups = {
            ratio: [p for p in group if p.precision == REFERENCE or self.belong(p.precision)]
            for ratio, group in found.groups.items()
        }
        ratio, points = max(groups.items(), key=lambda item: (len(item[1]), item[0]))
        if not any(self._is_own(point.precision) for point in points):
            wanted = ", ".join(label_text(label) for label in self.expected if self._is_own(label))
            raise selection.nothing_to_draw(self.name, f"runs of {wanted}", self.sweep)
        _say_other_ratios(self.name, ratio, groups)
        law = fitted(found.points)
        drawn = [series(points, label, law) for label in sorted_labels(p.precision for p in points)]
        return LossMemoryData(
            title=f"{self.title}, {ratio:g} tokens/parameter",
            ylabel=selection.metric_label(_runs_at(found, points), metric),
            tokens_per_param=ratio,
            series=drawn,
            missing=missing_series(drawn, self.expected, found.sizes),
            notes=law_notes(law) + selection.seed_notes(s for one in drawn for s in one.loss),
        )

    def draw(self, data: LossMemoryData) -> Figure:
        """A marker a size with bars over seeds, and the law's curve."""
        figure, axes = style.line_figure(data.title, "memory of the weights (Mbit)", data.ylabel)
        for one in data.series:
            draw_series(axes, one, style.precision_style(one.precision), one.label)
        memory_axis(axes)
        style.add_legend(figure, axes)
        style.add_notes(figure, data.notes)
        return figure

    def _is_own(self, label: str) -> bool:
        """Whether a precision makes the figure: any quantized one figure 1; the others one that
        figure 1 does not show."""
        if label == REFERENCE or split_label(label) is None:
            return False
        return self.name == "law" or not _is_integer(label)


def draw_series(axes: Axes, one: Series, look: dict[str, Any], label: str) -> None:
    """Points and curve, with one entry of the legend for both."""
    if one.curve_loss:
        axes.plot(one.curve_memory_mbit, one.curve_loss, **look | {"marker": ""})
    points = look | {"linestyle": "none"}
    style.draw_spreads(axes, one.memory_mbit, one.loss, **points)
    axes.plot([], [], label=label, **(look if one.curve_loss else points))


def memory_axis(axes: Axes) -> None:
    """Logarithmic, in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 30 * low:  # one or two powers of ten alone would say little
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _is_integer(label: str) -> bool:
    """Weights and activations alike, so that the precision is one number."""
    return integer_kind(label)[0] == DEFAULT_METHOD


def _is_integer_of_either_rotation(label: str) -> bool:
    return integer_kind(label)[0] in (DEFAULT_METHOD, "quest-noht")


def _is_format_of_4_bits(label: str) -> bool:
    named = split_label(label)
    if named is None or named[1] != DEFAULT_METHOD:
        return False
    weight, activation = named[0].weight, named[0].activation
    return weight.label == activation.label and weight.bits == 4


def _is_weight_only(label: str) -> bool:
    named = split_label(label)
    return named is not None and not named[0].activation.quantized and named[1] == DEFAULT_METHOD


def _runs_at(found: LawRuns, points: Sequence[Point]) -> list[Run]:
    names = {point.name for point in points}
    return [run for run in found.runs if run.name in names]


def _say_other_ratios(name: str, ratio: float, groups: dict[float, list[Point]]) -> None:
    for other, points in groups.items():
        if other != ratio and points:
            selection.log.warning(
                "left out of %s: %d runs at %g tokens/parameter; drawn are those at %g",
                name,
                len(points),
                other,
                ratio,
            )


LAW = LossMemory("law", "scaling", "Scaling law", ("1", "2", "3", "4", REFERENCE), _is_integer)
FORMATS = LossMemory(
    "formats",
    "fig5a_formats",
    "Formats of 4 bits",
    ("4", "fp4", "w4s24a4", REFERENCE),
    _is_format_of_4_bits,
)
WEIGHT_ONLY = LossMemory(
    "weight-only",
    "fig5b_weight_only",
    "Weight-only quantization",
    ("w1a16", "w2a16", "w3a16", "w4a16", REFERENCE),
    _is_weight_only,
)
HADAMARD = LossMemory(
    "hadamard",
    "fig5c_hadamard",
    "With and without the Hadamard transform",
    (*"1234", *(f"{bits}-quest-noht" for bits in "1234"), REFERENCE),
    _is_integer_of_either_rotation,
)
