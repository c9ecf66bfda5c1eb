"""Numbers as readers want them: counts with a unit, times in two units."""

from __future__ import annotations


def count_text(number: float | None) -> str:
    """``30.5M``, ``3B``, ``1.23k``: a count (parameters, tokens, tokens a second) to three digits;
    ``?`` for None."""
    if number is None:
        return "?"
    for unit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """``45s``, ``3m 20s``, ``5h 12m``, ``2d 3h``"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"
