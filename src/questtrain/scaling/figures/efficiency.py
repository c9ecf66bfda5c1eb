"""Figure 4 and table 1: what the bits of each format are worth, by the fitted law."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.errors import UserError
from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.law_runs import fitted, read_law_runs
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.figures.tables import Table
from questtrain.scaling.law import Estimate, Law
from questtrain.scaling.precision import (
    DEFAULT_METHOD,
    REFERENCE,
    label_text,
    sorted_labels,
    split_label,
    weight_bits,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER_PRECISIONS = ("1", "2", "3", "4", "8")
PAPER_FORMATS = ("fp4", "w4s24a4")
NEEDS = "runs that determine the law: several sizes and precisions, BF16 among them"

INTEGERS = "QuEST INT"
# The families of the paper keep their looks, whichever of them are there; others take the next.
_FIRST_FAMILIES = (
    INTEGERS,
    "LSQ INT",
    "QuEST INT without Hadamard",
    "STE INT",
    "QuEST INT, weight-only",
    "QuEST FP4",
    "QuEST INT 2:4",
)
HIGHEST = 1.15
"""The axis ends this much above the highest value of an eff that a format can have (at most the
reference's); a value beyond, of a precision that the runs hardly determine, is written there."""
PLAUSIBLE_EFF = 1.2
_ASIDE = (0.0, -0.03, 0.03, -0.06, 0.06, 0.045, 0.0)
"""Octaves that families stand beside their bits, so that bars at the same bits stay apart."""


@dataclass(frozen=True)
class Worth:
    """One precision: bits of a weight, eff(P), and the gain 16·eff(P)/P over BF16, with the
    interval of each where the law has one."""

    precision: str
    label: str
    bits: float | None
    runs: int
    eff: Estimate
    gain: Estimate | None


@dataclass(frozen=True)
class Family:
    """Precisions of one method and format, few bits first."""

    label: str
    worths: list[Worth]


@dataclass(frozen=True)
class EfficiencyData:
    title: str
    families: list[Family]
    missing: list[str]
    notes: list[str]


@dataclass(frozen=True)
class EfficiencyTable:
    title: str
    worths: list[Worth]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> EfficiencyData:
    """A family a format and method; a label without known bits is left out, and said."""
    law, worths = _worths(paths, "efficiency")
    families: dict[str, list[Worth]] = {}
    for worth in worths:
        if worth.gain is None:
            selection.log.warning("left out of efficiency: %s does not say its bits", worth.label)
        else:
            families.setdefault(_family(worth.precision), []).append(worth)
    ordered = sorted(families, key=_family_rank)
    return EfficiencyData(
        "Efficiency of formats",
        [Family(name, sorted(families[name], key=lambda w: w.bits or 0)) for name in ordered],
        _missing(law, (*PAPER_PRECISIONS, *PAPER_FORMATS)),
        _notes(law),
    )


def table_data(paths: Paths) -> EfficiencyTable:
    """A row a precision, few bits first, BF16 last of the method QuEST."""
    law, worths = _worths(paths, "table1")
    missing = _missing(law, PAPER_PRECISIONS)
    shared = {"A": law.A, "α": law.alpha, "B": law.B, "β": law.beta, "E": law.E}
    parameters = ", ".join(f"{name} = {_number(value)}" for name, value in shared.items())
    return EfficiencyTable(
        "Fitted efficiency of each precision", worths, missing, [*_notes(law), parameters]
    )


def table(data: EfficiencyTable) -> Table:
    """eff(P) and 16·eff(P)/P with their intervals."""
    rows = [
        [
            worth.label,
            "?" if worth.bits is None else f"{worth.bits:g}",
            str(worth.runs),
            _number(worth.eff),
            "?" if worth.gain is None else _number(worth.gain),
        ]
        for worth in data.worths
    ]
    header = ["precision", "bits P", "runs", "eff(P)", "16·eff(P)/P"]
    return Table(data.title, header, rows, [], data.notes)


def draw(data: EfficiencyData) -> Figure:
    """Gain over BF16 by bits, a line a family, bars where there are intervals."""
    label = "eff(P)/P relative to BF16"
    figure, axes = style.line_figure(data.title, "bits of a weight, P", label)
    axes.axhline(1, color=style.GREY, linewidth=1, linestyle=":", label="BF16")
    bits = {worth.bits for family in data.families for worth in family.worths}
    style.bits_axis(axes, {b for b in bits | {16.0} if b})
    axes.set_ylim(0, _top(data))
    others = [family.label for family in data.families if family.label not in _FIRST_FAMILIES]
    for family in data.families:
        _draw_family(axes, family, [*_FIRST_FAMILIES, *others].index(family.label))
    style.add_legend(figure, axes)
    style.add_notes(figure, data.notes)
    return figure


def _draw_family(axes: Axes, family: Family, index: int) -> None:
    look = style.line_style(index)
    top = axes.get_ylim()[1]
    shown = [w for w in family.worths if w.gain and w.gain.value <= top]
    gains = [w.gain for w in shown if w.gain]
    bars = [
        [0.0 if g.low is None else max(0.0, g.value - g.low) for g in gains],
        [0.0 if g.high is None else max(0.0, g.high - g.value) for g in gains],
    ]
    style.draw_bars(
        axes,
        [(w.bits or 0.0) * 2 ** _ASIDE[index % len(_ASIDE)] for w in shown],
        [g.value for g in gains],
        bars if any(map(any, bars)) else None,
        label=family.label,
        **look,
    )
    for worth in family.worths:
        if worth.gain and worth.gain.value > top:
            axes.annotate(
                f"{worth.gain.value:.3g}",
                xy=(worth.bits or 0.0, top),
                xytext=(0, -28),
                textcoords="offset points",
                ha="center",
                fontsize="x-small",
                color=look["color"],
                arrowprops={"arrowstyle": "->", "color": look["color"]},
            )


def _top(data: EfficiencyData) -> float:
    """Where the axis ends: above all that is plausible, intervals as far as they are."""
    worths = [worth for family in data.families for worth in family.worths]
    likely = [w for w in worths if w.gain and w.eff.value <= PLAUSIBLE_EFF] or worths
    ends = [max(w.gain.value, min(w.gain.high or 0, 1.5 * w.gain.value)) for w in likely if w.gain]
    return HIGHEST * max([*ends, 1.0])


def _worths(paths: Paths, figure: str) -> tuple[Law, list[Worth]]:
    """The law with intervals, and every precision that it knows."""
    found = read_law_runs(paths)
    law = fitted(found.points, bootstrap=True)
    if law is None:
        raise selection.nothing_to_draw(figure, NEEDS, "scaling")
    if not law.eff:
        raise UserError(f"nothing to draw: {figure} needs quantized runs; all of these are BF16.")
    runs = Counter(point.precision for point in found.points)
    return law, [_worth(label, law, runs[label]) for label in sorted_labels(law.precisions)]


def _worth(label: str, law: Law, runs: int) -> Worth:
    eff, bits = law.efficiency(label), weight_bits(label)
    gain = None if bits is None else eff.times(16 / bits)
    return Worth(label, label_text(label), bits, runs, eff, gain)


def _family(label: str) -> str:
    """``QuEST INT``, ``LSQ INT``, ``QuEST FP4``, ``QuEST INT 2:4``, ``QuEST INT, weight-only``."""
    named = split_label(label)
    if label == REFERENCE or named is None:
        return INTEGERS
    bits, method = named
    kind = "FP4" if bits.weight.kind == "fp4" else "INT"
    sparse = " 2:4" if bits.weight.sparse else ""
    name = style.method_label(method, method == DEFAULT_METHOD).replace(
        "QuEST", f"QuEST {kind}{sparse}"
    )
    name += "" if "QuEST" in name else f" {kind}{sparse}"
    if bits.weight.label == bits.activation.label:
        return name
    return (
        f"{name}, weight-only" if not bits.activation.quantized else f"{name}, A{bits.activation}"
    )


def _family_rank(name: str) -> tuple[int, str]:
    known = name in _FIRST_FAMILIES
    return (_FIRST_FAMILIES.index(name) if known else len(_FIRST_FAMILIES)), name


def _missing(law: Law, expected: Sequence[str]) -> list[str]:
    return [label_text(label) for label in expected if label not in law.eff]


def _notes(law: Law) -> list[str]:
    rms = 100 * law.rms_log_residual
    notes = [f"Scaling law fitted to {law.points} runs, rms residual {rms:.2g}%."]
    if law.confidence is not None:
        notes[0] += f" Intervals: {law.confidence:.0%}, bootstrap."
    return notes


def _number(estimate: Estimate) -> str:
    """``0.431 [0.42, 0.44]``."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3g}"
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
