"""The figures of the paper as inline SVG, each with its caption and the command that draws it."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from questtrain.errors import UserError
from questtrain.scaling.figures import FIGURES
from questtrain.scaling.report.markup import escape, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure's name, what it shows, its command and its SVG."""

    name: str
    caption: str
    command: str
    svg: str


def figures_html(drawings: Sequence[Drawing]) -> str:
    if not drawings:
        return tag("p", "These runs determine none of the paper's figures yet.", class_="empty")
    return "".join(_figure(drawing) for drawing in drawings)


def _figure(drawing: Drawing) -> str:
    caption = tag("figcaption", escape(drawing.caption), tag("code", escape(drawing.command)))
    return tag("figure", inline_svg(drawing), caption, id=f"figure-{drawing.name}")


def inline_svg(drawing: Drawing) -> str:
    """The SVG element alone, named for screen readers. Its ids get the figure's name in front,
    because those of several figures on one page would clash."""
    svg = drawing.svg[drawing.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    prefix = f"{drawing.name}-"
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(drawing.caption)}" ', 1)


def draw_all(runs: Sequence[str]) -> list[Drawing]:
    """Every figure that the runs determine; what stops one is in the log of `questtrain plot`."""
    drawings = []
    for name, figure in FIGURES.items():
        try:
            svg = _svg(figure.draw(figure.data(runs)))
        except UserError:
            continue
        words = shlex.join(["questtrain", "plot", name, *runs])
        drawings.append(Drawing(name, f"{figure.text} ({figure.alias})", words, svg))
    return drawings


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "questtrain"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
