"""The law as an object and as a file."""

import json

import numpy as np
import pytest

from questtrain.errors import UserError
from questtrain.scaling.fit import FitOptions, fit_law
from questtrain.scaling.law import law_record, read_law, write_law
from questtrain.scaling.paper import PAPER_LAW
from tests.scaling.synthetic import TRUTH, grid


def test_the_loss_is_the_equation():
    n, d = 1e8, 1e10
    expected = 400 / (n * 0.7) ** 0.33 + 1500 / d**0.36 + 1.9
    assert TRUTH.loss(n, d, "4") == pytest.approx(expected, rel=1e-12)
    assert TRUTH.loss(n, d, "16") == pytest.approx(400 / n**0.33 + 1500 / d**0.36 + 1.9, rel=1e-12)
    assert TRUTH.loss([n, 2 * n], d, "4").shape == (2,)


def test_a_precision_that_was_not_fitted_is_refused():
    with pytest.raises(
        UserError, match="unknown precision of this law '3': choose from 2, 4, 8, 16"
    ):
        TRUTH.loss(1e8, 1e10, "3")


@pytest.mark.parametrize("form", ["quest", "free-alpha", "chinchilla"])
def test_a_file_gives_the_law_back(tmp_path, form):
    law = fit_law(grid(noise=0.005), FitOptions(form=form, bootstrap=20))
    write_law(law, tmp_path / "law.json")
    again = read_law(tmp_path / "law.json")
    assert again == law
    record = json.loads((tmp_path / "law.json").read_text())
    assert record["form"] == form
    assert set(record["alpha"]) == {"value", "low", "high"}
    assert {"A", "alpha", "B", "beta", "E", "eff", "rms_log_residual", "points"} <= set(record)


def test_draws_predict_within_their_interval():
    law = fit_law(grid(noise=0.005), FitOptions(bootstrap=300))
    draws = law.loss_draws(1e8, 1e10, "4")
    assert len(draws) == 200
    assert draws.std() > 0
    assert np.median(draws) == pytest.approx(float(law.loss(1e8, 1e10, "4")), rel=2e-3)
    assert len(PAPER_LAW.loss_draws(1e8, 1e10, "4")) == 0


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "there is no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", "is not a law"),
        (json.dumps({"form": "quest"}), "'A' is missing"),
        (json.dumps(law_record(TRUTH) | {"form": "cubic"}), "unknown form of law 'cubic'"),
        (json.dumps(law_record(TRUTH) | {"E": {"value": None, "low": 1, "high": 2}}), "not a law"),
        (json.dumps(law_record(TRUTH) | {"eff": {"4": 0.7}}), "is not a law"),
    ],
)
def test_files_that_are_no_laws(tmp_path, content, part):
    path = tmp_path / "law.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        read_law(path)
    assert part in str(error.value)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        *(
            ({name: {"value": value, "low": None, "high": None}}, problem)
            for name in ("A", "alpha", "B", "beta")
            for value, problem in (
                (-1.5, f"{name}: 'value' holds -1.5; it should be greater than or equal to 0"),
                (0.0, f"'{name}' holds {{'value': 0.0, 'low': None, 'high': None}}; it should be"),
            )
        ),
        ({"E": {"value": -0.1, "low": None, "high": None}}, "E: 'value' holds -0.1"),
        (
            {"E": {"value": 1.0, "low": "0", "high": 2.0}},
            "E: 'low' holds '0'; it should be a valid number",
        ),
        ({"eff": {"4": {"value": -1.0, "low": 0, "high": 1}}}, "eff.4: 'value' holds -1.0"),
        ({"eff": []}, "'eff' holds []; it should be an object"),
        ({"points": "12"}, "'points' holds '12'; it should be a valid integer"),
        ({"rms_log_residual": -0.1}, "'rms_log_residual' holds -0.1"),
        ({"params_range": [3.0, 1.0]}, "'params_range' holds [3.0, 1.0]"),
        ({"params_range": [3.0]}, "params_range: '1' is missing"),
        ({"draws": {"A": [1.0, "x"]}}, "draws.A: '1' holds 'x'"),
        ({"warnings": "none"}, "'warnings' holds 'none'; it should be a valid array"),
    ],
)
def test_numbers_that_no_law_has(tmp_path, change, problem):
    """Named, with the file; not plans and curves of nonsense."""
    path = tmp_path / "law.json"
    path.write_text(json.dumps(law_record(TRUTH) | change))
    with pytest.raises(UserError) as error:
        read_law(path)
    assert f"{path} is not a law" in str(error.value)
    assert problem in str(error.value)


def test_the_paper_s_law_has_table_1():
    effs = {label: round(PAPER_LAW.eff[label].value, 2) for label in ("1", "3", "8")}
    assert effs == {"1": 0.02, "3": 0.43, "8": 1.02}
    assert PAPER_LAW.eff["2"].value == pytest.approx(0.16, abs=0.01)
    assert PAPER_LAW.eff["4"].value == pytest.approx(0.70, abs=0.01)
