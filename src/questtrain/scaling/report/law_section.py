"""The law on the page: the equation, its numbers with intervals, and eff(P) by precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from questtrain.scaling.figures.selection import count_text
from questtrain.scaling.law import Estimate, Law
from questtrain.scaling.precision import REFERENCE
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
            tag(
                "div",
                _parameters(law),
                _efficiencies(law, looks),
                class_="columns",
            ),
            folded("Remarks on the points", content.remarks),
        )
    )


def equation(law: Law) -> str:
    """Equation 5 in MathML, first with letters, then with the fitted numbers."""
    letters = _formula("A", "α", "B", "β", "E")
    numbers = [number_text(getattr(law, name).value) for name, _ in SYMBOLS]
    return tag("div", letters, _formula(*numbers), class_="equation")


def _formula(A: str, alpha: str, B: str, beta: str, E: str) -> str:
    number = "mi" if A == "A" else "mn"
    size = _fraction(
        tag(number, A), _power("<mrow><mo>(</mo><mi>N</mi><mo>·</mo>", f"{_EFF}<mo>)</mo>", alpha)
    )
    data = _fraction(tag(number, B), f"<msup><mi>D</mi><mn>{beta}</mn></msup>")
    left = "<mi>L</mi><mo>(</mo><mi>N</mi><mo>,</mo><mi>D</mi><mo>,</mo><mi>P</mi><mo>)</mo>"
    row = f"{left}<mo>=</mo>{size}<mo>+</mo>{data}<mo>+</mo>{tag(number, E)}"
    return tag("math", tag("mrow", row), display="block")


_EFF = '<mi mathvariant="normal">eff</mi><mo>(</mo><mi>P</mi><mo>)</mo>'


def _fraction(above: str, below: str) -> str:
    return tag("mfrac", tag("mrow", above), tag("mrow", below))


def _power(opening: str, rest: str, exponent: str) -> str:
    return f"<msup>{opening}{rest}</mrow><mn>{exponent}</mn></msup>"


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
    efficiency = {**law.eff, REFERENCE: Estimate(1.0)}
    largest = max(_per_bit(efficiency[label], looks[label]).value for label in efficiency)
    ordered = [label for label in looks if label in efficiency]
    rows = [_row(looks[label], efficiency[label], largest) for label in ordered]
    return table(head, rows, "Efficiency of each precision")


def _row(look: Look, eff: Estimate, largest: float) -> str:
    per_bit = _per_bit(eff, look)
    share = 100 * per_bit.value / largest if look.bits else 0
    bar = tag("i", style=f"width:{share:.1f}%;{colours(look)}")
    bits = "–" if look.bits is None else f"{look.bits:g}"
    known = per_bit if look.bits else None
    return tag(
        "tr",
        tag("th", swatch(look), escape(look.text), scope="row"),
        tag("td", bits, class_="number"),
        *_cells(eff, 3),
        *_cells(known, 3),
        tag("td", bar, class_="bar", aria_hidden="true"),
    )


def _per_bit(eff: Estimate, look: Look) -> Estimate:
    """eff(P)/P; 0 where the bits of a weight are not known."""
    if not look.bits:
        return Estimate(0.0)
    low, high = (None if end is None else end / look.bits for end in (eff.low, eff.high))
    return Estimate(eff.value / look.bits, low, high)


def _number_head(name: str) -> str:
    return tag("th", name, scope="col", class_="number")


def _cells(estimate: Estimate | None, digits: int = 4) -> list[str]:
    if estimate is None:
        return [tag("td", "–", class_="number"), tag("td", "–", class_="number range")]
    low, high = number_text(estimate.low, digits), number_text(estimate.high, digits)
    interval = "–" if estimate.low is None else f"{low} – {high}"
    return [
        tag("td", number_text(estimate.value, digits), class_="number"),
        tag("td", interval, class_="number range"),
    ]


def interval_name(law: Law) -> str:
    """What tables call an interval: ``90% interval``."""
    return "interval" if law.confidence is None else f"{100 * law.confidence:g}% interval"
