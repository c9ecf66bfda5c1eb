"""How a precision looks on the page: as in the figures, and lighter on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from questtrain.scaling.figures.style import precision_style
from questtrain.scaling.precision import label_text, weight_bits
from questtrain.scaling.report.markup import tag

_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "P": "cross",
    "X": "x",
    "*": "star",
    "p": "pentagon",
    "h": "hexagon",
}
DARK_INK = "#E9E6DF"
LIGHTER = 0.3
"""Share of white that a colour gets on a dark page."""


@dataclass(frozen=True)
class Look:
    """How one precision is drawn, in plotly's words; ``bits`` a weight, None where unknown."""

    label: str
    text: str
    bits: float | None
    colour: str
    dark: str
    symbol: str
    dash: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """The look of each label, in the order given."""
    return {label: _look(label) for label in labels}


def _look(label: str) -> Look:
    style = precision_style(label)
    colour, width = style["color"], style["linewidth"]
    hollow = style.get("markerfacecolor", colour) != colour
    return Look(
        label=label,
        text=label_text(label),
        bits=weight_bits(label),
        colour=colour,
        dark=_lighter(colour),
        symbol=_SYMBOLS[style["marker"]] + ("-open" if hollow else ""),
        dash=_dash(style["linestyle"], width),
    )


def _dash(pattern: Any, width: float) -> str:
    """matplotlib's pattern, whose unit is the line's width, as plotly's lengths in pixels."""
    if pattern == "-":
        return "solid"
    return ",".join(f"{length * width:g}px" for length in pattern[1])


def _lighter(colour: str) -> str:
    """A colour for a dark page; black becomes the colour of text there."""
    if colour == "#000000":
        return DARK_INK
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + LIGHTER * (255 - part)):02X}" for part in parts)


def swatch(look: Look) -> str:
    """A dot of the precision's colour, to stand before its name."""
    return tag("i", class_="swatch", style=colours(look))


def colours(look: Look) -> str:
    """The style attribute from which the page's CSS takes the colour that fits light or dark."""
    return f"--light:{look.colour};--dark:{look.dark}"
