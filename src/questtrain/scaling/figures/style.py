"""How all figures look, what they call a run, and the files they become.

Lines differ in colour (Okabe and Ito's set, safe for colour-blind readers), marker and dashes, so
that they stay apart in black and white too. Dots are kept for expected values.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zlib import crc32

from questtrain.errors import UserError
from questtrain.scaling.diagnostics import RunHead
from questtrain.scaling.figures.selection import Spread
from questtrain.scaling.precision import DEFAULT_METHOD, METHODS, REFERENCE, split_label
from questtrain.store.files import atomic_write, output_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#000000", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (6, 2, 1, 2)), (0, (3, 1)), (0, (9, 2, 3, 2)))
GREY = "0.35"

# One look a precision, in every figure: colour and marker by the format of the weights, dashes and
# filling by what surrounds it (see `precision_style`).
_WEIGHTS: dict[str, tuple[str, str]] = {
    "1": ("#D55E00", "o"),
    "1.58": ("#882255", "p"),
    "2": ("#009E73", "s"),
    "3": ("#0072B2", "^"),
    "4": ("#E69F00", "D"),
    "5": ("#999933", "<"),
    "6": ("#AA4499", ">"),
    "7": ("#117733", "h"),
    "8": ("#CC79A7", "v"),
    "fp4": ("#56B4E9", "P"),
    "4s24": ("#882255", "*"),
    "16": ("#000000", "X"),
}
_FAMILY_DASHES: dict[str, Any] = {
    "quest-noht": (0, (5, 2)),
    "lsq": (0, (3, 1)),
    "weight-only": (0, (6, 2, 1, 2)),
}
_OTHER_DASHES = (0, (9, 2, 3, 2))
_METHOD_LINES = ("quest", "lsq", "pact", "none", "quest-noht", "ste", "clip", "lsq-plus")
MARKERS_PER_LINE = 12
LEGEND_INSIDE = 6  # entries that a panel has room for
NOTE_CHARACTERS_PER_INCH = 18
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": "small", "handlelength": 4}

FORMATS = ("png", "pdf", "svg")
# Without dates and random ids, the same data gives the same file.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


def method_label(method: str, hadamard: bool) -> str:
    """``QuEST``, ``QuEST without Hadamard``, ``STE``, ``STE with Hadamard``, …; a method that is
    not known is called as it is."""
    if method in ("quest", "quest-noht"):
        return "QuEST" if hadamard else "QuEST without Hadamard"
    return METHODS.get(method, method) + (" with Hadamard" if hadamard else "")


def run_labels(runs: Sequence[RunHead]) -> list[str]:
    """``QuEST, W8A8``, after the model where there are several; runs that are equal in all that
    are told apart by their seed, else by their name, else by their folder."""
    plain = [_label(run) for run in runs]
    if len({run.model for run in runs}) > 1:
        plain = [f"{run.model}, {label}" for run, label in zip(runs, plain, strict=True)]
    labels = list(plain)
    for label in set(plain):
        places = [place for place, other in enumerate(plain) if other == label]
        if len(places) > 1:
            tags = _distinct_tags([runs[place] for place in places])
            for place, tag in zip(places, tags, strict=True):
                labels[place] = f"{label}, {tag}"
    return labels


def _label(run: RunHead) -> str:
    if run.method == "none":
        return "BF16"
    return f"{method_label(run.method, run.hadamard)}, {run.bits.upper()}"


def _distinct_tags(runs: Sequence[RunHead]) -> list[str]:
    seeds, names = [f"seed {run.seed}" for run in runs], [run.name for run in runs]
    for tags in (seeds, names):
        if len(set(tags)) == len(tags):
            return tags
    return [run.folder for run in runs]


def title(text: str, runs: Sequence[RunHead]) -> str:
    """``text``, and the model if all runs are of one."""
    models = {run.model for run in runs}
    return f"{text}, {models.pop()}" if len(models) == 1 else text


def line_style(index: int, points: int = 1) -> dict[str, Any]:
    """Keyword arguments of the ``index``-th line; one of many points shows a dozen markers."""
    every = -(-points // MARKERS_PER_LINE)
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index % len(DASHES)],
        "markersize": 5,
        "linewidth": 1.5,
        "markevery": (index % every, every),
    }


def precision_style(label: str) -> dict[str, Any]:
    """Keyword arguments of a precision's line: QuEST on integers of equal weights and activations,
    FP4, sparse and BF16 are filled and solid; weight-only, other methods and mixtures are hollow
    and dashed. A label of the user's own has a look by its letters."""
    named = split_label(label)
    if named is None:
        return line_style(crc32(label.encode()) % (len(COLOURS) * len(MARKERS)))
    bits, method = named
    colour, marker = _WEIGHTS[str(bits.weight)]
    family = method
    if bits.weight.label != bits.activation.label and method == DEFAULT_METHOD:
        family = "weight-only" if bits.activation.label == REFERENCE else "mixed"
    plain = family == DEFAULT_METHOD
    return {
        "color": colour,
        "marker": marker,
        "linestyle": "-" if plain else _FAMILY_DASHES.get(family, _OTHER_DASHES),
        "markerfacecolor": colour if plain else "white",
        "markersize": 9 if marker == "*" else 6,
        "linewidth": 1.5,
    }


