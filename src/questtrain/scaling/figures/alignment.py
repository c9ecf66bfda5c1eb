"""Figure 2: how well gradients align with those of unquantized activations, by depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pvariance
from typing import TYPE_CHECKING

from questtrain.scaling.diagnostics import Alignment, read_alignment, read_all
from questtrain.scaling.figures import style
from questtrain.scaling.figures.selection import Paths, grouped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Line:
    """One run, or runs that differ in nothing but their seeds; ``depth`` counts from 1."""

    label: str
    runs: list[str]
    depth: list[int]
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class AlignmentData:
    title: str
    lines: list[Line]


def data(paths: Paths) -> AlignmentData:
    """A line for each method and bits, its seeds merged."""
    records = read_all(paths, "alignment", read_alignment)
    groups = _merge_seeds(records)
    labels = style.run_labels([group[0] for group in groups])
    return AlignmentData(
        style.title("Gradient alignment", records),
        [_line(label, group) for label, group in zip(labels, groups, strict=True)],
    )


def draw(data: AlignmentData) -> Figure:
    """Mean cosine similarity over depth, with bars of one standard deviation."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = style.line_figure(
        data.title,
        "depth (Transformer block)",
        "cosine similarity to the gradient\nof unquantized activations",
    )
    for index, line in enumerate(data.lines):
        look = style.line_style(index)
        style.draw_bars(axes, line.depth, line.mean, line.std, label=line.label, **look)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.add_legend(figure, axes)
    return figure


def _merge_seeds(records: Sequence[Alignment]) -> list[list[Alignment]]:
    """Group records that differ in their seeds alone; where one seed comes twice, something else
    differs too, and nothing is merged."""
    groups = grouped(
        records, lambda r: (r.model, r.bits, r.method, r.hadamard, r.step, len(r.blocks))
    )
    merged = []
    for group in groups.values():
        distinct = len({record.seed for record in group}) == len(group)
        merged += [group] if distinct else [[record] for record in group]
    return merged


def _line(label: str, group: Sequence[Alignment]) -> Line:
    """The seeds' mean, and the std over all their batches: within a seed and between seeds."""
    depths = list(zip(*(record.blocks for record in group), strict=True))
    within = [fmean(block.std**2 for block in blocks) for blocks in depths]
    between = [pvariance([block.mean for block in blocks]) for blocks in depths]
    return Line(
        label=label if len(group) == 1 else f"{label} ({len(group)} seeds)",
        runs=[record.folder for record in group],
        depth=list(range(1, len(depths) + 1)),
        mean=[fmean(block.mean for block in blocks) for blocks in depths],
        std=[math.sqrt(w + b) for w, b in zip(within, between, strict=True)],
    )
