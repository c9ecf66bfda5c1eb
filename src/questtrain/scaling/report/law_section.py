"""The law on the page: the equation, its numbers with intervals, and eff(P) by precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from questtrain.scaling.law import Estimate, Law
from questtrain.scaling.numbers import count_text
from questtrain.scaling.report.content import Content
from questtrain.scaling.report.looks import Look, colours, swatch
from questtrain.scaling.report.markup import escape, folded, number_text, table, tag

SYMBOLS = (("A", "A"), ("alpha", "α"), ("B", "B"), ("beta", "β"), ("E", "E"))


def section(content: Content, looks: Mapping[str, Look]) -> str:
    """The whole section; without a law, why there is none."""
    if content.law is None:
        text = tag("p", tag("strong", "No law: "), escape(content.why_no_law or ""), class_="lines")
        return tag("div", text, class_="notice") + folded("Remarks on the points", content.remarks)
    law = content.law
    return "".join(
        (
            equation(law),
            _sentence(content, law),
            _warnings(law.warnings),
            tag("div", _parameters(law), _efficiencies(law, looks), class_="columns"),
            folded("Remarks on the points", content.remarks),
        )
    )


def equation(law: Law) -> str:
    """Equation 5 in MathML, first with letters, then with the fitted numbers."""
    letters = _formula("mi", "A", "α", "B", "β", "E")
    numbers = [number_text(getattr(law, name).value) for name, _ in SYMBOLS]
    return tag("div", letters, _formula("mn", *numbers), class_="equation")


def _formula(kind: str, A: str, alpha: str, B: str, beta: str, E: str) -> str:
    """``kind`` is MathML's element for the five: mi for letters, mn for numbers."""
    eff = tag("mrow", tag("mi", "eff", mathvariant="normal"), *_in_brackets(tag("mi", "P")))
    size = tag("mrow", *_in_brackets(tag("mi", "N"), tag("mo", "·"), eff))
    data = tag("msup", tag("mi", "D"), tag(kind, beta))
    comma = tag("mo", ",")
    return tag(
        "math",
        tag("mi", "L"),
        *_in_brackets(tag("mi", "N"), comma, tag("mi", "D"), comma, tag("mi", "P")),
        tag("mo", "="),
        tag("mfrac", tag(kind, A), tag("msup", size, tag(kind, alpha))),
        tag("mo", "+"),
        tag("mfrac", tag(kind, B), data),
        tag("mo", "+"),
        tag(kind, E),
        display="block",
    )


def _in_brackets(*content: str) -> tuple[str, ...]:
    return tag("mo", "("), *content, tag("mo", ")")


def _sentence(content: Content, law: Law) -> str:
    params = [point.params for point in content.points]
    tokens = [point.tokens for point in content.points]
    left_out = ""
    if law.leave_one_out is not None:
        left_out = f", and {100 * law.leave_one_out:.2f}% for runs that the fit has not seen"
    return tag(
        "p",
        f"Loss in nats a token, of N non-embedding parameters trained on D tokens at precision P;"
        f" eff(BF16) = 1. Fitted to {law.points} runs"
        f" ({_span(params)} parameters, {_span(tokens)} tokens):"
        f" the root mean square error is {100 * law.rms_log_residual:.2f}%{left_out}.",
    )


def _span(values: Sequence[float]) -> str:
    low, high = count_text(min(values)), count_text(max(values))
    return low if low == high else f"{low} to {high}"


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = [tag("li", escape(warning)) for warning in warnings]
    return tag("div", tag("h3", "The fit warns"), tag("ul", *items), class_="notice")


def _parameters(law: Law) -> str:
    head = [tag("td", ""), _number_head("value"), tag("th", interval_name(law), scope="col")]
    rows = []
    for name, symbol in SYMBOLS:
        estimate: Estimate = getattr(law, name)
        cells = [tag("th", tag("i", symbol), scope="row"), *_cells(estimate)]
        rows.append(tag("tr", *cells))
    return table(head, rows, "Parameters")


def _efficiencies(law: Law, looks: Mapping[str, Look]) -> str:
    interval = tag("th", interval_name(law), scope="col")
    head = [tag("th", "precision", scope="col"), _number_head("bits")]
    head += [_number_head("eff(P)"), interval, _number_head("eff(P)/P"), interval, tag("td", "")]
    efficiency = {label: law.efficiency(label) for label in law.precisions}
    largest = max(
        eff.value / bits for label, eff in efficiency.items() if (bits := looks[label].bits)
    )
    ordered = [label for label in looks if label in efficiency]
    rows = [_row(looks[label], efficiency[label], largest) for label in ordered]
    return table(head, rows, "Efficiency of each precision")


def _row(look: Look, eff: Estimate, largest: float) -> str:
    """``largest`` is the eff(P)/P whose bar is full."""
    per_bit = None if look.bits is None else eff.times(1 / look.bits)
    bar = ""
    if per_bit is not None:
        bar = tag("i", style=f"width:{100 * per_bit.value / largest:.1f}%;{colours(look)}")
    return tag(
        "tr",
        tag("th", swatch(look), escape(look.text), scope="row"),
        tag("td", "–" if look.bits is None else f"{look.bits:g}", class_="number"),
        *_cells(eff, 3),
        *_cells(per_bit, 3),
        tag("td", bar, class_="bar", aria_hidden="true"),
    )


def _number_head(name: str) -> str:
    return tag("th", name, scope="col", class_="number")


def _cells(estimate: Estimate | None, digits: int = 4) -> list[str]:
    """Value and interval; dashes for what there is not."""
    value, interval = "–", "–"
    if estimate is not None:
        value = number_text(estimate.value, digits)
        if estimate.low is not None:
            ends = (number_text(end, digits) for end in (estimate.low, estimate.high))
            interval = " – ".join(ends)
    return [tag("td", value, class_="number"), tag("td", interval, class_="range")]


def interval_name(law: Law) -> str:
    """What tables call an interval: ``90% interval``."""
    return "interval" if law.confidence is None else f"{100 * law.confidence:g}% interval"
