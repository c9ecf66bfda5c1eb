"""Table 4: perplexity of LSQ by the weight decay of its step and by bits."""

from __future__ import annotations

from dataclasses import dataclass

from questtrain.scaling.figures import selection
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.figures.tables import Table
from questtrain.scaling.runs import Run

NONE = "–"


@dataclass(frozen=True)
class LsqDecayData:
    """``perplexity[decay][bits]``; None where there is no run."""

    title: str
    bits: list[str]
    weight_decay: list[float]
    perplexity: list[list[selection.Spread | None]]
    missing: list[str]
    notes: list[str]


def data(paths: Paths) -> LsqDecayData:
    """LSQ's runs of one size, token count and learning-rate scale: those with most cells."""
    scanned = [run for run in selection.finished(paths) if _is_scanned(run)]
    runs = selection.richest(
        scanned,
        "table4",
        setting=lambda run: (selection.budget(run), run.number("lr_scale")),
        content=_cell,
    )
    cells = {
        cell: selection.perplexity_spread(own)
        for cell, own in selection.grouped(runs, _cell).items()
    }
    decays = sorted({decay for decay, _ in cells})
    if len(decays) < 2:
        needs = "runs of LSQ at two or more values of scale_weight_decay"
        raise selection.nothing_to_draw("table4", needs, "table4_lsq_wd")
    bits = sorted({bits for _, bits in cells}, key=float)
    absent = [(d, b) for d in decays for b in bits if (d, b) not in cells]
    quantity = selection.loss_label(runs, "validation perplexity")
    notes = [f"{quantity}; the lowest of each column in bold."]
    if any(cell.runs > 1 for cell in cells.values()):
        notes.append("Means over seeds, with the lowest and highest.")
    return LsqDecayData(
        title=f"LSQ by weight decay of the step, {selection.size_and_tokens(runs[0])}",
        bits=bits,
        weight_decay=decays,
        perplexity=[[cells.get((d, b)) for b in bits] for d in decays],
        missing=[f"W{b}A{b} at scale_weight_decay={d:g}" for d, b in absent],
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
        means = [(cell.mean, row) for row, cell in enumerate(column) if cell is not None]
        best.append((min(means)[1], place))
    return Table(data.title, header, rows, best, data.notes)


def _text(cell: selection.Spread | None) -> str:
    if cell is None:
        return NONE
    several = f" [{cell.low:.2f}, {cell.high:.2f}]" if cell.runs > 1 else ""
    return f"{cell.mean:.2f}{several}"


def _is_scanned(run: Run) -> bool:
    is_lsq = selection.method_and_bits(run)[0] == "lsq"
    return is_lsq and run.number("scale_weight_decay") is not None


def _cell(run: Run) -> tuple[float, str]:
    return selection.known(run, "scale_weight_decay"), selection.method_and_bits(run)[1]
