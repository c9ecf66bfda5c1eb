"""The figures and tables of the paper on the page, each with the command that makes it alone."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.scaling.figures import FIGURES
from questtrain.scaling.figures.available import available, captured
from questtrain.scaling.figures.style import render
from questtrain.scaling.figures.tables import Table
from questtrain.scaling.report.markup import escape, folded, table, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 500
"""Points of width, above which a figure takes the whole page and not one of two columns."""


@dataclass(frozen=True)
class Drawing:
    """A figure's name, what it shows, its command, and its SVG or its table."""

    name: str
    caption: str
    command: str
    content: str | Table


def draw_all(runs: Sequence[str]) -> tuple[list[Drawing], list[str]]:
    """Every figure that the runs determine, and remarks: what these lack and the others need."""
    drawings = []
    with captured() as records:
        found = available(runs)
    for name, data in found.items():
        figure = FIGURES[name]
        content = figure.table(data) if figure.table else _svg(figure.draw(data))
        command = shlex.join(["questtrain", "plot", name, *runs])
        caption = f"{_number(figure.alias)}: {figure.text}"
        drawings.append(Drawing(name, caption, command, content))
    return drawings, [record.getMessage() for record in records]


def figures_html(drawings: Sequence[Drawing], remarks: Sequence[str]) -> str:
    """All of them, or that there are none, and the remarks."""
    figures = tag("div", *map(_figure, drawings), class_="figures")
    if not drawings:
        figures = tag("p", "These runs determine none of the paper's figures yet.", class_="empty")
    return figures + folded("Remarks on the figures", remarks)


def inline_svg(name: str, caption: str, text: str) -> str:
    """The SVG element of a file's text, with its caption for screen readers. Its ids get the
    figure's name in front, because those of several figures on one page would clash."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)


def _figure(drawing: Drawing) -> str:
    if isinstance(drawing.content, Table):
        content, wide = _table(drawing.content), True
    else:
        content = inline_svg(drawing.name, drawing.caption, drawing.content)
        wide = _width(content) > COLUMN
    caption = tag("figcaption", escape(drawing.caption), tag("code", escape(drawing.command)))
    return tag(
        "figure", content, caption, id=f"figure-{drawing.name}", class_="whole" if wide else None
    )


def _width(svg: str) -> float:
    """In points, by the box of its own coordinates."""
    found = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    return float(found[1]) if found else 0.0


def _table(content: Table) -> str:
    head = [tag("th", escape(name), scope="col") for name in content.header]
    rows = []
    for row, texts in enumerate(content.rows):
        cells = [tag("th", escape(texts[0]), scope="row")]
        for column, text in enumerate(texts[1:], start=1):
            best = (row, column) in content.best
            cells.append(tag("td", tag("strong", escape(text)) if best else escape(text)))
        rows.append(tag("tr", *cells))
    notes = [tag("p", escape(note), class_="hint") for note in content.notes]
    return table(head, rows, content.title) + "".join(notes)


def _number(alias: str) -> str:
    """``fig5a`` → ``Figure 5a``."""
    return alias.replace("fig", "Figure ").replace("tab", "Table ")


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    render(figure, buffer, "svg")
    return buffer.getvalue().decode()
