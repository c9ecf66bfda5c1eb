"""`questtrain fit metric=…`: which columns follow the law, and that the law found is theirs."""

from __future__ import annotations

import json
import math

import pytest

from questtrain.cli.main import main
from questtrain.errors import UserError
from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.law import read_law
from questtrain.scaling.metric import metric_of
from questtrain.scaling.points import law_points
from questtrain.scaling.runs import read_runs
from tests.scaling.law_runs import EFF, law_rows, write_table

PRECISIONS = ("2", "4", "16")


def bits_per_byte(params: float, tokens: float, precision: str) -> float:
    """A law of another metric, with numbers of its own."""
    return 60 / (params * EFF[precision]) ** 0.25 + 90 / tokens**0.28 + 0.6


def evaluated(**columns):
    """Rows of runs with columns of results, functions of parameters, tokens and precision."""
    return [
        row
        | {
            name: result(row["non_embedding_params"], row["tokens"], row["precision"])
            for name, result in columns.items()
        }
        for row in law_rows(PRECISIONS)
    ]


def runs_of(path, rows):
    return read_runs([str(write_table(path, rows))])


@pytest.fixture
def runs(tmp_path):
    return runs_of(
        tmp_path / "runs.csv",
        evaluated(
            **{
                "bpb.book": bits_per_byte,
                "wiki.word_perplexity": lambda *place: math.exp(bits_per_byte(*place)),
                "hellaswag.acc": lambda *place: 1 - bits_per_byte(*place) / 3,
                "quiz.right": lambda *place: 1 - bits_per_byte(*place) / 3,
                "hellaswag.acc_stderr": lambda *place: 0.01,
            }
        ),
    )


@pytest.mark.parametrize("column", ["bpb.book", "wiki.word_perplexity"])
def test_the_law_of_a_metric_is_found(runs, column):
    points, remarks = law_points(runs, column)
    law = fit_law(points, FitOptions(bootstrap=0, metric=column))
    assert law.metric == column
    assert not remarks
    assert law.alpha.value == pytest.approx(0.25, rel=1e-3)
    assert law.beta.value == pytest.approx(0.28, rel=1e-3)
    assert law.E.value == pytest.approx(0.6, rel=1e-3)
    assert law.eff["2"].value == pytest.approx(EFF["2"], rel=1e-3)


@pytest.mark.parametrize(
    ("column", "why"),
    [
        ("hellaswag.acc", "better the higher"),
        ("hellaswag.acc_stderr", "standard error"),
        ("quiz.right", "rises as models and data grow"),
        ("lr", "not what it reached"),
    ],
)
def test_what_cannot_follow_the_law_is_refused_with_what_can(runs, column, why):
    with pytest.raises(UserError, match=why) as refusal:
        law_points(runs, column)
    assert "valid are val_loss" in str(refusal.value)


def test_an_unknown_column_names_the_nearest_of_those_that_can_be_fitted(runs):
    with pytest.raises(UserError, match=r"Did you mean 'bpb.book'\?") as refusal:
        metric_of("bpb.boook", runs)
    assert "choose from val_loss, bpb.book, wiki.word_perplexity" in str(refusal.value)
    assert "acc" not in str(refusal.value)


def test_runs_without_the_metric_are_left_out_and_named(tmp_path):
    rows = evaluated(**{"bpb.book": bits_per_byte})[:4]
    rows[3]["bpb.book"] = ""
    runs = runs_of(tmp_path / "runs.csv", rows)
    points, remarks = law_points(runs, "bpb.book")
    assert [point.name for point in points] == [row["name"] for row in rows[:3]]
    assert f"left out: {rows[3]['name']} has no bpb.book" in remarks
    assert len(law_points(runs)[0]) == 4


@pytest.mark.parametrize("value", ["0", "-1.5", "inf"])
def test_a_value_that_no_law_gives_is_named(tmp_path, value):
    rows = evaluated(**{"bpb.book": bits_per_byte})
    rows[1]["bpb.book"] = value
    runs = runs_of(tmp_path / "runs.csv", rows)
    with pytest.raises(UserError, match=f"{rows[1]['name']}: bpb.book="):
        law_points(runs, "bpb.book")


def test_the_command_says_which_metric_it_fitted(tmp_path, capsys):
    table = write_table(tmp_path / "runs.csv", evaluated(**{"bpb.book": bits_per_byte}))
    law, picture = tmp_path / "law.json", tmp_path / "law.svg"
    words = ["fit", str(table), "metric=bpb.book", "bootstrap=0"]
    assert main([*words, "--json", str(law), "-o", str(picture)]) == 0
    assert "E of bpb.book" in capsys.readouterr().out
    assert read_law(law).metric == "bpb.book"
    assert "bpb.book (bits/byte)" in picture.read_text()
    assert main(["plan", str(law), "memory=1GB", "tokens=10B"]) == 0
    assert "predicted bpb.book" in capsys.readouterr().out


def test_a_law_of_an_earlier_version_is_of_the_validation_loss(tmp_path):
    law = fit_law(law_points(runs_of(tmp_path / "r.csv", law_rows()))[0], FitOptions(bootstrap=0))
    file = tmp_path / "law.json"
    main(["fit", str(tmp_path / "r.csv"), "bootstrap=0", "--json", str(file)])
    content = json.loads(file.read_text())
    del content["metric"]
    file.write_text(json.dumps(content))
    assert read_law(file).metric == law.metric == "val_loss"
