"""Table 4: perplexity of LSQ by the weight decay of its step and by bits."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from questtrain.scaling.figures.selection import (
    Paths,
    Spread,
    budget,
    finished,
    known,
    loss_label,
    method_and_bits,
    nothing_to_draw,
    richest,
    say_missing,
    size_and_tokens,
    spread,
)
from questtrain.scaling.figures.tables import Table
from questtrain.scaling.runs import Run

NONE = "–"


@dataclass(frozen=True)
class LsqDecayData:
    """``perplexity[decay][bits]``; None where there is no run."""

    title: str
    bits: list[str]
    weight_decay: list[float]
    perplexity: list[list[Spread | None]]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> LsqDecayData:
    """LSQ's runs of one size, token count and learning-rate scale: those with most cells."""
    scanned = [run for run in finished(paths) if _is_scanned(run)]
    cells: dict[tuple[float, str], list[float]] = {}
    runs = richest(scanned, "table4", _setting, _cell) if scanned else []
    for run in runs:
        cells.setdefault(_cell(run), []).append(math.exp(known(run, "val_loss")))
    decays = sorted({decay for decay, _ in cells})
    if len(decays) < 2:
        needs = "runs of LSQ at two or more values of scale_weight_decay"
        raise nothing_to_draw("table4", needs, "table4_lsq_wd")
    bits = sorted({bits for _, bits in cells}, key=float)
    absent = [(d, b) for d in decays for b in bits if (d, b) not in cells]
    missing = [f"W{b}A{b} at scale_weight_decay={d:g}" for d, b in absent]
    say_missing("table4", missing)
    quantity = loss_label(runs, "validation perplexity")
    notes = [f"{quantity}; the lowest of each column in bold."]
    if any(len(values) > 1 for values in cells.values()):
        notes.append("Means over seeds, with the lowest and highest.")
    return LsqDecayData(
        title=f"LSQ by weight decay of the step, {size_and_tokens(runs[0])}",
        bits=bits,
        weight_decay=decays,
        perplexity=[
            [spread(cells[d, b]) if (d, b) in cells else None for b in bits] for d in decays
        ],
        missing=missing,
        notes=notes,
    )


def table(data: LsqDecayData) -> Table:
    """A row a weight decay, a column a bit width, the best of each column in bold."""
    header = ["weight decay", *(f"W{b}A{b}" for b in data.bits)]
    rows = [
        [f"{decay:g}", *map(_text, row)]
        for decay, row in zip(data.weight_decay, data.perplexity, strict=True)
    ]
    best = []
    for place, column in enumerate(zip(*data.perplexity, strict=True), start=1):
        known = [(cell.mean, row) for row, cell in enumerate(column) if cell is not None]
        best.append((min(known)[1], place))
    return Table(data.title, header, rows, best, data.notes)


def _text(cell: Spread | None) -> str:
    if cell is None:
        return NONE
    several = f" [{cell.low:.2f}, {cell.high:.2f}]" if cell.runs > 1 else ""
    return f"{cell.mean:.2f}{several}"


def _is_scanned(run: Run) -> bool:
    kind = method_and_bits(run)
    return kind is not None and kind[0] == "lsq" and run.number("scale_weight_decay") is not None


def _setting(run: Run) -> Hashable:
    return budget(run), run.number("lr_scale")


def _cell(run: Run) -> tuple[float, str]:
    kind = method_and_bits(run)
    assert kind is not None, run.name
    return known(run, "scale_weight_decay"), kind[1]
