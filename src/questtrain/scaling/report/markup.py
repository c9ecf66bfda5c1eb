"""Pieces of HTML: everything that comes from runs is escaped here."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def escape(text: object) -> str:
    """Text as HTML shows it, in an attribute too."""
    return html.escape(str(text))


def tag(name: str, *content: str, **attributes: object) -> str:
    """An element around ``content``, which is HTML already; attributes are escaped: ``class_`` is
    class, ``data_value`` data-value; None leaves one out and True writes its name alone."""
    words = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(attribute)
        elif value is not None and value is not False:
            words.append(f'{attribute}="{escape(value)}"')
    return f"<{' '.join(words)}>{''.join(content)}</{name}>"


def table(head: Sequence[str], rows: Iterable[str], caption: str) -> str:
    """A table that scrolls sideways where it is wider than the page; ``head`` and ``rows`` are
    HTML of cells and of rows."""
    grid = tag(
        "table",
        tag("caption", escape(caption)),
        tag("thead", tag("tr", *head)),
        tag("tbody", *rows),
    )
    return tag("div", grid, class_="wide", tabindex="0", role="region", aria_label=caption)


def folded(title: str, texts: Sequence[str]) -> str:
    """A list that opens on a click; nothing where there is nothing to say."""
    if not texts:
        return ""
    items = [tag("li", escape(text)) for text in texts]
    return tag("details", tag("summary", f"{title} ({len(texts)})"), tag("ul", *items))


def json_island(identity: str, value: Any) -> str:
    """Data for the page's script. No ``<`` is left in it, so that no text of a run ends it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(identity)}">{text}</script>'


def script(source: str) -> str:
    """JavaScript inline; a closing tag inside a string of it does not end it."""
    return "<script>" + source.replace("</script", r"<\/script") + "</script>"


def number_text(value: float | None, digits: int = 4) -> str:
    """``0.2431``, ``12,350``, ``1.235×10⁷``: so many significant digits; ``–`` for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if not -4 < exponent < 5:
        mantissa = f"{value / 10.0**exponent:.{digits - 1}f}"
        return f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)
