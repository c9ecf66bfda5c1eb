"""Figures 3 and 10 to 12, table 4: methods compared, the numbers drawn, and what is left out."""

import json
import logging
import math

import pytest

from questtrain.scaling.figures import FIGURES
from questtrain.scaling.figures.tables import write_table as write_text_table
from tests.scaling import drawn, make_run
from tests.scaling.law_runs import (
    SIZES,
    finish,
    runs_for,
    training,
)


def data_of(name, *paths):
    return FIGURES[name].data(paths)


# --- figure 3


def test_lsq_draws_perplexity_by_bits(tmp_path):
    for seed, loss in enumerate((3.0, 3.2)):
        finish(tmp_path / f"q4-{seed}", "w4a4", val_loss=loss, seed=seed)
    finish(tmp_path / "q2", "w2a2", val_loss=3.6)
    finish(tmp_path / "bf16", "bf16", "none", 2.9)
    data = data_of("lsq", tmp_path)
    (quest,) = data.lines
    assert (quest.label, quest.bits) == ("QuEST", [2, 4])
    assert quest.perplexity[0].mean == pytest.approx(math.exp(3.6))
    assert quest.perplexity[1].high == pytest.approx(math.exp(3.2))
    assert quest.perplexity[1].runs == 2
    assert data.reference.mean == pytest.approx(math.exp(2.9))
    assert data.missing == ["QuEST at W1A1, W3A3, W8A8", "LSQ"]
    assert data.title == "Perplexity by bit width, 30M, 3B tokens"


def test_a_tuned_method_stands_by_its_best_setting(tmp_path, caplog):
    for decay, loss in ((0.1, 3.3), (1.0, 3.5)):
        finish(tmp_path / f"d{decay}", "w4a4", "lsq", loss, scale_weight_decay=decay)
    with caplog.at_level(logging.WARNING):
        (lsq,) = data_of("lsq", tmp_path).lines
    assert lsq.perplexity[0].mean == pytest.approx(math.exp(3.3))
    assert "lsq: d0.1 is the best of 2 settings" in caplog.messages


def test_one_size_is_drawn_and_the_others_are_said(tmp_path, caplog):
    for bits in (2, 4):
        finish(tmp_path / f"q{bits}", f"w{bits}a{bits}")
    finish(tmp_path / "large", "w4a4", model="50M", non_embedding_params=SIZES["50M"])
    with caplog.at_level(logging.WARNING):
        data = data_of("lsq", tmp_path)
    assert data.lines[0].bits == [2, 4]
    assert any("1 runs of other sizes or settings (large)" in text for text in caplog.messages)


# --- figure 10


def test_trust_scale_marks_each_minimum(tmp_path, caplog):
    runs = runs_for("trust-scale", tmp_path / "runs")
    finish(runs / "ste", "w1a1", trust_scale="inf")
    finish(runs / "q1.1", "w1a1", val_loss=4.2, trust_scale=1.1)
    with caplog.at_level(logging.WARNING):
        data = data_of("trust-scale", runs)
    with_it, without = data.lines
    assert (with_it.label, with_it.best) == ("QuEST", 1.25)
    assert (without.label, without.best) == ("QuEST without Hadamard", 1.25)
    assert with_it.trust_scale == [1.0, 1.1, 1.25, 1.5]
    assert data.title.startswith("Outer trust scale, W1A1")
    assert data.missing == ["QuEST without Hadamard at t = 1.1"]
    assert any("t is infinite in ste" in message for message in caplog.messages)


# --- figure 11


def test_curves_are_smoothed_and_the_end_is_enlarged(tmp_path):
    data = data_of("curves", runs_for("curves", tmp_path / "runs"))
    assert data.zoom_step == 200, "a tenth of a run this short"
    assert {line.label: line.zoomed for line in data.lines} == {
        "QuEST, W4A4": True,
        "LSQ, W4A4": True,
        "PACT, W4A4": False,
    }
    quest = data.lines[0]
    assert (quest.steps[0], quest.steps[-1], quest.tokens[-1]) == (10, 2000, 2e6)
    raw = [row["train_loss"] for row in training(3.3)]
    middle = raw[99:102]  # the rows within 10 steps of step 1010, of a window of 20
    assert quest.loss[100] == pytest.approx(sum(middle) / 3)
    assert data.missing == ["BF16"]
    assert data.notes[0] == "Running mean over 20 steps."
    assert "PACT, W4A4" in data.notes[1]


