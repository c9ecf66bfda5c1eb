"""Figures 1, 4, 5, 13, 14 and table 1: the numbers drawn, and what is said missing."""

import json
import logging
from dataclasses import asdict

import pytest

from questtrain.errors import UserError
from questtrain.scaling.figures import FIGURES
from questtrain.scaling.figures.available import available
from questtrain.scaling.figures.law_runs import ratio_groups
from questtrain.scaling.figures.memory import RATIOS
from questtrain.scaling.figures.style import precision_style
from questtrain.scaling.figures.tables import write_table as write_text_table
from questtrain.scaling.numbers import count_text
from questtrain.scaling.points import Point
from tests.scaling import CONTENT as DIAGNOSTICS
from tests.scaling import drawn, legend
from tests.scaling.law_runs import (
    EFF,
    SIZES,
    finish,
    law_loss,
    law_rows,
    runs_for,
    write_law_table,
    write_table,
)

LAW_FIGURES = [name for name in FIGURES if name not in DIAGNOSTICS]
INTEGERS = ("1", "2", "3", "4", "8", "16")


def data_of(name, *paths):
    return FIGURES[name].data(paths)


# --- all of them


@pytest.mark.parametrize("name", LAW_FIGURES)
def test_data_is_json_of_finite_numbers(tmp_path, name):
    data = asdict(data_of(name, runs_for(name, tmp_path / "runs")))
    assert json.loads(json.dumps(data, allow_nan=False))["title"]


NEEDS = {
    "law": "sweep scaling",
    "lsq": "sweep fig3_lsq",
    "efficiency": "sweep scaling",
    "formats": "sweep fig5a_formats",
    "weight-only": "sweep fig5b_weight_only",
    "hadamard": "sweep fig5c_hadamard",
    "trust-scale": "sweep fig10_trust_scale",
    "curves": "sweep fig11_curves",
    "pact": "sweep fig12_pact",
    "fit": "sweep scaling",
    "memory": "sweep scaling",
    "table1": "sweep scaling",
    "table2": "sweep table2_hellaswag",
    "table4": "sweep table4_lsq_wd",
}


@pytest.mark.parametrize("name", LAW_FIGURES)
def test_runs_that_allow_nothing_are_refused_with_the_sweep_that_would(tmp_path, name):
    """One finished BF16 run, without metrics."""
    run = finish(tmp_path / "bf16", "bf16", "none", 3.2)
    with pytest.raises(UserError) as error:
        data_of(name, run)
    assert f"nothing to draw: {name} needs" in str(error.value)
    assert f"questtrain {NEEDS[name]}`" in str(error.value)


def test_available_is_what_can_be_drawn_and_raises_nothing(tmp_path, caplog):
    table = write_law_table(tmp_path / "runs.csv", precisions=INTEGERS)
    with caplog.at_level(logging.INFO):
        found = available([table])
    assert list(found) == ["law", "lsq", "efficiency", "fit", "memory", "table1"]
    assert len(caplog.messages) == len(set(caplog.messages))
    assert any("not drawn: curves (fig11)" in message for message in caplog.messages)
    assert available([tmp_path / "nothing"]) == {}


# --- figures 1 and 5