def method_style(method: str) -> dict[str, Any]:
    """Keyword arguments of a method's line, the same in every figure."""
    known = method in _METHOD_LINES
    return line_style(_METHOD_LINES.index(method) if known else crc32(method.encode()) % 40)


def line_figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """A figure of one panel for lines, as wide as a page's text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, parse_math=False)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    open_frame(axes)
    return figure, axes


def panels_figure(title: str, size: tuple[float, float]) -> Figure:
    """A figure for several panels under one title; ``size`` is width and height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, parse_math=False)
    return figure


def open_frame(axes: Axes) -> None:
    """The frame of a panel for lines: a light grid, nothing above and to the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def bits_axis(axes: Axes, bits: Iterable[float]) -> None:
    """A logarithmic axis below, with ticks at ``bits`` alone."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(bits)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def draw_bars(axes: Axes, x: Sequence[float], y: Sequence[float], bars: Any, **look: Any) -> None:
    """A line with error bars; ``bars`` are matplotlib's ``yerr``, None for none."""
    axes.errorbar(x, y, yerr=bars, capsize=3, elinewidth=1, **look)


def draw_spreads(axes: Axes, x: Sequence[float], spreads: Sequence[Spread], **look: Any) -> None:
    """A line through the means, with bars from lowest to highest if any place has several runs."""
    means = [one.mean for one in spreads]
    bars = [[one.mean - one.low for one in spreads], [one.high - one.mean for one in spreads]]
    draw_bars(axes, x, means, bars if any(one.runs > 1 for one in spreads) else None, **look)


def add_legend(figure: Figure, axes: Axes) -> None:
    """A legend in which a run's name is no formula; beside the panel where it is a long one."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) <= LEGEND_INSIDE:
        panel_legend(axes)
        return
    figure.set_figwidth(9)
    _as_written(figure.legend(handles, labels, loc="outside right center", **_LEGEND))


def panel_legend(axes: Axes, **options: Any) -> None:
    """The legend of one panel, inside it; ``options`` are those of matplotlib's."""
    _as_written(axes.legend(**_LEGEND | options))


def _as_written(legend: Legend) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)


def add_notes(figure: Figure, notes: Sequence[str]) -> None:
    """What the reader must know of the picture, small, below it."""
    if notes:
        width = int(NOTE_CHARACTERS_PER_INCH * figure.get_figwidth())
        text = "\n".join(textwrap.fill(note, width) for note in notes)
        figure.supxlabel(text, x=0.01, ha="left", fontsize="x-small", color=GREY, parse_math=False)


def file_format(path: Path) -> str:
    """``png``, ``pdf`` or ``svg``, by the suffix; UserError for another."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise UserError(f"-o {path}: end the file's name in .png, .pdf or .svg.")
    return suffix


def save(figure: Figure, path: Path) -> None:
    """Write the figure in the format of its suffix, its folder included; whole or not at all."""
    suffix = file_format(path)
    with output_for(path), atomic_write(path) as file:
        render(figure, file, suffix)


def render(figure: Figure, file: BinaryIO, suffix: str) -> None:
    """Write the figure to an open file in one of `FORMATS`, the same bytes each time."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "questtrain"}):
        figure.savefig(file, format=suffix, dpi=200, metadata=_METADATA[suffix])
