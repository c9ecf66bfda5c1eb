"""The figures of the paper by name.

A figure is two functions in the module of its family: ``data`` turns run folders into what is
drawn (a dataclass of plain numbers and texts), ``draw`` turns that into a matplotlib Figure. A new
one is these two and a line in `FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from questtrain.errors import unknown
from questtrain.scaling.figures import alignment, mask, persistence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PaperFigure:
    """One figure: its ``alias`` by the paper's number, what it shows, how it is made."""

    alias: str
    text: str
    data: Callable[[Sequence[Path]], Any]
    draw: Callable[[Any], Figure]


FIGURES = {
    "alignment": PaperFigure(
        "fig2",
        "alignment of gradients with unquantized ones, by depth of the block",
        alignment.data,
        alignment.draw,
    ),
    "mask": PaperFigure(
        "fig8",
        "fraction of the weights outside the trust mask, by step",
        mask.data,
        mask.draw,
    ),
    "persistence": PaperFigure(
        "fig9",
        "fraction of the masked weights that stay masked, from step to step",
        persistence.data,
        persistence.draw,
    ),
}


def figure_name(word: str) -> str:
    """The name that a name or an alias stands for; UserError names the nearest."""
    names = {figure.alias: name for name, figure in FIGURES.items()} | {n: n for n in FIGURES}
    if word not in names:
        raise unknown("figure", word, sorted(names, key=lambda n: n in FIGURES, reverse=True))
    return names[word]