def test_law_shows_the_commonest_ratio_with_the_fitted_curve(tmp_path, caplog):
    rows = law_rows(INTEGERS) + law_rows(("2",), ("30M", "50M"), (50,))
    rows += law_rows(("4",), ("30M",), (400,))
    with caplog.at_level(logging.WARNING):
        data = data_of("law", write_table(tmp_path / "runs.csv", rows))
    assert data.tokens_per_param == 100
    assert data.title == "Scaling law, 100 tokens/parameter"
    assert data.ylabel == "C4 validation loss (nats/token)"
    assert [one.label for one in data.series] == ["W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "BF16"]
    four = data.series[3]
    assert four.params == list(SIZES.values())
    assert four.memory_mbit == pytest.approx([4 * size / 1e6 for size in SIZES.values()])
    assert four.loss[0].mean == pytest.approx(law_loss(SIZES["30M"], 3e9, "4"))
    for memory, loss in zip(four.curve_memory_mbit, four.curve_loss, strict=True):
        size = memory * 1e6 / 4
        assert loss == pytest.approx(law_loss(size, 98 * size, "4"), rel=2e-3)
    assert any("24 runs at 25 tokens/parameter" in message for message in caplog.messages)
    assert data.missing == []


def test_missing_precisions_and_sizes_are_named(tmp_path, caplog):
    rows = law_rows(("2", "4", "16"), ratios=(100,))
    rows = [row for row in rows if row["name"] != "50M-2-100"]
    with caplog.at_level(logging.WARNING):
        data = data_of("law", write_table(tmp_path / "runs.csv", rows))
    assert data.missing == ["W1A1", "W2A2 at 50M", "W3A3"]
    assert "missing from law: W1A1; W2A2 at 50M; W3A3" in caplog.messages


def test_without_a_reference_there_are_points_and_no_curves(tmp_path, caplog):
    table = write_law_table(tmp_path / "runs.csv", precisions=("2", "4"))
    with caplog.at_level(logging.WARNING):
        figure = drawn("law", table)
    data = data_of("law", table)
    assert all(one.curve_loss == [] and one.loss for one in data.series)
    assert data.notes[0].startswith("No curves")
    assert any(message.startswith("no law, so no curves") for message in caplog.messages)
    assert legend(figure) == ["W2A2", "W4A4"]


def test_seeds_of_a_point_are_a_mean_with_bars(tmp_path):
    rows = law_rows(("4", "16"), ratios=(100,))
    again = [row | {"name": "again", "val_loss": row["val_loss"] + 0.1} for row in rows[:1]]
    data = data_of("law", write_table(tmp_path / "runs.csv", rows + again))
    spread, single, *_ = data.series[0].loss
    low = rows[0]["val_loss"]
    assert (spread.low, spread.high, spread.runs) == (low, low + 0.1, 2)
    assert spread.mean == pytest.approx(low + 0.05)
    assert (single.runs, single.low) == (1, single.high)
    assert any("several seeds" in note for note in data.notes)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("formats", ["INT4 2:4", "W4A4", "FP4", "BF16"]),
        ("weight-only", ["W2A16", "W4A16", "BF16"]),
        (
            "hadamard",
            [
                *("W1A1", "W2A2", "W3A3", "W4A4", "W8A8", "BF16"),
                *("W2A2 without Hadamard", "W4A4 without Hadamard"),
            ],
        ),
    ],
)
def test_each_figure_takes_its_precisions_alone(tmp_path, name, labels):
    data = data_of(name, write_law_table(tmp_path / "runs.csv"))
    assert [one.label for one in data.series] == labels
    if name == "formats":
        assert data.series[0].memory_mbit[0] == pytest.approx(2.5 * SIZES["30M"] / 1e6)


def test_a_precision_looks_the_same_everywhere_and_differs_without_colour():
    looks = [precision_style(label) for label in (*INTEGERS, "fp4", "w4s24a4", "w4a16", "4-lsq")]
    shapes = {(s["marker"], str(s["linestyle"]), s["markerfacecolor"] == "white") for s in looks}
    assert len(shapes) == len(looks)
    assert precision_style("my own") == precision_style("my own")


def test_ratios_are_called_by_round_numbers():
    points = [Point(1e6, 1e6 * r, "4", 3.0, f"{r}") for r in (24.3, 24.7, 97.1, 100.9, 43.7)]
    assert {ratio: len(group) for ratio, group in ratio_groups(points).items()} == {
        25: 2,
        44: 1,
        100: 2,
    }


def test_counts_for_readers():
    texts = [count_text(n) for n in (None, 950, 30_482_560, 2_999_975_936, 7e10, 9.999e8, 2e12)]
    assert texts == ["?", "950", "30.5M", "3B", "70B", "1B", "2T"]


# --- figures 4 and 13, table 1


