"""The top of the page: what was measured, with what, and the command that made the page."""

from __future__ import annotations

from collections import Counter

from questtrain.scaling.report.content import Content
from questtrain.scaling.report.markup import escape, tag
from questtrain.scaling.runs import STATUSES, Run
from questtrain.version import __version__

FACTS = (
    ("data", "dataset"),
    ("tokenizer", "tokenizer"),
    ("sequence length", "sequence_length"),
    ("device", "device"),
    ("trained with questtrain", "questtrain_version"),
    ("torch", "torch_version"),
)
"""What the page calls a column of ``run.json``."""

SHOWN = 4
"""Values of one column that are listed; the rest is counted."""


def counts(runs: list[Run]) -> str:
    """``104 runs``, then each status that occurs, as one line of badges."""
    number = Counter(run.status for run in runs)
    known = [status for status in STATUSES if number[status]]
    statuses = [*known, *sorted(number.keys() - set(STATUSES))]
    badges = [
        tag("li", f"{number[status]} {escape(status)}", class_=f"badge {status_class(status)}")
        for status in statuses
    ]
    total = tag("li", f"{len(runs)} run{'' if len(runs) == 1 else 's'}", class_="total")
    return tag("ul", total, *badges, class_="counts")


def status_class(status: str) -> str:
    """The class that colours a status; one that a table of the user's own invented has none."""
    return status if status in STATUSES else "other"


def facts(content: Content) -> str:
    """A list of what the records say of data, device and versions."""
    entries = []
    for name, column in FACTS:
        text = values(content.runs, column)
        if text:
            entries.append((name, escape(text)))
    entries.append(("page made", escape(content.date)))
    entries.append(("by", f"questtrain {__version__}: {tag('code', escape(content.command))}"))
    return tag("dl", *(tag("dt", name) + tag("dd", text) for name, text in entries), class_="facts")


def values(runs: list[Run], column: str) -> str:
    """The different values of a column, the most frequent first, with how often each occurs."""
    number = Counter(text for run in runs if (text := run.text(column)) is not None)
    ordered = sorted(number.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) == 1:
        return ordered[0][0]
    texts = [f"{value} ({times})" for value, times in ordered[:SHOWN]]
    return ", ".join(texts) + (f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else "")
