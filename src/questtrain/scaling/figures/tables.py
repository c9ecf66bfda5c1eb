"""Tables of the paper: as a picture, and as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from questtrain.scaling.figures.style import add_notes
from questtrain.store.files import output_for, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT_FORMATS = ("md", "tex", "csv")
CHARACTER_INCHES, ROW_INCHES = 0.092, 0.27
TITLE_SIZE = 1.25  # of a letter, relative to those of the cells

# What LaTeX reads as a command, and the letters that its fonts may lack.
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "α": "$\\alpha$",
    "β": "$\\beta$",
    "·": "$\\cdot$",
    "±": "$\\pm$",
    "–": "--",
}


@dataclass(frozen=True)
class Table:
    """``best`` holds (row, column) of the cells in bold."""

    title: str
    header: list[str]
    rows: list[list[str]]
    best: list[tuple[int, int]]
    notes: list[str]


def write_table(table: Table, path: Path) -> None:
    """Markdown, LaTeX or CSV by the suffix, which is one of `TEXT_FORMATS`."""
    write = {"md": _markdown, "tex": _latex, "csv": _csv}[path.suffix.lower().removeprefix(".")]
    with output_for(path):
        write_text(path, write(table))


def draw_table(table: Table) -> Figure:
    """Rules above, below and under the header; the first column to the left."""
    from matplotlib.figure import Figure

    lengths = _widths(table)
    width, height = CHARACTER_INCHES * sum(lengths), ROW_INCHES * (len(table.rows) + 1)
    notes = [line for note in table.notes for line in textwrap.wrap(note, int(18 * width))]
    total = height + 0.5 + 0.18 * len(notes)
    figure = Figure(figsize=(width, total))
    axes = figure.add_axes((0.02, 1 - (height + 0.4) / total, 0.96, height / total))
    axes.set_title(table.title, parse_math=False)
    axes.set_axis_off()
    rows = len(table.rows) + 1
    axes.set(xlim=(0, sum(lengths)), ylim=(rows, 0))
    for y, thick in ((0, 1.5), (1, 0.8), (rows, 1.5)):
        axes.axhline(y, color="black", linewidth=thick, clip_on=False)
    for y, row in enumerate([table.header, *table.rows]):
        for x, text in enumerate(row):
            first = x == 0
            place = sum(lengths[:x]) + (0.5 if first else lengths[x] / 2)
            axes.text(
                place,
                y + 0.5,
                text,
                ha="left" if first else "center",
                va="center",
                weight="bold" if (y - 1, x) in table.best else "normal",
                parse_math=False,
            )
    add_notes(figure, table.notes)
    return figure


def _widths(table: Table) -> list[float]:
    """Of the columns in characters; together they have room for the title."""
    columns = zip(table.header, *table.rows, strict=True)
    lengths = [max(map(len, column)) + 3.0 for column in columns]
    stretch = max(1.0, TITLE_SIZE * len(table.title) / sum(lengths))
    return [stretch * length for length in lengths]


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [
        [f"**{cell}**" if (y, x) in table.best else cell for x, cell in enumerate(row)]
        for y, row in enumerate(table.rows)
    ]
    rule = ["---"] + ["---:"] * (len(table.header) - 1)
    lines = [f"**{table.title}**", "", *map(line, [table.header, rule, *rows])]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)]) + "\n"


def _latex(table: Table) -> str:
    """A ``table`` with booktabs rules."""
    lines = [" & ".join(map(_escaped, table.header)), "\\midrule"]
    for y, row in enumerate(table.rows):
        cells = [_escaped(cell) for cell in row]
        bold = [
            f"\\textbf{{{cell}}}" if (y, x) in table.best else cell for x, cell in enumerate(cells)
        ]
        lines.append(" & ".join(bold))
    body = "\n".join(line if line == "\\midrule" else f"{line} \\\\" for line in lines)
    caption = _escaped(". ".join([table.title, *(note.rstrip(".") for note in table.notes)]) + ".")
    columns = "l" + "r" * (len(table.header) - 1)
    return (
        "% needs \\usepackage{booktabs}\n\\begin{table}\n\\centering\n"
        f"\\caption{{{caption}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n"
        "\\bottomrule\n\\end{tabular}\n\\end{table}\n"
    )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _csv(table: Table) -> str:
    """Header and cells alone; title and notes are no data."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue()
