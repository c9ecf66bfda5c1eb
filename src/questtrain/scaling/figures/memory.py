"""Figure 14: which precision is best in a fixed memory, as training data grows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from questtrain.scaling.figures import selection, style
from questtrain.scaling.figures.law_runs import fitted, law_notes, read_law_runs
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.law import Law
from questtrain.scaling.numbers import count_text
from questtrain.scaling.plan import iso_memory
from questtrain.scaling.precision import (
    DEFAULT_METHOD,
    REFERENCE,
    integer_kind,
    label_text,
    sorted_labels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEMORIES = (1.6e9, 6.4e9, 14e9, 140e9)
"""Bytes; 0.8, 3.2, 7 and 70 billion parameters of 16 bits."""

PAPER_PRECISIONS = ("4", "8", REFERENCE)
FOUR_BITS = "4"
RATIOS = np.geomspace(1, 1e4, 81)
MARKER_EVERY = 10


@dataclass(frozen=True)
class Curve:
    precision: str
    label: str
    loss: list[float]


@dataclass(frozen=True)
class Panel:
    """One memory; ``four_bits_from`` is the ratio from which 4 bits are best, None where they are
    at every ratio or at none."""

    memory_bytes: float
    title: str
    curves: list[Curve]
    four_bits_from: float | None


@dataclass(frozen=True)
class MemoryData:
    """``ratios`` are tokens to parameters of the 16-bit model of that memory."""

    title: str
    ylabel: str
    ratios: list[float]
    panels: list[Panel]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> MemoryData:
    """The precisions of the paper, and others of QuEST on integers that win somewhere."""
    found = read_law_runs(paths)
    law = fitted(found.points)
    if law is None or not any(_is_plain(label) for label in law.eff):
        needs = "a law: runs of several sizes, of QuEST at some precision and of BF16"
        raise selection.nothing_to_draw("memory", needs, "scaling")
    missing = [label_text(label) for label in PAPER_PRECISIONS if label not in law.precisions]
    largest = max(point.params for point in found.points)
    panels, notes = _panels(law), law_notes(law)
    notes.append(
        f"Equal training compute: P bits have 16/P times the parameters and P/16 of the tokens."
        f" Beyond {count_text(largest)} parameters the law is extrapolated."
    )
    if any(panel.four_bits_from for panel in panels):
        notes.append("Grey: from here on 4 bits are best.")
    return MemoryData(
        title="Best precision in a fixed memory",
        ylabel=selection.loss_label(found.runs, "loss (nats/token)"),
        ratios=RATIOS.tolist(),
        panels=panels,
        missing=missing,
        notes=notes,
    )


def draw(data: MemoryData) -> Figure:
    """Two by two panels, losses over the ratio that equal compute makes comparable."""
    figure = style.panels_figure(data.title, (7.2, 5.8))
    grid = figure.subplots(2, 2, sharex=True)
    for axes, panel in zip(grid.flatten(), data.panels, strict=True):
        _draw_panel(axes, panel, data.ratios)
    for axes in grid[:, 0]:
        axes.set_ylabel(data.ylabel)
    for axes in grid[-1]:
        axes.set_xlabel("tokens/parameter · (16/P)²")
    style.add_notes(figure, data.notes)
    return figure


def _draw_panel(axes: Axes, panel: Panel, ratios: list[float]) -> None:
    for index, curve in enumerate(panel.curves):
        shift = MARKER_EVERY * (index + 1) // (len(panel.curves) + 1)
        look = style.precision_style(curve.precision) | {
            "markevery": (shift, MARKER_EVERY),
            "markersize": 5,
        }
        axes.plot(ratios, curve.loss, label=curve.label, **look)
    if panel.four_bits_from is not None:
        axes.axvline(panel.four_bits_from, color=style.GREY, linewidth=1, linestyle=":")
        axes.annotate(
            f"{float(f'{panel.four_bits_from:.2g}'):,g}",
            xy=(panel.four_bits_from, 0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 4),
            textcoords="offset points",
            fontsize="small",
            color=style.GREY,
        )
    axes.set_title(panel.title, fontsize="medium")
    axes.set_xscale("log")
    style.open_frame(axes)
    style.panel_legend(axes, loc="upper right", handlelength=3)


def _panels(law: Law) -> list[Panel]:
    losses = {memory: _plain_losses(law, memory) for memory in MEMORIES}
    winners = {
        min(curves, key=lambda label: curves[label][place])
        for curves in losses.values()
        for place in range(len(RATIOS))
    }
    shown = [
        label
        for label in sorted_labels(losses[MEMORIES[0]])
        if label in PAPER_PRECISIONS or label in winners
    ]
    return [
        Panel(
            memory_bytes=memory,
            title=f"{memory / 1e9:g} GB ({count_text(memory / 2)} parameters in BF16)",
            curves=[Curve(label, label_text(label), curves[label]) for label in shown],
            four_bits_from=_four_bits_from({label: curves[label] for label in shown}),
        )
        for memory, curves in losses.items()
    ]


def _plain_losses(law: Law, memory: float) -> dict[str, list[float]]:
    curves = iso_memory(law, memory, RATIOS.tolist())
    return {label: losses for label, losses in curves.items() if _is_plain(label)}


def _is_plain(label: str) -> bool:
    """Precisions that are one number, so that P bits mean P/16 of the compute."""
    return integer_kind(label)[0] in (DEFAULT_METHOD, "none")


def _four_bits_from(curves: dict[str, list[float]]) -> float | None:
    """Where 4 bits overtake the best of the others for good, between the ratios at either side."""
    if FOUR_BITS not in curves or len(curves) < 2:
        return None
    others = [losses for label, losses in curves.items() if label != FOUR_BITS]
    ahead = np.min(others, axis=0) - np.array(curves[FOUR_BITS])
    for place, (before, after) in reversed(list(enumerate(pairwise(ahead)))):
        if after <= 0:
            return None
        if before <= 0 < after:
            share = before / (before - after)
            return float(RATIOS[place] * (RATIOS[place + 1] / RATIOS[place]) ** share)
    return None