def test_efficiency_finds_the_law_and_its_families(tmp_path):
    data = data_of("efficiency", write_law_table(tmp_path / "runs.csv"))
    families = {family.label: family.worths for family in data.families}
    assert list(families) == [
        *("QuEST INT", "LSQ INT", "QuEST INT without Hadamard", "QuEST INT, weight-only"),
        *("QuEST FP4", "QuEST INT 2:4"),
    ]
    assert [worth.bits for worth in families["QuEST INT"]] == [1, 2, 3, 4, 8, 16]
    for worths in families.values():
        for worth in worths:
            assert worth.eff.value == pytest.approx(EFF[worth.precision], rel=0.02)
            assert worth.gain.value == pytest.approx(16 * worth.eff.value / worth.bits)
            if worth.precision != "16":
                assert worth.eff.low <= worth.eff.high
    assert data.missing == []
    for part in ("104 runs", "90%"):
        assert part in data.notes[0]


def test_one_size_of_a_method_is_enough_for_its_efficiency(tmp_path):
    rows = law_rows(("4", "16")) + law_rows(("4-lsq",), ("30M",), (100,))
    data = data_of("efficiency", write_table(tmp_path / "runs.csv", rows))
    (lsq,) = next(family.worths for family in data.families if family.label == "LSQ INT")
    assert lsq.eff.value == pytest.approx(0.55, rel=0.02)


def test_table1_as_text(tmp_path):
    data = data_of("table1", write_law_table(tmp_path / "runs.csv", precisions=("2", "4", "16")))
    assert [worth.label for worth in data.worths] == ["W2A2", "W4A4", "BF16"]
    assert data.missing == ["W1A1", "W3A3", "W8A8"]
    table = FIGURES["table1"].table(data)
    for suffix in ("md", "tex", "csv"):
        write_text_table(table, tmp_path / f"t.{suffix}")
    markdown, latex, csv = ((tmp_path / f"t.{s}").read_text() for s in ("md", "tex", "csv"))
    assert "| BF16 | 16 | 8 | 1 | 1 |" in markdown
    assert "BF16 & 16 & 8 & 1 & 1 \\\\" in latex
    assert "$\\alpha$" in latex
    assert "90\\%" in latex
    assert csv.splitlines()[-1] == "BF16,16,8,1,1"


def test_fit_has_a_panel_a_precision_and_a_curve_a_ratio(tmp_path):
    rows = law_rows(INTEGERS, ratios=(25, 50, 100))
    rows = [row for row in rows if not row["name"].endswith("-3-50")]
    data = data_of("fit", write_table(tmp_path / "runs.csv", rows))
    assert [panel.label for panel in data.panels] == ["W3A3", "W4A4"]
    ratios = [[one.tokens_per_param for one in panel.series] for panel in data.panels]
    assert ratios == [[25, 100], [25, 50, 100]]
    assert data.missing == ["W3A3 at 50 tokens/parameter"]
    others = data_of("fit", write_law_table(tmp_path / "b.csv", precisions=("2", "16")))
    assert [panel.label for panel in others.panels] == ["W2A2", "BF16"]


# --- figure 14


def test_memory_marks_where_4_bits_overtake(tmp_path):
    """Against the law itself: N·16/P parameters and D·P/16 tokens, N = memory/2."""
    data = data_of("memory", write_law_table(tmp_path / "runs.csv", precisions=INTEGERS))
    assert [panel.memory_bytes for panel in data.panels] == [1.6e9, 6.4e9, 14e9, 140e9]
    assert data.panels[0].title == "1.6 GB (800M parameters in BF16)"

    def loss(bits, memory, ratio):
        size = memory / 2
        return law_loss(size * 16 / bits, ratio * size * bits / 16, str(bits))

    crossings = 0
    for panel in data.panels:
        curves = {curve.precision: curve.loss for curve in panel.curves}
        assert {"4", "8", "16"} <= set(curves)
        for bits in (4, 8, 16):
            wanted = [loss(bits, panel.memory_bytes, ratio) for ratio in RATIOS]
            assert curves[str(bits)] == pytest.approx(wanted, rel=0.02)
        if (x := panel.four_bits_from) is not None:
            crossings += 1
            best = min(loss(bits, panel.memory_bytes, x) for bits in (8, 16))
            assert loss(4, panel.memory_bytes, x) == pytest.approx(best, rel=2e-3)
    assert crossings
