"""Figure 3: perplexity over bit width, QuEST against LSQ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.figures.selection import (
    Paths,
    Spread,
    budget,
    error_bars,
    finished,
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
    from matplotlib.figure import Figure

METHODS = ("quest", "lsq")
BITS = {"quest": ("1", "2", "3", "4", "8"), "lsq": ("2", "3", "4", "8")}
TUNED = ("lr", "lr_scale", "scale_weight_decay", "trust_scale", "trust_error", "grid", "hadamard")
"""Settings that a method is tuned by: its best choice stands for it."""


@dataclass(frozen=True)
class Line:
    """A method's perplexities by bits, few bits first."""

    method: str
    label: str
    bits: list[float]
    perplexity: list[Spread]


@dataclass(frozen=True)
class BitWidthData:
    """``reference`` is the unquantized model's perplexity, None where there is no such run."""

    title: str
    ylabel: str
    lines: list[Line]
    reference: Spread | None
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> BitWidthData:
    """Runs of one size and token count; of several settings of a method, the best one's seeds."""
    groups = _groups(finished(paths))
    lines = [_line(method, groups) for method in METHODS]
    missing = _missing(groups)
    say_missing("lsq", missing)
    reference = _perplexity(groups[("none", "16")]) if ("none", "16") in groups else None
    runs = [run for group in groups.values() for run in group]
    spreads = [one for line in lines for one in line.perplexity] + (
        [reference] if reference else []
    )
    return BitWidthData(
        title=f"Perplexity by bit width, {size_and_tokens(runs[0])}",
        ylabel=loss_label(runs, "validation perplexity"),
        lines=[line for line in lines if line.bits],
        reference=reference,
        missing=missing,
        notes=seed_notes(spreads),
    )


def draw(data: BitWidthData) -> Figure:
    """Lines over bits on a logarithmic axis, BF16 across."""
    from matplotlib.ticker import FixedLocator, NullLocator

    figure, axes = line_figure(data.title, "bits of weights and activations", data.ylabel)
    for line in data.lines:
        axes.errorbar(
            line.bits,
            [one.mean for one in line.perplexity],
            yerr=error_bars(line.perplexity),
            label=line.label,
            capsize=3,
            elinewidth=1,
            **method_style(line.method),
        )
    if data.reference is not None:
        look = {"color": method_style("none")["color"], "linestyle": (0, (3, 1))}
        axes.axhline(data.reference.mean, label="BF16", linewidth=1.2, **look)
        if data.reference.runs > 1:
            axes.axhspan(data.reference.low, data.reference.high, color="0.85", zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(
        FixedLocator(sorted({b for line in data.lines for b in line.bits}))
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    add_legend(figure, axes)
    add_notes(figure, data.notes)
    return figure


def _groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """(method, bits) → the seeds of its best setting; UserError where neither method occurs."""
    wanted = [run for run in runs if (method_and_bits(run) or ("",))[0] in (*METHODS, "none")]
    if not any((method_and_bits(run) or ("",))[0] in METHODS for run in wanted):
        needs = "runs of QuEST and LSQ at several bit widths, of one size"
        raise nothing_to_draw("lsq", needs, "fig3_lsq")
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in richest(wanted, "lsq", budget, method_and_bits):
        if kind := method_and_bits(run):
            groups.setdefault(kind, []).append(run)
    return {kind: _best_setting(group) for kind, group in groups.items()}


def _best_setting(runs: Sequence[Run]) -> list[Run]:
    """The runs of the setting with the lowest mean loss; the log says so where there are others."""
    settings: dict[tuple[str | None, ...], list[Run]] = {}
    for run in runs:
        settings.setdefault(tuple(run.text(column) for column in TUNED), []).append(run)
    best = min(
        settings.values(), key=lambda group: spread([known(run, "val_loss") for run in group]).mean
    )
    if len(settings) > 1:
        log.warning("lsq: %s is the best of %d settings", best[0].name, len(settings))
    return best


def _perplexity(runs: Sequence[Run]) -> Spread:
    return spread([math.exp(known(run, "val_loss")) for run in runs])


def _line(method: str, groups: dict[tuple[str, str], list[Run]]) -> Line:
    own = sorted((float(bits), runs) for (name, bits), runs in groups.items() if name == method)
    return Line(
        method,
        method_label(method, hadamard=method == "quest"),
        [bits for bits, _ in own],
        [_perplexity(runs) for _, runs in own],
    )


def _missing(groups: dict[tuple[str, str], list[Run]]) -> list[str]:
    missing = []
    for method in METHODS:
        label = method_label(method, hadamard=method == "quest")
        absent = [f"W{b}A{b}" for b in BITS[method] if (method, b) not in groups]
        if len(absent) == len(BITS[method]) and not any(name == method for name, _ in groups):
            missing.append(label)
        elif absent:
            missing.append(f"{label} at {', '.join(absent)}")
    return missing + ([] if ("none", "16") in groups else ["BF16"])