def test_curves_of_unfinished_and_diverged_runs_are_drawn(tmp_path):
    """Rows that are no training rows, and losses that are no numbers, are passed over."""
    odd = [{"step": 5, "val_loss": 9}, {"step": 7, "train_loss": None}, {"train_loss": 3.0}]
    finish(tmp_path / "a", status="diverged", val_loss=None, metrics=training(3.3) + odd)
    run = make_run(tmp_path / "b", bits="w4a4", method="lsq")
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in training(3.4)))
    data = data_of("curves", tmp_path)
    assert [line.label for line in data.lines] == ["QuEST, W4A4", "LSQ, W4A4"]
    assert data.lines[0].steps[-1] == 2000


def test_long_curves_are_thinned_to_their_last_row(tmp_path):
    run = finish(tmp_path / "a", metrics=training(3.3, steps=2000, every=1))
    (line,) = data_of("curves", run).lines
    assert len(line.steps) <= 600
    assert line.steps[-1] == 2000


# --- figure 12, table 4


def test_pact_is_a_heat_map_with_its_gaps(tmp_path):
    runs = runs_for("pact", tmp_path / "runs")
    lost = {"lr_scale": 10.0, "scale_weight_decay": 0.1}
    finish(runs / "lost", "w4a4", "pact", None, status="diverged", **lost)
    data = data_of("pact", runs)
    assert (data.lr_scale, data.weight_decay) == ([0.1, 1.0, 10.0], [0.01, 0.1])
    losses = [loss for row in data.loss for loss in row]
    assert losses == [
        pytest.approx(4.11),
        pytest.approx(5.01),
        None,
        pytest.approx(4.2),
        None,
        None,
    ]
    assert data.diverged == [(0.1, 10.0)]
    assert data.missing == [
        "lr_scale=10 scale_weight_decay=0.01",
        "lr_scale=1 scale_weight_decay=0.1",
    ]
    panel, bar = drawn("pact", runs).axes
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert [texts[place] for place in ((0, 0), (2, 1), (1, 1))] == ["4.110", "diverged", ""]
    assert len(panel.patches) == 3, "every cell without a loss is hatched"
    image = panel.images[0]
    dark, light = (image.cmap(image.norm(value))[:3] for value in (4.11, 5.01))
    assert sum(dark) < sum(light)
    assert "validation loss" in bar.get_ylabel()


def test_table4_sets_the_best_of_each_column_in_bold(tmp_path):
    data = data_of("table4", runs_for("table4", tmp_path / "runs"))
    assert (data.bits, data.weight_decay) == (["2", "4"], [0.1, 1.0])
    assert data.perplexity[0][0].mean == pytest.approx(math.exp(3.41))
    assert data.perplexity[1][1] is None
    assert data.missing == ["W4A4 at scale_weight_decay=1"]
    table = FIGURES["table4"].table(data)
    assert table.best == [(0, 1), (0, 2)]
    write_text_table(table, tmp_path / "t.md")
    assert f"| 0.1 | **{math.exp(3.41):.2f}** |" in (tmp_path / "t.md").read_text()


def test_table2_sets_bf16_beside_w4a4_size_by_size(tmp_path):
    runs = runs_for("table2", tmp_path / "runs")
    large = {"model": "800M", "non_embedding_params": 822_151_168, "tokens": 8e10}
    for seed, acc in ((0, 0.40), (1, 0.42)):
        results = {"hellaswag.acc": acc, "hellaswag.acc_stderr": 0.003, "hellaswag.acc_norm": 0.5}
        finish(runs / f"large{seed}", "bf16", "none", 2.7, seed=seed, evaluations=results, **large)
    part = {"hellaswag_first100.acc": 0.9}
    finish(runs / "part", "w4a4", val_loss=2.8, evaluations=part, **large)
    finish(runs / "other", "w2a2", val_loss=3.4, evaluations={"hellaswag.acc": 0.3})
    data = data_of("table2", runs)
    assert data.models == ["30M, 3B tokens", "800M, 80B tokens"]
    assert data.missing == ["W4A4 at 800M, 80B tokens"]
    table = FIGURES["table2"].table(data)
    assert table.header == [
        "model",
        *("BF16 acc", "W4A4 acc", "W4A4 - BF16"),
        *("BF16 acc_norm", "W4A4 acc_norm", "W4A4 - BF16"),
    ]
    assert table.rows == [
        ["30M, 3B tokens", "39.52 ± 0.49", "39.22 ± 0.49", "-0.30 ± 0.69", "–", "–", "–"],
        ["800M, 80B tokens", "41.00 ± 0.21", "–", "–", "50.00", "–", "–"],
    ]
    assert "Means over seeds." in table.notes
    write_text_table(table, tmp_path / "t.tex")
    assert "39.52 $\\pm$ 0.49" in (tmp_path / "t.tex").read_text()
