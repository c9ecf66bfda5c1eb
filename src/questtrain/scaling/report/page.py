"""The page: its sections in the template, with styles, scripts, plotly and data inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from string import Template
from typing import Any

from questtrain.scaling.law import Law
from questtrain.scaling.report import head, law_section, other_laws, runs_table
from questtrain.scaling.report.content import Content
from questtrain.scaling.report.curves import curve_records
from questtrain.scaling.report.drawings import Drawing, figures_html
from questtrain.scaling.report.looks import Look, looks
from questtrain.scaling.report.markup import escape, json_island, script

SCRIPTS = ("law.js", "plots.js", "explore.js", "budget.js", "curves.js", "runs.js")


def page(content: Content, drawings: Sequence[Drawing] = (), remarks: Sequence[str] = ()) -> str:
    """The whole HTML document; ``remarks`` are those of the figures."""
    drawn = looks(content.precisions)
    curves = curve_records(content.runs)
    return Template(_asset("page.html")).substitute(
        title=escape(content.title),
        style=_asset("page.css"),
        counts=head.counts(content.runs),
        facts=head.facts(content),
        law=law_section.section(content, drawn) + other_laws.section(content, drawn),
        no_law="hidden" if content.law is None else "",
        law_empty="" if content.law is None else "hidden",
        no_points="" if content.points else "hidden",
        points_empty="hidden" if content.points else "",
        no_curves="" if curves else "hidden",
        curves_empty="hidden" if curves else "",
        models=runs_table.choice("curve-model", "Model", _models(curves)),
        interval="interval" if content.law is None else law_section.interval_name(content.law),
        runs=runs_table.section(content, drawn),
        figures=figures_html(drawings, remarks),
        data=json_island("report-data", page_data(content, drawn, curves)),
        plotly=script(_plotly()) if content.points or curves else "",
        script=script("\n".join(_asset(name) for name in SCRIPTS)),
    )


def page_data(
    content: Content, drawn: Mapping[str, Look], curves: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the scripts draw: the law's numbers, how precisions look, points and curves."""
    return {
        "law": None if content.law is None else _law_data(content.law),
        "precisions": [asdict(look) for look in drawn.values()],
        "points": [[p.name, p.params, p.tokens, p.precision, p.loss] for p in content.points],
        "curves": curves,
    }


def _law_data(law: Law) -> dict[str, Any]:
    """The fitted numbers and the bootstrap samples of them, by the names that `Law` gives them."""
    numbers = {name: getattr(law, name).value for name, _ in law_section.SYMBOLS}
    numbers |= {f"eff {label}": estimate.value for label, estimate in law.eff.items()}
    samples = enumerate(zip(*law.draws.values(), strict=True))
    sound = [place for place, sample in samples if all(map(math.isfinite, sample))]
    return {
        "numbers": numbers,
        "precisions": law.precisions,
        "draws": {name: [_short(draws[k]) for k in sound] for name, draws in law.draws.items()},
        "confidence": law.confidence,
        "paramsRange": law.params_range,
        "tokensRange": law.tokens_range,
    }


def _short(value: float) -> float:
    """Eight significant digits: a loss of the samples is then right to seven."""
    return float(f"{value:.8g}")


def _models(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    """The models that have a curve, in the order of the runs."""
    return list(dict.fromkeys(curve["model"] for curve in curves if curve["model"]))


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The script of the installed plotly, five megabytes."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
