"""The figures and tables of the paper by name.

A figure is two functions in the module of its family: ``data`` turns the user's paths (run
folders, folders of runs, tables of runs) into what is drawn (a dataclass of plain numbers and
texts), ``draw`` turns that into a matplotlib Figure. A new one is these two and a line in `_ALL`;
a table of the paper is also text, by a third function. What ``data`` names as ``missing`` is said
in the log here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from questtrain.errors import UserError, unknown
from questtrain.scaling.figures import (
    alignment,
    bit_width,
    curves,
    data_fit,
    efficiency,
    hellaswag,
    loss_memory,
    lsq_decay,
    mask,
    memory,
    pact,
    persistence,
    selection,
    trust_scale,
)
from questtrain.scaling.figures.selection import Paths
from questtrain.scaling.figures.style import file_format, save
from questtrain.scaling.figures.tables import TEXT_FORMATS, Table, draw_table, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PaperFigure:
    """One figure: its ``name``, its ``alias`` by the paper's number, what it shows, how it is made;
    ``table`` makes the text of a table."""

    name: str
    alias: str
    text: str
    read: Callable[[Paths], Any]
    draw: Callable[[Any], Figure]
    table: Callable[[Any], Table] | None = None

    def data(self, paths: Paths) -> Any:
        """What is drawn; the log says what of the paper's figure is missing."""
        found = self.read(paths)
        if missing := getattr(found, "missing", ()):
            selection.log.warning("missing from %s: %s", self.name, "; ".join(missing))
        return found


class _Maker(Protocol):
    """What makes one figure: a module, or an object."""

    def data(self, paths: Paths) -> Any: ...

    def draw(self, data: Any) -> Figure: ...


def _figure(name: str, alias: str, text: str, maker: _Maker) -> PaperFigure:
    return PaperFigure(name, alias, text, maker.data, maker.draw)


def _table(
    name: str, alias: str, text: str, data: Callable[[Paths], Any], table: Callable[[Any], Table]
) -> PaperFigure:
    return PaperFigure(name, alias, text, data, lambda found: draw_table(table(found)), table)


_ALL = (
    _figure(
        "law",
        "fig1",
        "loss over memory of the weights by precision, with the fitted law",
        loss_memory.LAW,
    ),
    _figure(
        "alignment",
        "fig2",
        "alignment of gradients with unquantized ones, by depth of the block",
        alignment,
    ),
    _figure("lsq", "fig3", "perplexity by bit width, QuEST against LSQ", bit_width),
    _figure(
        "efficiency", "fig4", "eff(P)/P of formats and methods, from the fitted law", efficiency
    ),
    _figure(
        "formats",
        "fig5a",
        "as law, formats of 4 bits: INT4, FP4, INT4 with 2:4 sparsity",
        loss_memory.FORMATS,
    ),
    _figure("weight-only", "fig5b", "as law, weights alone quantized", loss_memory.WEIGHT_ONLY),
    _figure(
        "hadamard", "fig5c", "as law, with and without the Hadamard transform", loss_memory.HADAMARD
    ),
    _figure("mask", "fig8", "fraction of the weights outside the trust mask, by step", mask),
    _figure(
        "persistence",
        "fig9",
        "fraction of the masked weights that stay masked, from step to step",
        persistence,
    ),
    _figure(
        "trust-scale",
        "fig10",
        "loss over the outer trust scale, with and without the transform",
        trust_scale,
    ),
    _figure("curves", "fig11", "training loss over tokens, by method", curves),
    _figure("pact", "fig12", "PACT's loss by lr_scale and scale_weight_decay, a heat map", pact),
    _figure("fit", "fig13", "fit of the law by tokens/parameter, a panel a precision", data_fit),
    _figure("memory", "fig14", "which precision is best in a fixed memory, as data grows", memory),
    _table(
        "table1", "tab1", "fitted eff(P), with intervals", efficiency.table_data, efficiency.table
    ),
    _table(
        "table2",
        "tab2",
        "HellaSwag of BF16 and W4A4 by size, with standard errors",
        hellaswag.data,
        hellaswag.table,
    ),
    _table(
        "table4",
        "tab4",
        "LSQ's perplexity by weight decay of its step and by bits",
        lsq_decay.data,
        lsq_decay.table,
    ),
)
FIGURES = {figure.name: figure for figure in _ALL}


def figure_name(word: str) -> str:
    """The name that a name or an alias stands for; UserError names the nearest."""
    names = {figure.alias: name for name, figure in FIGURES.items()} | {n: n for n in FIGURES}
    if word not in names:
        raise unknown("figure", word, sorted(names, key=lambda n: n in FIGURES, reverse=True))
    return names[word]


def check_output(name: str, path: Path) -> None:
    """UserError unless the file's suffix is one that the figure can be written as."""
    if not _is_text(path):
        file_format(path)
    elif FIGURES[name].table is None:
        raise UserError(f"-o {path}: {name} is no table: end the name in .png, .pdf or .svg.")


def write(name: str, data: Any, path: Path) -> None:
    """The figure's data as the file that the suffix says."""
    figure = FIGURES[name]
    if figure.table is not None and _is_text(path):
        write_table(figure.table(data), path)
    else:
        save(figure.draw(data), path)


def _is_text(path: Path) -> bool:
    return path.suffix.lower().removeprefix(".") in TEXT_FORMATS
