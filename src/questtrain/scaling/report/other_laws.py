"""The laws of what evaluations measured, below that of the validation loss, and which other columns
`questtrain fit` could be asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from questtrain.scaling.law import Estimate, Law
from questtrain.scaling.report.content import Content, OtherLaw
from questtrain.scaling.report.law_section import SYMBOLS
from questtrain.scaling.report.looks import Look
from questtrain.scaling.report.markup import escape, folded, number_text, table, tag


def section(content: Content, looks: Mapping[str, Look]) -> str:
    """A row a metric with what it has in common with the other laws; nothing without metrics."""
    fitted = [other for other in content.other_laws if other.law is not None]
    failed = [f"{other.metric.column}: {other.why}" for other in content.other_laws if other.why]
    grid = _table(fitted, looks) if fitted else ""
    parts = [grid, folded("Metrics without a law", failed), _more(content.more_columns)]
    if not any(parts):
        return ""
    return tag("h3", "Laws of other metrics") + "".join(parts)


def _table(fitted: Sequence[OtherLaw], looks: Mapping[str, Look]) -> str:
    known = {label for other in fitted if other.law for label in other.law.eff}
    labels = [label for label in looks if label in known]
    heads = ["runs", *(symbol for _, symbol in SYMBOLS)]
    heads += [*(f"eff({looks[label].text})" for label in labels), "error"]
    head = [tag("th", "metric", scope="col")]
    head += [tag("th", escape(name), scope="col", class_="number") for name in heads]
    rows = [_row(other.metric.label, other.law, labels) for other in fitted if other.law]
    return table(head, rows, "Laws of other metrics")


def _row(name: str, law: Law, labels: Sequence[str]) -> str:
    estimates = [getattr(law, key) for key, _ in SYMBOLS]
    estimates += [law.eff.get(label) for label in labels]
    cells = [str(law.points), *(_text(each) for each in estimates)]
    cells.append(f"{100 * law.rms_log_residual:.2f}%")
    numbers = [tag("td", cell, class_="number") for cell in cells]
    return tag("tr", tag("th", escape(name), scope="row"), *numbers)


def _text(estimate: Estimate | None) -> str:
    """Value, and the interval below it."""
    if estimate is None:
        return "–"
    value = number_text(estimate.value, 3)
    if estimate.low is None:
        return value
    ends = " – ".join(number_text(end, 3) for end in (estimate.low, estimate.high))
    return value + "<br>" + tag("small", ends, class_="range")


def _more(columns: Sequence[str]) -> str:
    if not columns:
        return ""
    command = tag("code", "questtrain fit RUNS metric=COLUMN")
    return tag("p", command, f" fits these columns, too: {escape(', '.join(columns))}.")
