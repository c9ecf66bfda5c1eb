"""Figure 3: perplexity over bit width, QuEST against LSQ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("quest", "lsq")
BITS = {"quest": ("1", "2", "3", "4", "8"), "lsq": ("2", "3", "4", "8")}
TUNED = (
    "lr",
    "lr_scale",
    "scale_weight_decay",
    "trust_scale",
    "trust_error",
    "grid",
    "hadamard",
    "scale_dtype",
    "group_size",
)
"""Settings that a method is tuned by: its best choice stands for it."""


@dataclass(frozen=True)
class Line:
    """A method's perplexities by bits, few bits first."""

    method: str
    label: str
    bits: list[float]
    perplexity: list[selection.Spread]


@dataclass(frozen=True)
class BitWidthData:
    """``reference`` is the unquantized model's perplexity, None where there is no such run."""

    title: str
    ylabel: str
    lines: list[Line]
    reference: selection.Spread | None
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> BitWidthData:
    """Runs of one size and token count; of several settings of a method, the best one's seeds."""
    groups = _groups(selection.finished(paths))
    lines = [_line(method, groups) for method in METHODS]
    unquantized = groups.get(("none", "16"))
    reference = selection.perplexity_spread(unquantized) if unquantized else None
    runs = [run for group in groups.values() for run in group]
    spreads = [one for line in lines for one in line.perplexity]
    spreads += [reference] if reference else []
    return BitWidthData(
        title=f"Perplexity by bit width, {selection.size_and_tokens(runs[0])}",
        ylabel=selection.loss_label(runs, "validation perplexity"),
        lines=[line for line in lines if line.bits],
        reference=reference,
        missing=_missing(groups),
        notes=selection.seed_notes(spreads),
    )


def draw(data: BitWidthData) -> Figure:
    """Lines over bits on a logarithmic axis, BF16 across."""
    figure, axes = style.line_figure(data.title, "bits of weights and activations", data.ylabel)
    for line in data.lines:
        look = style.method_style(line.method)
        style.draw_spreads(axes, line.bits, line.perplexity, label=line.label, **look)
    if data.reference is not None:
        look = {"color": style.method_style("none")["color"], "linestyle": (0, (3, 1))}
        axes.axhline(data.reference.mean, label="BF16", linewidth=1.2, **look)
        if data.reference.runs > 1:
            axes.axhspan(data.reference.low, data.reference.high, color="0.85", zorder=0)
    style.bits_axis(axes, {b for line in data.lines for b in line.bits})
    style.add_legend(figure, axes)
    style.add_notes(figure, data.notes)
    return figure


def _groups(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """(method, bits) → the seeds of its best setting; UserError where neither method occurs."""
    wanted = [run for run in runs if selection.method_and_bits(run)[0] in (*METHODS, "none")]
    if not any(selection.method_and_bits(run)[0] in METHODS for run in wanted):
        needs = "runs of QuEST and LSQ at several bit widths, of one size"
        raise selection.nothing_to_draw("lsq", needs, "fig3_lsq")
    kind = selection.method_and_bits
    drawn = selection.richest(wanted, "lsq", selection.budget, kind)
    return {k: _best_setting(group) for k, group in selection.grouped(drawn, kind).items()}


def _best_setting(runs: Sequence[Run]) -> list[Run]:
    """The runs of the setting with the lowest mean loss; the log says so where there are others."""
    settings = selection.grouped(runs, lambda run: tuple(map(run.text, TUNED)))
    best = min(settings.values(), key=lambda group: selection.loss_spread(group).mean)
    if len(settings) > 1:
        selection.log.warning("lsq: %s is the best of %d settings", best[0].name, len(settings))
    return best


def _line(method: str, groups: dict[tuple[str, str], list[Run]]) -> Line:
    own = sorted((float(bits), runs) for (name, bits), runs in groups.items() if name == method)
    return Line(
        method,
        style.method_label(method, hadamard=method == "quest"),
        [bits for bits, _ in own],
        [selection.perplexity_spread(runs) for _, runs in own],
    )


def _missing(groups: dict[tuple[str, str], list[Run]]) -> list[str]:
    missing = []
    for method in METHODS:
        label = style.method_label(method, hadamard=method == "quest")
        absent = [f"W{b}A{b}" for b in BITS[method] if (method, b) not in groups]
        if len(absent) == len(BITS[method]) and not any(name == method for name, _ in groups):
            missing.append(label)
        elif absent:
            missing.append(f"{label} at {', '.join(absent)}")
    return missing + ([] if ("none", "16") in groups else ["BF16"])
