"""Laws of what evaluations measured, on the page beside that of the validation loss."""

from __future__ import annotations

import math

import pytest

from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.points import law_points
from questtrain.scaling.report import other_laws
from questtrain.scaling.report.content import Content, gather
from questtrain.scaling.report.looks import looks
from questtrain.scaling.report.markup import number_text
from tests.scaling.law_runs import write_table
from tests.scaling.report.test_page import Reader
from tests.scaling.test_metric import bits_per_byte, evaluated


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Content:
    """Two losses that evaluations measured, one of which too few runs have; what is none; and a
    column of the user's."""
    rows = evaluated(
        **{
            "bpb.book": lambda *place: bits_per_byte(*place) * (1 + 0.002 * math.sin(place[0])),
            "bpb.rare<i>": bits_per_byte,
            "hellaswag.acc": lambda *place: 1 - bits_per_byte(*place) / 3,
            "mine": bits_per_byte,
        }
    )
    rows = [row if i < 3 else row | {"bpb.rare<i>": ""} for i, row in enumerate(rows)]
    table = write_table(tmp_path_factory.mktemp("runs") / "runs.csv", rows)
    return gather([str(table)], None, [])


def test_each_metric_has_the_law_that_fit_finds(content) -> None:
    read = Reader(other_laws.section(content, looks(content.precisions)))
    assert read.open == []
    text = read.text()
    law = fit_law(law_points(content.runs, "bpb.book")[0], FitOptions(metric="bpb.book"))
    assert content.other_laws[0].law == law
    assert "bpb.book (bits/byte)" in text
    for estimate in (law.alpha, law.E, law.eff["2"]):
        assert number_text(estimate.value, 3) in text
        assert f"{number_text(estimate.low, 3)} – {number_text(estimate.high, 3)}" in text
    assert f"{100 * law.rms_log_residual:.2f}%" in text
    assert content.law.metric == "val_loss"


def test_what_has_no_law_says_why_and_what_else_can_be_fitted_is_named(content) -> None:
    read = Reader(other_laws.section(content, looks(content.precisions)))
    text = read.text()
    assert "bpb.rare<i>: " in text
    assert "16 (bits=bf16), whose eff is 1" in text
    assert "hellaswag" not in text
    assert "fits these columns, too: mine." in " ".join(text.split())


def test_without_other_metrics_nothing_is_said(content, tmp_path) -> None:
    table = write_table(tmp_path / "runs.csv", evaluated())
    alone = gather([str(table)], None, [])
    assert other_laws.section(alone, looks(alone.precisions)) == ""
